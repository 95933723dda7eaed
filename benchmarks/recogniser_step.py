"""One training step of a recogniser, IResNet-18 at 112, against InsightFace's layer code, in float32.

Ours is what tools/train.py does with configs/arcface_r18_casia.py: forward, ArcFace over 10,572 classes, backward,
gradients of the backbone clipped, SGD; in bfloat16 where this machine multiplies it. The peer is the same step with the
layers as arcface_torch stacks them and its head as it is documented, plain torch. Each side has a process of its own,
as each would in use, and the two take turns.

Both sides are then trained alike on synthetic people for a few steps with several seeds, and recognise new images of
them: the accuracies of the sides may differ by less than those of the seeds.
"""

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS, OPTIM_WRAPPERS
from mmpretrain.structures import DataSample
from side_by_side import Worker, print_ratio, serve
from torch import Tensor, nn
from train_step import count_flops, peak_flops, set_up

from facemae_mm.config import load_config
from facemae_mm.memory import reuse_freed_memory
from facemae_mm.precision import native_bfloat16

RECIPE = Path(__file__).resolve().parents[1] / 'configs' / 'arcface_r18_casia.py'
CLASSES = 10572

#: Of the training that compares accuracies: width of the stem, embedding, people, steps, faces a step.
SHORT = dict(width=8, dims=64, people=64, steps=16, batch=32)


class Block(nn.Module):
    """arcface_torch's IBasicBlock."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out.add_(x if self.downsample is None else self.downsample(x))


class PlainIResNet18(nn.Module):
    """arcface_torch's `iresnet18`."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        channels = width
        for stage in range(4):
            planes = width << stage
            setattr(self, f'layer{stage + 1}', nn.Sequential(Block(channels, planes, 2), Block(planes, planes, 1)))
            channels = planes
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.0, inplace=True)
        self.fc = nn.Linear(channels * 49, dims)
        self.features = nn.BatchNorm1d(dims)
        self.features.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


class Peer:
    """arcface_torch's step: normalised products, margin without gradient, softmax, clipping of the backbone, SGD."""

    def __init__(self, width: int, dims: int, classes: int) -> None:
        self.backbone = PlainIResNet18(width, dims).train()
        self.weight = nn.Parameter(torch.normal(0, 0.01, (classes, dims)))
        groups = [*self.backbone.parameters(), self.weight]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(self, faces: Tensor, labels: Tensor) -> float:
        """A step on RGB uint8 faces; returns its loss."""
        embedding = self.backbone(faces.float().sub_(127.5).div_(127.5))
        logits = F.linear(F.normalize(embedding), F.normalize(self.weight)).clamp(-1, 1)
        index = torch.arange(len(labels))
        with torch.no_grad():
            target = logits[index, labels]
            logits.arccos_()
            logits[index, labels] = target.arccos() + 0.5
            logits.cos_()
        loss = F.cross_entropy(logits * 64, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), 5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)

    @torch.no_grad()
    def embed(self, faces: Tensor) -> Tensor:
        """Normalised embeddings, in eval mode."""
        embedding = self.backbone.eval()((faces.float() - 127.5) / 127.5)
        self.backbone.train()
        return F.normalize(embedding)


class Ours:
    """The recipe's model and optimiser."""

    def __init__(self, width: int, dims: int, classes: int) -> None:
        recipe = load_config(RECIPE)
        recipe.model.backbone.update(base_channels=width, embedding_dim=dims)
        recipe.model.head.update(in_channels=dims, num_classes=classes)
        recipe.model.data_preprocessor.to_rgb = False  # the faces are RGB already
        self.model = MODELS.build(recipe.model).train()
        options = dict(recipe.optim_wrapper)
        kind = dict(options.pop('optimizer'))
        optimizer = getattr(torch.optim, kind.pop('type'))(self.model.parameters(), **kind)
        self.optim_wrapper = OPTIM_WRAPPERS.build(dict(options, optimizer=optimizer))

    def step(self, faces: Tensor, labels: Tensor) -> float:
        """A step on RGB uint8 faces; returns its loss."""
        samples = [DataSample().set_gt_label(int(label)) for label in labels]
        return float(self.model.train_step(dict(inputs=faces, data_samples=samples), self.optim_wrapper)['loss'])

    @torch.no_grad()
    def embed(self, faces: Tensor) -> Tensor:
        """Normalised embeddings, in eval mode."""
        embedding = self.model.eval().backbone((faces.float() - 127.5) / 127.5)[0]
        self.model.train()
        return F.normalize(embedding)


def build(kind: str, width: int = 64, dims: int = 512, classes: int = CLASSES, seed: int = 0) -> Peer | Ours:
    """A side, with the same first weights as the other."""
    torch.manual_seed(seed)
    peer = Peer(width, dims, classes)
    for module in peer.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.1)
    if kind == 'Peer':
        return peer
    ours = Ours(width, dims, classes)
    ours.model.backbone.load_state_dict(peer.backbone.state_dict(), strict=True)
    with torch.no_grad():
        ours.model.head.weight.copy_(peer.weight)
    return ours


def serve_steps(kind: str, batch: int) -> None:
    """A side in a process of its own; a round is a step, its value the seconds."""
    set_up()
    if kind == 'Ours':
        reuse_freed_memory()  # as tools/train.py does where there is room
    side = build(kind)
    faces = torch.randint(0, 256, (batch, 3, 112, 112), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch,))

    def step() -> float:
        start = time.perf_counter()
        side.step(faces, labels)
        return time.perf_counter() - start

    serve(step)


def people(count: int, images: int, seed: int) -> Tensor:
    """Synthetic people, each a smooth pattern under noise and shifted light: (count, images, 3, 112, 112) uint8."""
    patterns = np.random.default_rng(1).normal(128, 40, (count, 8, 8, 3))
    rng = np.random.default_rng(seed)
    faces = np.empty((count, images, 112, 112, 3), np.uint8)
    for person in range(count):
        for image in range(images):
            noisy = patterns[person] + rng.normal(0, 45, (8, 8, 3)) + rng.normal(0, 20, 3)
            faces[person, image] = cv2.resize(noisy, (112, 112), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    return torch.from_numpy(faces).permute(0, 1, 4, 2, 3).contiguous()


def accuracy(kind: str, seed: int, steps: int) -> tuple[float, float]:
    """Of new images of the people trained on, by the nearest mean embedding; and the mean loss of the last steps."""
    side = build(kind, SHORT['width'], SHORT['dims'], SHORT['people'], seed)
    shown, new = people(SHORT['people'], 12, 2), people(SHORT['people'], 8, 3)
    rng, losses = np.random.default_rng(seed), []
    for _ in range(steps):
        chosen = rng.integers(0, (SHORT['people'], 12), (SHORT['batch'], 2))
        labels = torch.from_numpy(chosen[:, 0])
        losses.append(side.step(shown[labels, torch.from_numpy(chosen[:, 1])], labels))
    means = F.normalize(side.embed(shown.flatten(0, 1)).unflatten(0, shown.shape[:2]).mean(1))
    found = (side.embed(new.flatten(0, 1)) @ means.T).argmax(1).unflatten(0, new.shape[:2])
    return float((found == torch.arange(SHORT['people'])[:, None]).float().mean()), statistics.mean(losses[-10:])


def compare_accuracy(seeds: int = 4, steps: int = SHORT['steps']) -> None:
    """Prints what both sides reach with each seed."""
    print(f'accuracy after {steps} steps of {SHORT["batch"]} faces, {SHORT["people"]} synthetic people, by seed:')
    reached = {}
    for kind in ('Ours', 'Peer'):
        results = [accuracy(kind, seed, steps) for seed in range(seeds)]
        reached[kind] = [value for value, _ in results]
        print(f'  {kind}: ' + ', '.join(f'{value:.3f} (loss {loss:.3f})' for value, loss in results), flush=True)
    difference = statistics.mean(a - b for a, b in zip(reached['Ours'], reached['Peer'], strict=True))
    print(
        f'  ours − peer {difference:+.4f} on average; standard deviation over seeds, of the peer: '
        f'{statistics.stdev(reached["Peer"]):.4f}'
    )


def compare_steps(rounds: int = 5, batch: int = 32) -> list[str]:
    """Times both sides in turn and prints memory and what arithmetic alone would take.

    Args:
        rounds: Of each side, at least 3.
        batch: Faces a step.

    Returns:
        The line ``ratio recogniser_step_time VALUE``.
    """
    workers = {kind: Worker(__file__, '--serve', kind, '--batch', batch) for kind in ('Ours', 'Peer')}
    lines = [print_ratio('recogniser_step_time', workers['Ours'], workers['Peer'], rounds, digits=2)]
    print('  peak memory: ours {:,.0f} MiB, peer {:,.0f} MiB'.format(*(worker.close() for worker in workers.values())))
    side, faces = build('Peer'), torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    flops = count_flops(lambda: side.step(faces, torch.arange(2))) * batch / 2
    rate = peak_flops(torch.float32)
    print(
        f'  arithmetic: {flops / 1e9:,.0f} GFLOP, {flops / rate:.2f} s at the {rate / 1e9:,.0f} GFLOP/s of a float32 '
        'product; a convolution may be faster'
    )
    return lines


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=32, help='faces a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='of each side, at least 3 (default: %(default)s)')
    parser.add_argument(
        '--seeds', type=int, default=4, help='of the short trainings, at least 2 (default: %(default)s)'
    )
    parser.add_argument('--steps', type=int, default=SHORT['steps'], help='of each of them (default: %(default)s)')
    parser.add_argument('--serve', choices=['Ours', 'Peer'], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_steps(args.serve, args.batch)
    set_up()
    native = native_bfloat16('cpu')
    print(f'{torch.get_num_threads()} threads; this processor multiplies {"" if native else "no "}bfloat16')
    lines = compare_steps(args.rounds, args.batch)
    compare_accuracy(max(args.seeds, 2), args.steps)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
