"""Exported recognisers: arcface_torch's state dicts, InsightFace's ONNX, both read back; refusals; the real command."""

import os
import re
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from insightface.model_zoo import get_model
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from mmengine.config import Config
from mmpretrain.registry import MODELS
from test_embedder_layouts import peers
from test_embedders import randomised
from tiny import write_faces

from facemae_mm.backbone_export import (
    TOLERANCE,
    largest_difference,
    load_recogniser,
    peer_names,
    preprocessing,
    save_class_weights,
    save_onnx,
    save_state_dict,
)
from facemae_mm.models.embedders import FaceEmbedder, OnnxFaceNet

IRESNET = dict(type='IResNet', depth=18, base_channels=8, embedding_dim=32)
BGR = dict(to_rgb=False)
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def recipe(backbone: dict, **shown) -> Config:
    shown = dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True) | shown
    head = dict(type='ArcFaceHead', num_classes=3, in_channels=backbone.get('embedding_dim', 512))
    return Config(dict(model=dict(type='FaceRecognizer', data_preprocessor=shown, backbone=backbone, head=head)))


def trained(folder, backbone: dict, **shown):
    """A recogniser of random weights, by way of a checkpoint as a training writes it."""
    cfg = recipe(backbone, **shown)
    model = MODELS.build(cfg.model)
    randomised(model.backbone)
    path = folder / 'epoch_1.pth'
    torch.save(dict(meta=dict(epoch=1), state_dict=model.state_dict()), path)
    return load_recogniser(cfg, path)


def real_or_random_faces(count: int = 6) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


SMALL = {
    'iresnet': (IRESNET, {}),
    'iresnet, BGR': (IRESNET, BGR),
    'iresnet, ImageNet': (IRESNET, IMAGENET),
    'iresnet, BGR of its own normalisation': (IRESNET, BGR | dict(mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0])),
    'iresnet, raw': (IRESNET, dict(mean=None, std=None)),
    'mobile_facenet': (dict(type='MobileFaceNet', blocks=(1, 1, 1, 1), scale=1, embedding_dim=16), {}),
    'vit': (dict(type='ArcFaceViT', embed_dims=32, depth=2, embedding_dim=16), {}),
    'adaface': (dict(type='AdaFaceIR', depth=18, base_channels=4, embedding_dim=16), BGR),
    'adaface with scaled channels': (
        dict(type='AdaFaceIR', depth=18, base_channels=16, squeeze_excite=True, embedding_dim=16),
        BGR,
    ),
}


@pytest.mark.parametrize('name', SMALL)
def test_insightface_embeds_as_the_recogniser_does(name, tmp_path):
    model = trained(tmp_path, SMALL[name][0], **SMALL[name][1])
    line = save_onnx(model, tmp_path / 'out.onnx')
    assert 'InsightFace embeds as torch does' in line
    theirs = get_model(str(tmp_path / 'out.onnx'), providers=['CPUExecutionProvider'])
    assert isinstance(theirs, ArcFaceONNX) and theirs.input_size == (112, 112)
    assert (theirs.input_mean, theirs.input_std) == (127.5, 127.5)
    faces = real_or_random_faces()
    order, mean, std = preprocessing(model)
    fed = torch.from_numpy(faces if order == 'bgr' else faces[..., ::-1].copy()).permute(0, 3, 1, 2).double()
    fed = ((fed - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).float()
    with torch.no_grad():
        expected = model.backbone(fed)[0].numpy()
    for found in (theirs.get_feat(list(faces)), np.concatenate([theirs.get_feat(face) for face in faces])):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * expected.std())
    assert [file.name for file in tmp_path.iterdir() if 'out.onnx' in file.name] == ['out.onnx']


@pytest.mark.parametrize('name', SMALL)
def test_our_own_phi_reads_it_back(name, tmp_path):
    model = trained(tmp_path, SMALL[name][0], **SMALL[name][1])
    save_onnx(model, tmp_path / 'out.onnx')
    phi = FaceEmbedder(dict(type='OnnxFaceNet'), tmp_path / 'out.onnx')
    faces = real_or_random_faces(3)
    theirs = get_model(str(tmp_path / 'out.onnx'), providers=['CPUExecutionProvider']).get_feat(list(faces))
    rgb = torch.from_numpy(faces[..., ::-1].copy()).permute(0, 3, 1, 2).float().requires_grad_(True)
    (embedding,) = phi(rgb)
    np.testing.assert_allclose(embedding.detach().numpy(), theirs, rtol=0, atol=2e-4 * theirs.std())
    embedding.square().sum().backward()
    assert rgb.grad.abs().amax((1, 2, 3)).min() > 0


def test_insightface_embeds_real_faces_alike(shared, tmp_path):
    files = sorted((shared / 'faces' / 'lfw112').glob('*/*_0001.jpg'))[::800]
    faces = np.stack([cv2.imread(str(file)) for file in files])
    model = trained(tmp_path, dict(type='IResNet', depth=18))
    save_onnx(model, tmp_path / 'r18.onnx')
    theirs = get_model(str(tmp_path / 'r18.onnx'), providers=['CPUExecutionProvider'])
    assert len(faces) >= 7 and largest_difference(model, theirs, faces) < TOLERANCE
    assert not largest_difference(model, theirs, faces[:, ::-1].copy()) > TOLERANCE  # any picture, not those alone
    swapped = theirs.get_feat(list(faces[..., ::-1].copy()))  # colours do matter
    assert np.abs(swapped - theirs.get_feat(list(faces))).max() > 0.1 * swapped.std()


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    """What InsightFace computes is compared with torch: here torch's embedding is another than the graph's."""
    model = trained(tmp_path, IRESNET)
    exported = torch.onnx.export

    def spoil(network, *args, **kwargs):
        exported(network, *args, **kwargs)
        with torch.no_grad():
            model.backbone.features.bias += 1e-2

    monkeypatch.setattr(torch.onnx, 'export', spoil)
    with pytest.raises(ValueError, match=r'out\.onnx: InsightFace and torch differ by .* Nothing was written'):
        save_onnx(model, tmp_path / 'out.onnx')
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_1.pth']


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore:User provided device_type:UserWarning')
@pytest.mark.parametrize(
    'backbone, variable, module, build',
    [
        (dict(type='IResNet', depth=18), 'FACEMAE_ARCFACE_TORCH', 'backbones.iresnet', lambda m: m.iresnet18()),
        (
            dict(type='MobileFaceNet'),
            'FACEMAE_ARCFACE_TORCH',
            'backbones.mobilefacenet',
            lambda m: m.get_mbf(fp16=False, num_features=512),
        ),
        (dict(type='AdaFaceIR', depth=18), 'FACEMAE_ADAFACE', 'net', lambda m: m.build_model('ir_18')),
    ],
)
def test_peers_load_it_strictly(backbone, variable, module, build, tmp_path):
    theirs = build(peers(variable, module))
    bgr = backbone['type'] == 'AdaFaceIR'
    model = trained(tmp_path, backbone, to_rgb=not bgr)
    save_state_dict(model, tmp_path / 'out.pth')
    state = torch.load(tmp_path / 'out.pth', weights_only=True)
    if bgr:  # as AdaFace's inference.py reads its files
        state = {key[6:]: value for key, value in state['state_dict'].items() if key.startswith('model.')}
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = theirs.eval()(x)
        expected = expected[0] * expected[1] if bgr else expected
        torch.testing.assert_close(model.backbone(x)[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    'backbone, names',
    [
        *((dict(type='IResNet', depth=depth), [f'r{depth}']) for depth in (18, 34, 50, 100, 200)),
        (dict(type='MobileFaceNet'), ['mbf']),
        (dict(type='MobileFaceNet', blocks=(2, 8, 12, 4), scale=4), ['mbf_large']),
        (dict(type='ArcFaceViT', arch='vit_s'), ['vit_s', 'vit_s_dp005_mask_0']),
        (dict(type='ArcFaceViT', arch='vit_b'), ['vit_b', 'vit_b_dp005_mask_005']),
        (dict(type='AdaFaceIR', depth=101), ['ir_101']),
        (dict(type='AdaFaceIR', depth=50, squeeze_excite=True), ['ir_se_50']),
        (IRESNET, []),
    ],
)
def test_networks_are_named_as_their_peers_name_them(backbone, names):
    with torch.device('meta'):
        assert peer_names(MODELS.build(backbone)) == names


def test_a_published_backbone_becomes_onnx_and_comes_back(tmp_path):
    """A bare state dict, as arcface_torch publishes it."""
    torch.save(randomised(MODELS.build(IRESNET)).state_dict(), tmp_path / 'backbone.pth')
    model = load_recogniser(recipe(IRESNET), tmp_path / 'backbone.pth')
    first = save_onnx(model, tmp_path / 'out.onnx')
    content = (tmp_path / 'out.onnx').read_bytes()
    assert save_onnx(model, tmp_path / 'out.onnx') == first and (tmp_path / 'out.onnx').read_bytes() == content
    shape = onnx.load(str(tmp_path / 'out.onnx')).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ['N', 3, 112, 112]


def test_what_a_state_dict_cannot_say_is_refused(tmp_path):
    full = dict(type='IResNet', depth=18)
    for shown, said in ((BGR, 'trained with BGR'), (IMAGENET, r'RGB, \(x − \[123.67')):
        model = trained(tmp_path, full, **shown)
        with pytest.raises(ValueError, match=rf'out\.pth: .*{said}.*Export ONNX'):
            save_state_dict(model, tmp_path / 'out.pth')
    with pytest.raises(ValueError, match='IResNet of this size.*Export ONNX'):
        save_state_dict(trained(tmp_path, IRESNET), tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_other_recipes_and_weights_are_refused(tmp_path):
    torch.save(randomised(MODELS.build(IRESNET)).state_dict(), tmp_path / 'backbone.pth')
    with pytest.raises(ValueError, match='no FaceRecognizer.*arcface_r50_casia'):
        load_recogniser(Config(dict(model=dict(type='MAE'))), tmp_path / 'backbone.pth')
    with pytest.raises(ValueError, match=r'backbone\.pth does not fit.*missing'):
        load_recogniser(recipe(IRESNET | dict(depth=34)), tmp_path / 'backbone.pth')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        load_recogniser(recipe(IRESNET), tmp_path / 'none.pth')


def test_any_backbone_of_mmpretrain_with_a_neck_becomes_onnx(tmp_path):
    cfg = recipe(dict(type='ResNet', depth=18, embedding_dim=512))
    cfg.model.backbone.pop('embedding_dim')
    cfg.model.neck = dict(type='GlobalAveragePooling')
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'epoch_1.pth')
    model = load_recogniser(cfg, tmp_path / 'epoch_1.pth')
    save_onnx(model, tmp_path / 'out.onnx')
    theirs = get_model(str(tmp_path / 'out.onnx'), providers=['CPUExecutionProvider'])
    assert theirs.get_feat(list(real_or_random_faces(2))).shape == (2, 512)
    with pytest.raises(ValueError, match='neither arcface_torch nor AdaFace'):
        save_state_dict(model, tmp_path / 'out.pth')


def test_class_weights_of_a_training_are_one_array(tmp_path):
    trained(tmp_path, IRESNET)
    weight = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['state_dict']['head.weight']
    assert '3 classes of 32 channels' in save_class_weights(tmp_path / 'epoch_1.pth', tmp_path / 'classes.npy')
    found = np.load(tmp_path / 'classes.npy', mmap_mode='r')
    assert found.dtype == np.float32 and np.array_equal(found, weight.numpy())
    torch.save(dict(state_dict={'backbone.conv1.weight': weight}), tmp_path / 'bare.pth')
    with pytest.raises(ValueError, match='no class weights'):
        save_class_weights(tmp_path / 'bare.pth', tmp_path / 'none.npy')
    assert not (tmp_path / 'none.npy').exists()


def test_the_command(repository, tmp_path):
    """Trains a small recogniser by tools/train.py, exports what it saved, and is refused by code 2."""

    def run(*command):
        env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
        command = [sys.executable, str(repository / 'tools' / command[0]), *map(str, command[1:])]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    faces = write_faces(tmp_path / 'faces')
    options = ['--cfg-options', f'recognition_faces={faces}', 'num_classes=4', 'train_cfg.max_epochs=1']
    config = repository / 'configs' / 'demo_arcface.py'
    code, text = run('train.py', config, '--work-dir', 'work', *options, 'train_dataloader.batch_size=8')
    assert code == 0, text
    export = ('export_backbone.py', config, 'work/epoch_1.pth', 'out.onnx')
    code, text = run(*export)
    assert code == 0 and 'out.onnx: InsightFace embeds as torch does, to ' in text, text
    theirs = get_model(str(tmp_path / 'out.onnx'), providers=['CPUExecutionProvider'])
    assert isinstance(theirs, ArcFaceONNX) and isinstance(OnnxFaceNet(tmp_path / 'out.onnx'), OnnxFaceNet)
    for words, said in (
        (export, 'exists already.*--overwrite'),
        ((*export[:3], 'out.pth'), 'IResNet of this size'),
        ((*export[:3], 'out.h5'), r'ends with none of \.onnx, \.pth'),
        ((*export[:2], 'none.pth', 'new.onnx'), 'none.pth does not exist'),
    ):
        code, text = run(*words)
        assert code == 2 and 'Traceback' not in text
        assert re.search(said, text), text
