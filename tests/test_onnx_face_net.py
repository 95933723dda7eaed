"""InsightFace's ONNX recognition models as torch modules: onnxruntime's numbers, any batch, gradients, refusals."""

import copy
import pickle
import warnings

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_embedders import randomised
from tiny import SMALL_FACEMAE, small_recipe
from torch import nn

from facemae_mm.memory import estimate_memory
from facemae_mm.models.embedders import AdaFaceIR, ArcFaceViT, FaceEmbedder, IResNet, MobileFaceNet, resolve_checkpoint

ONNX = dict(type='OnnxFaceNet')


class Only(nn.Module):
    """The embedding without its tuple, for the exporter."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)[0]


def export(network: nn.Module, path, opset: int = 11, dynamic: bool = False):
    """As InsightFace's torch2onnx does, with a batch of one."""
    names = dict(input_names=['input.1'], output_names=['embedding'])
    axes = dict(dynamic_axes={'input.1': {0: 'batch'}}) if dynamic else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter's own
        face = torch.randn(1, 3, 112, 112)
        torch.onnx.export(Only(network), (face,), str(path), dynamo=False, opset_version=opset, **names, **axes)
    return path


def by_onnxruntime(path, faces: torch.Tensor, mean=127.5, std=127.5) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    fed = ((faces.detach() - mean) / std).numpy()
    return torch.from_numpy(np.concatenate([session.run(None, {name: face[None]})[0] for face in fed]))


def random_faces(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 255


def same_as_onnxruntime(phi: FaceEmbedder, path, faces, atol=1e-4, **normalisation) -> None:
    faces = faces.clone().requires_grad_(True)
    embedding = phi(faces)[0]
    expected = by_onnxruntime(path, faces, **normalisation)
    assert expected.std() > 1e-3
    torch.testing.assert_close(embedding.detach(), expected, rtol=0, atol=atol)
    (embedding @ torch.randn(phi.embedding_dim)).sum().backward()
    assert faces.grad.isfinite().all() and faces.grad.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.fixture(scope='module')
def pack(shared):
    return shared / 'insightface_pack' / 'models' / 'mini'


def test_a_real_pack_gives_onnxruntimes_numbers_on_real_faces(pack, shared):
    files = sorted((shared / 'faces' / 'lfw112').glob('*/*_0001.jpg'))[::800]
    faces = torch.from_numpy(np.stack([cv2.imread(str(file))[..., ::-1] for file in files])).permute(0, 3, 1, 2).float()
    phi = FaceEmbedder(ONNX, pack)  # the folder, with a detector in it
    assert len(faces) >= 7 and (phi.input_size, phi.embedding_dim) == (112, 128)
    same_as_onnxruntime(phi, pack / 'mobilefacenet_arcface.onnx', faces)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    phi = FaceEmbedder(ONNX, pack / 'mobilefacenet_arcface.onnx', mean=mean.tolist(), std=std.tolist())
    shape = (3, 1, 1)
    normalisation = dict(mean=torch.tensor(mean).float().view(shape), std=torch.tensor(std).float().view(shape))
    same_as_onnxruntime(phi, pack / 'mobilefacenet_arcface.onnx', faces, **normalisation)


def test_a_real_packs_detector_is_refused(pack):
    with pytest.raises(ValueError, match=r'scrfd_500m_bnkps\.onnx is no recognition model: 1 inputs and 9 outputs'):
        FaceEmbedder(ONNX, pack / 'scrfd_500m_bnkps.onnx')


NETWORKS = dict(
    r18=lambda: IResNet(18, base_channels=4, embedding_dim=16),
    mbf=lambda: MobileFaceNet((1, 1, 1, 1), scale=1, embedding_dim=16),
    vit=lambda: ArcFaceViT(embed_dims=32, depth=2, embedding_dim=16),
    ir_se=lambda: AdaFaceIR(18, True, base_channels=16, embedding_dim=16),
)


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('kind, opset', [('r18', 11), ('mbf', 12), ('vit', 14), ('ir_se', 11)])
def test_exported_networks_run_at_any_batch(kind, opset, dynamic, tmp_path):
    path = export(randomised(NETWORKS[kind]()), tmp_path / 'model.onnx', opset, dynamic)
    phi = FaceEmbedder(ONNX, path)
    faces = random_faces()
    same_as_onnxruntime(phi, path, faces)
    with torch.no_grad():
        torch.testing.assert_close(phi(faces[:1])[0], phi(faces)[0][:1], rtol=1e-4, atol=1e-4)


def mxnet_like(
    path, names=('_minusscalar0', '_mulscalar0'), opset: int = 8, reshape=(1, -1), many_batches: bool = False
):
    """A graph as MXNet's exporter wrote them: normalisation inside, weights among the inputs, an old operator set."""
    rng = np.random.default_rng(0)
    values = dict(
        offset=np.array(127.5),
        factor=np.array(1 / 128),
        weight=rng.normal(0, 0.2, (8, 3, 3, 3)),
        gamma=rng.uniform(0.5, 1.5, 8),
        beta=rng.normal(0, 0.2, 8),
        average=rng.normal(0, 0.2, 8),
        variance=rng.uniform(0.5, 1.5, 8),
        slope=rng.uniform(0, 0.5, (8, 1, 1)),
        dense=rng.normal(0, 0.01, (16, 8 * 14 * 14)),
        bias=rng.normal(0, 0.1, 16),
    )
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    shape = numpy_helper.from_array(np.array(reshape), 'shape')
    nodes = [
        helper.make_node('Sub', ['data', 'offset'], ['a'], names[0]),
        helper.make_node('Mul', ['a', 'factor'], ['b'], names[1]),
        helper.make_node('Conv', ['b', 'weight'], ['c'], 'conv0', kernel_shape=[3, 3], strides=[8, 8], pads=[1] * 4),
        helper.make_node(
            'BatchNormalization', ['c', 'gamma', 'beta', 'average', 'variance'], ['d'], 'bn0', epsilon=2e-5
        ),
        helper.make_node('PRelu', ['d', 'slope'], ['e'], 'relu0'),
        helper.make_node('Reshape', ['e', 'shape'], ['f'], 'flatten'),
        helper.make_node('Gemm', ['f', 'dense', 'bias'], ['g'], 'fc1', transB=1),
    ]
    if many_batches:  # a sum over the batch
        nodes += [helper.make_node('ReduceSum', ['g'], ['h'], 'sum', axes=[0], keepdims=1)]
    inputs = [helper.make_tensor_value_info('data', TensorProto.FLOAT, [1, 3, 112, 112])]
    inputs += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in [*weights, shape]
    ]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [1, 16])]
    graph = helper.make_graph(nodes, 'mxnet', inputs, outputs, [*weights, shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=4), str(path))
    return path


def test_a_graph_that_normalises_inside_gets_plain_pixels(tmp_path):
    path = mxnet_like(tmp_path / 'mxnet.onnx')
    phi = FaceEmbedder(ONNX, path)
    assert phi.mean.flatten().tolist() == [0, 0, 0] and phi.std.flatten().tolist() == [1, 1, 1]
    same_as_onnxruntime(phi, path, random_faces(), mean=0, std=1)
    path = mxnet_like(tmp_path / 'other.onnx', names=('a', 'b'))  # InsightFace goes by names alone
    assert FaceEmbedder(ONNX, path).mean.flatten().tolist() == [127.5] * 3


def test_insightface_decides_the_same_normalisation(tmp_path):
    model_zoo = pytest.importorskip('insightface.model_zoo.arcface_onnx')
    for number, names in enumerate([('Sub_0', 'Mul_1'), ('_minus0', '_mul0'), ('Sub_0', 'x'), ('x', 'y')]):
        path = mxnet_like(tmp_path / f'{number}.onnx', names)
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        theirs = model_zoo.ArcFaceONNX(str(path), session)
        phi = FaceEmbedder(ONNX, path)
        assert phi.mean.flatten().tolist() == [theirs.input_mean] * 3
        assert phi.std.flatten().tolist() == [theirs.input_std] * 3


def test_a_graph_that_mixes_faces_is_refused(tmp_path):
    path = mxnet_like(tmp_path / 'mixed.onnx', many_batches=True)
    with pytest.raises(ValueError, match='another result for two faces than for each alone'):
        FaceEmbedder(ONNX, path)


def test_files_that_are_none_are_refused(tmp_path):
    whole = mxnet_like(tmp_path / 'whole.onnx').read_bytes()
    path = tmp_path / 'cut.onnx'
    for content in (whole[: len(whole) // 2], whole[:-7], b'', b'PK\3\4 an archive', b'<html>not found</html>'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'cut\.onnx is no ONNX model, or is damaged or cut off'):
            FaceEmbedder(ONNX, path)
    for shape, match in (([1, 3, 192, 192], 'landmarks'), ([1, 3, 96, 96], '96'), ([1, 1, 112, 112], 'not')):
        model = onnx.load_from_string(whole)
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
        onnx.save(model, str(path))
        with pytest.raises(ValueError, match=rf'cut\.onnx is no recognition model: input .*{match}'):
            FaceEmbedder(ONNX, path)
    model = onnx.load_from_string(whole)
    model.graph.node[4].op_type, model.graph.node[4].domain = 'Magic', 'com.example'
    model.opset_import.append(helper.make_opsetid('com.example', 1))
    onnx.save(model, str(path))
    with pytest.raises(ValueError, match=r'cut\.onnx cannot be turned into torch modules: .*Magic'):
        FaceEmbedder(ONNX, path)
    with pytest.raises(ValueError, match='OnnxFaceNet: checkpoint is not set'):
        FaceEmbedder(ONNX)
    with pytest.raises(FileNotFoundError, match=r'absent\.onnx does not exist'):
        FaceEmbedder(ONNX, tmp_path / 'absent.onnx')


@pytest.mark.parametrize('location', ['weights.bin', '../weights.bin', '/etc/passwd'])
def test_weights_in_another_file_are_refused(location, tmp_path):
    model = onnx.load(str(mxnet_like(tmp_path / 'model.onnx')))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == 'dense')
    tensor.ClearField('raw_data')
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value=location)
    (tmp_path / 'split.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r'split\.onnx keeps its weights in another file.*onnx\.save'):
        FaceEmbedder(ONNX, tmp_path / 'split.onnx')


def test_a_pack_is_its_one_recognition_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'0 recognition models \(no \.onnx file\)'):
        resolve_checkpoint(tmp_path)
    path = mxnet_like(tmp_path / 'one.onnx')
    assert resolve_checkpoint(tmp_path) == path
    mxnet_like(tmp_path / 'two.onnx')
    with pytest.raises(FileNotFoundError, match=r'2 recognition models \(one\.onnx, two\.onnx\)'):
        resolve_checkpoint(tmp_path)


def test_it_is_frozen_copied_and_pickled(tmp_path):
    phi = FaceEmbedder(ONNX, export(randomised(NETWORKS['r18']()), tmp_path / 'model.onnx'))
    phi.train()
    faces = random_faces()
    expected = phi(faces)[0]
    assert not any(value.requires_grad for value in phi.backbone.parameters())
    assert not phi.backbone.training and not any(module.training for module in phi.backbone.modules())
    assert copy.deepcopy(nn.Sequential(phi))[0] is phi
    assert torch.equal(pickle.loads(pickle.dumps(phi))(faces)[0], expected)
    assert not phi.state_dict() and len(phi.sha256) == 64


def test_memory_is_estimated_with_the_network_of_the_file(repository, tmp_path):
    path = export(randomised(NETWORKS['r18']()), tmp_path / 'model.onnx')
    phi = dict(_delete_=True, type='FaceEmbedder', backbone=ONNX, checkpoint=str(path))
    options = {key: value for key, value in SMALL_FACEMAE.items() if '.phi.' not in key}
    onnx_config = small_recipe(repository, 'facemae_vitb_webface', **options, **{'model.head.loss.phi': phi})
    plain = {**options, 'model.head.loss.phi.backbone': dict(type='IResNet', depth=18, base_channels=4)}
    torch_config = small_recipe(
        repository, 'facemae_vitb_webface', **plain, **{'model.head.loss.phi.precision': 'float32'}
    )
    with_onnx, with_torch = estimate_memory(onnx_config), estimate_memory(torch_config)
    # The exporter folds BN into convolutions and shapes PReLU's slopes otherwise, so the graph keeps not quite as much.
    assert 0.8 < with_onnx.per_sample / with_torch.per_sample < 1.2
