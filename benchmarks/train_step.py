"""One training step of FaceMAE, against MMPretrain's MAE with a plain two-pass φ in its loss, in float32.

Ours is the model of configs/facemae_vitb_webface.py as it trains from its second epoch on: φ(original) comes from the
cache, what φ keeps for its gradient is small, and everything runs in bfloat16 where this machine multiplies it. The
peer is what a user would write today: MMPretrain's recipe, `norm_pix` off, and in its loss φ(original) without and
φ(reconstruction) with gradient. Both start from the same weights, take the same masks, and step by AdamW.

loss_deviation trains a small model of each kind at 64 pixels for 200 steps, on the same batches of synthetic faces, at
a learning rate of 2e-5: at 1e-3 rounding alone takes two float32 runs 3 % apart.
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from side_by_side import peak_mib, print_ratio
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facemae_mm.config import load_config
from facemae_mm.engine import AutocastOptimWrapper
from facemae_mm.precision import native_bfloat16

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

#: A model for loss curves: 64 pixels, patches of 8.
SMALL = dict(size=64, patch=8, width=128, layers=4, decoder_width=64, decoder_layers=2, depth=18, channels=4)
#: The paper's.
PAPER = dict(size=224, patch=16, width=768, layers=12, decoder_width=512, decoder_layers=8, depth=50, channels=64)


@MODELS.register_module()
class TwoPassIRM(nn.Module):
    """Eq. 2 as a user of MMPretrain would write it: β = 1, features normalised."""

    def __init__(self, phi: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.phi = phi.requires_grad_(False)
        self.patch_size = patch_size
        self.register_buffer('mean', torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(STD).view(3, 1, 1))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (N, L, p² · 3) → normalised features (N, D)."""
        side, p = int(tokens.shape[1] ** 0.5), self.patch_size
        images = tokens.reshape(-1, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, side * p, side * p)
        images = F.interpolate(images, size=112, mode='bilinear', align_corners=False)
        return F.normalize(self.phi((images * self.std + self.mean - 127.5) / 127.5)[0])

    def forward(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scalar."""
        self.phi.eval()
        with torch.no_grad():
            f = self.embed(target)
        f_hat = self.embed(pred)
        im = ((f_hat - f).square().sum(1) + 1e-12).sqrt().mean()
        return im + ((f_hat @ f_hat.T - f @ f.T).square().sum(1) + 1e-12).sqrt().mean()


def network(shape: dict) -> dict:
    """Encoder, decoder and head that both sides share."""
    arch = dict(embed_dims=shape['width'], num_layers=shape['layers'], num_heads=shape['width'] // 64)
    return dict(
        backbone=dict(
            type='MAEViT',
            arch=arch | dict(feedforward_channels=4 * shape['width']),
            img_size=shape['size'],
            patch_size=shape['patch'],
            mask_ratio=0.75,
        ),
        neck=dict(
            type='MAEPretrainDecoder',
            num_patches=(shape['size'] // shape['patch']) ** 2,
            patch_size=shape['patch'],
            embed_dim=shape['width'],
            decoder_embed_dim=shape['decoder_width'],
            decoder_depth=shape['decoder_layers'],
            decoder_num_heads=shape['decoder_width'] // 32,
        ),
    )


def phi_network(shape: dict) -> nn.Module:
    """An IResNet of random weights whose activations stay in the range of a trained one's."""
    torch.manual_seed(7)
    phi = MODELS.build(dict(type='IResNet', depth=shape['depth'], base_channels=shape['channels']))
    for module in phi.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None  # running statistics become those of the faces below
    with torch.no_grad():
        phi.train()((synthetic_faces(32, 112).float() - 127.5) / 127.5)
    return phi.eval()


class Side:
    """One of the two: model, optimiser, and steps on given faces."""

    def __init__(self, shape: dict, folder: Path, emulate: bool = False, lr: float = 1e-4) -> None:
        torch.manual_seed(0)
        self.model = self.build(shape, folder)
        self.model.train()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
        self.optim_wrapper = self.wrap(optimizer, emulate)

    def step(self, faces: torch.Tensor, numbers: list[int], seed: int) -> float:
        """A step on uint8 faces (N, 3, H, H), whose masks a seed draws; returns its loss."""
        data = self.batch(faces, numbers, seed)
        return float(self.model.train_step(data, self.optim_wrapper)['loss'])


class Ours(Side):
    """FaceMAE."""

    def build(self, shape: dict, folder: Path) -> nn.Module:
        self.patches = (shape['size'] // shape['patch']) ** 2
        weights = folder / f'phi{shape["depth"]}_{shape["channels"]}.pth'
        torch.save(phi_network(shape).state_dict(), weights)
        torch.manual_seed(0)
        recipe = load_config(CONFIGS / 'facemae_vitb_webface.py').model
        phi = recipe.head.loss.phi
        phi.update(checkpoint=str(weights))
        phi.backbone.update(depth=shape['depth'], base_channels=shape['channels'])
        recipe.head.update(patch_size=shape['patch'])
        recipe.head.loss.update(patch_size=shape['patch'], cache=str(folder / 'cache'))
        recipe.data_preprocessor.update(size=shape['size'], patch_size=shape['patch'])
        return MODELS.build(dict(recipe, **network(shape)))

    def wrap(self, optimizer: torch.optim.Optimizer, emulate: bool) -> OptimWrapper:
        return AutocastOptimWrapper(optimizer=optimizer, emulate=emulate)

    def batch(self, faces: torch.Tensor, numbers: list[int], seed: int) -> dict:
        torch.manual_seed(seed)
        ranks = torch.rand(len(faces), self.patches).argsort(dim=1).argsort(dim=1)  # the noise that MAEViT draws
        masks = (ranks >= int(self.patches * 0.25)).to(torch.uint8)
        samples = []
        for number, mask in zip(numbers, masks, strict=True):
            info = dict(sample_idx=number, flip=False, img_digest=f'{number:032x}')
            samples.append(DataSample(metainfo=info).set_mask(mask))
        return dict(inputs=faces, data_samples=samples)


class Peer(Side):
    """MMPretrain's MAE."""

    def build(self, shape: dict, folder: Path) -> nn.Module:
        phi = phi_network(shape)
        torch.manual_seed(0)
        loss = dict(type='TwoPassIRM', phi=phi, patch_size=shape['patch'])
        return MODELS.build(
            dict(
                type='MAE',
                data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True),
                head=dict(type='MAEPretrainHead', norm_pix=False, patch_size=shape['patch'], loss=loss),
                **network(shape),
            )
        )

    def wrap(self, optimizer: torch.optim.Optimizer, emulate: bool) -> OptimWrapper:
        return OptimWrapper(optimizer=optimizer)

    def batch(self, faces: torch.Tensor, numbers: list[int], seed: int) -> dict:
        torch.manual_seed(seed)
        return dict(inputs=faces, data_samples=[DataSample() for _ in numbers])


def synthetic_faces(count: int, size: int) -> torch.Tensor:
    """Smooth pictures, (count, 3, size, size) uint8."""
    rng = np.random.default_rng(0)
    faces = [cv2.resize(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), (size, size)) for _ in range(count)]
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).contiguous()


def prepare(kind: type[Side], shape: dict, batch: int, folder: Path) -> callable:
    """A function that takes one more step and returns its seconds; the first fills the cache."""
    side, faces = kind(shape, folder), synthetic_faces(batch, shape['size'])

    def step() -> float:
        start = time.perf_counter()
        side.step(faces, list(range(batch)), 0)
        return time.perf_counter() - start

    step.side, step.faces = side, faces
    return step


def measure_memory(kind: str, batch: int, depth: int) -> float:
    """Peak of two steps of a side in a process of its own, MiB."""
    code = f"""
import sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import train_step
train_step.set_up()
with tempfile.TemporaryDirectory() as folder:
    step = train_step.prepare(getattr(train_step, sys.argv[1]), train_step.PAPER | dict(depth=int(sys.argv[3])),
        int(sys.argv[2]), Path(folder))
    step(), step()
"""
    return peak_mib(code, kind, batch, depth)


def peak_flops(dtype: torch.dtype) -> float:
    """The best of five 4096³ products, FLOP/s."""
    a, b = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(times)


def count_flops(step: callable) -> float:
    """FLOPs of one step, by torch's counter: products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def loss_deviation(steps: int, emulate: bool, folder: Path) -> float:
    """Largest relative difference of the 10-step running means of both losses after step 20."""
    faces, rng, batch = synthetic_faces(64, SMALL['size']), np.random.default_rng(1), 8
    batches = [rng.choice(len(faces), batch, replace=False).tolist() for _ in range(steps)]
    means = []
    for kind in (Ours, Peer):
        side = kind(SMALL, folder, emulate, lr=2e-5)
        losses = [side.step(faces[numbers], numbers, seed) for seed, numbers in enumerate(batches)]
        means.append(np.convolve(losses, np.ones(10) / 10, 'valid')[11:])  # windows that begin after step 20 − 10 + 1
        print(f'  {kind.__name__}: loss {losses[0]:.4f} at first, {np.mean(losses[-10:]):.4f} over the last 10 steps')
    return float(np.max(np.abs(means[0] - means[1]) / means[1]))


def set_up() -> None:
    """Quiet logs, MMPretrain's scope, recipes without their files."""
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('benchmark', log_level='ERROR')
    logging.disable(logging.INFO)
    init_default_scope('mmpretrain')


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=32, help='faces a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='of each side, at least 3 (default: %(default)s)')
    parser.add_argument('--depth', type=int, default=50, help="of φ's IResNet (default: %(default)s)")
    parser.add_argument('--steps', type=int, default=200, help='of the loss curves (default: %(default)s)')
    parser.add_argument('--emulate', action='store_true', help='loss curves in bfloat16 on a CPU without it; slow')
    parser.add_argument('--curves-only', action='store_true', help='loss_deviation alone')
    parser.add_argument('--full', action='store_true', help='also how time grows with batch, image size and φ')
    args = parser.parse_args()
    set_up()
    native = native_bfloat16('cpu')
    dtype = torch.bfloat16 if native else torch.float32
    print(f'{torch.get_num_threads()} threads; this processor multiplies {"" if native else "no "}bfloat16')
    lines = []
    with tempfile.TemporaryDirectory(prefix='train-step-') as name:
        folder = Path(name)
        if not args.curves_only:
            lines += compare_steps(args, dtype, folder)
        print(f'loss curves over {args.steps} steps:')
        deviation = loss_deviation(args.steps, args.emulate, folder)
        lines.append(f'ratio loss_deviation {deviation:.5f}')
        if args.full:
            growth(folder)
    print('\n'.join(lines))


def compare_steps(args: argparse.Namespace, dtype: torch.dtype, folder: Path) -> list[str]:
    """Time, share of the peak, memory."""
    shape = PAPER | dict(depth=args.depth)
    ours, peer = (prepare(kind, shape, args.batch, folder) for kind in (Ours, Peer))
    ours(), ours()
    flops = {name: count_flops(step) for name, step in (('ours', ours), ('peer', peer))}
    rate = peak_flops(dtype)
    float_rate = rate if dtype == torch.float32 else peak_flops(torch.float32)
    times = []

    def timed() -> float:
        times.append(ours())
        return times[-1]

    lines = [print_ratio('step_time', timed, peer, args.rounds, digits=2)]
    least = flops['ours'] / rate / (flops['peer'] / float_rate)
    print(
        f'  arithmetic: ours {flops["ours"] / 1e9:,.0f} GFLOP at {rate / 1e9:,.0f} GFLOP/s ({dtype}), peer '
        f'{flops["peer"] / 1e9:,.0f} at {float_rate / 1e9:,.0f} (float32); alone it would give a ratio of {least:.2f}'
    )
    share = flops['ours'] / min(times) / rate
    lines.append(f'ratio peak_share {share:.3f}')
    print(f'  best step of ours: {share:.2f} of the {dtype} peak', flush=True)
    memory = [measure_memory(kind, args.batch, args.depth) for kind in ('Ours', 'Peer')]
    print('  peak memory: ours {:,.0f} MiB, peer {:,.0f} MiB'.format(*memory), flush=True)
    lines.append(f'ratio step_memory {memory[0] / memory[1]:.3f}')
    return lines


def growth(folder: Path) -> None:
    """Seconds of a step of either side, one thing changed at a time."""
    rows = [(f'batch {batch}', PAPER, batch) for batch in (4, 8, 16)]
    rows += [(f'{size} pixels, batch 8', PAPER | dict(size=size, patch=size // 14), 8) for size in (112, 168)]
    rows += [(f'φ IResNet-{depth}, batch 8', PAPER | dict(depth=depth), 8) for depth in (18, 100)]
    print('seconds of a step            ours    peer   ratio')
    for title, shape, batch in rows:
        seconds = []
        for kind in (Ours, Peer):
            step = prepare(kind, shape, batch, folder)
            step()
            seconds.append(min(step() for _ in range(2)))
        print(f'{title:25} {seconds[0]:7.2f} {seconds[1]:7.2f} {seconds[0] / seconds[1]:7.2f}', flush=True)


if __name__ == '__main__':
    main()
