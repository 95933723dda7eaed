"""An export end to end, against the model's forward pass alone and against the plain loop that a user would write.

Ours is `Runner.test()` with configs/export_casia.py (ViT-B/16 at 224), its weights loaded already: from opening the set
of faces to the complete release, read, mask, reconstruct, encode, write, merge, manifest. It takes bfloat16 where this
machine multiplies it.

`rate_vs_forward`: the peer is `FaceMAE.reconstruct` on batches that lie prepared in memory, in the precision of the
export, with torch's own number of threads, at the batch size that proves best. `rate_vs_loop`: the peer is MMPretrain's
MAE in float32 on the same weights, which draws its masks itself: cv2.imread, cv2.resize to 224, the network by that
batch size, cv2.imwrite one by one. Each side has a process of its own, and they take turns. `memory_growth` is the peak
of an export of four times as many faces by a very small network over that of one time, each in a fresh process that
also reads the faces itself.

Weights are random unless --checkpoint names some; the last layer of the decoder is then made smooth within a patch, so
that what is released compresses as a picture does and not as noise.
"""

import argparse
import contextlib
import gc
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from side_by_side import Worker, peak_mib, print_ratio, print_ratios, serve
from torch.utils.data import default_collate
from train_step import count_flops, peak_flops, set_up

from facemae_mm.config import load_config
from facemae_mm.datasets import open_faces
from facemae_mm.datasets.recordio import RecordWriter
from facemae_mm.engine.chunk_test_loop import CPU_CHUNK, GPU_CHUNK
from facemae_mm.precision import native_bfloat16

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'

#: A network of the paper's grid that costs next to nothing, and faces read by the process itself.
LEAST = {
    'model.backbone.arch': dict(_delete_=True, embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=32),
    'model.neck.embed_dim': 32,
    'model.neck.decoder_embed_dim': 16,
    'model.neck.decoder_depth': 1,
    'model.neck.decoder_num_heads': 2,
    'test_dataloader.num_workers': 0,
}

#: Faces of one identity.
IMAGES = 8

#: Faces at once, of which the peers take what is best.
BATCHES = (8, 16, 32, 64)

#: Of the plan: WebFace42M.
PLANNED = 42_000_000


class Clock(Hook):
    """When the last face was reconstructed."""

    priority = 'VERY_HIGH'
    computed = 0.0

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.computed = time.perf_counter()


class Export:
    """Exports a set of faces by a recipe, each time anew.

    Args:
        recipe: Its name.
        faces: The set.
        weights: Checkpoint.
        folder: Where releases may come and go.
        options: As behind `--cfg-options`.

    Attributes:
        release: The last one.
        merging: Seconds from its last reconstructed face to its name.
    """

    def __init__(self, recipe: str, faces: Path, weights: Path, folder: Path, options: dict | None = None) -> None:
        self.faces, self.folder, self.count = faces, folder, 0
        self.settings = recipe, weights, options or {}
        self.images = len(open_faces(faces))

    def __call__(self) -> float:
        """Faces a second."""
        if self.count:
            shutil.rmtree(self.release)
            gc.collect()  # the last round's model
        self.count += 1
        self.release = self.folder / f'release_{self.count}'
        recipe, weights, options = self.settings
        cfg = open_recipe(recipe, options, deploy_faces=str(self.faces), release_dir=str(self.release))
        if 'mask_secret' in cfg:
            cfg.test_dataloader.dataset.pipeline[1].secret = str(self.folder / 'secret')
        cfg.update(load_from=str(weights), work_dir=str(self.folder / 'logs'), log_level='ERROR')
        cfg.experiment_name = f'{recipe} {self.count}'
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runner, clock = Runner.from_cfg(cfg), Clock()
            runner.register_hook(clock)
            runner.load_or_resume()
            start = time.perf_counter()
            runner.test()
        end = time.perf_counter()
        self.merging = end - clock.computed
        return self.images / (end - start)


class Forward:
    """The model of a recipe on prepared faces, a whole number of batches.

    Args:
        recipe: Its name.
        faces: The set.
        weights: Checkpoint.
        images: How many faces lie in memory.
        batch: Faces at once.
    """

    def __init__(self, recipe: str, faces: Path, weights: Path, images: int, batch: int = 64) -> None:
        cfg = open_recipe(recipe, {}, deploy_faces=str(faces))
        self.batch = batch
        self.model = MODELS.build(cfg.model).eval()
        self.model.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
        pipeline = cfg.test_dataloader.dataset.pipeline
        pipeline[1] = dict(pipeline[1], secret=None, seed=0)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        samples = stack_faces(dataset, images)
        data = self.model.data_preprocessor(samples)
        self.inputs, self.masks = data['inputs'], self.model.stack_masks(data['data_samples'])

    @torch.no_grad()
    def __call__(self, most: int | None = None) -> float:
        """Faces a second."""
        count = min(most or len(self.inputs), len(self.inputs))
        count = max(count - count % self.batch, self.batch)
        start = time.perf_counter()
        with torch.autocast('cpu', torch.bfloat16, enabled=native_bfloat16('cpu')):
            for first in range(0, count, self.batch):
                rows = slice(first, first + self.batch)
                self.model.reconstruct(self.inputs[rows], self.masks[rows])
        return count / (time.perf_counter() - start)


def stack_faces(dataset: torch.utils.data.Dataset, images: int) -> dict:
    """A batch of faces of a dataset, from the first on, again and again where it has fewer."""
    samples = [dataset[number % len(dataset)] for number in range(images)]
    return dict(
        inputs=default_collate([sample['inputs'] for sample in samples]),
        data_samples=[sample['data_samples'] for sample in samples],
    )


class Loop:
    """MMPretrain's MAE over image files, each written as it comes.

    Args:
        faces: Folder of identity folders.
        weights: Checkpoint.
        folder: Where the written faces may come and go.
        batch: Faces at once.
        images: Of the set.
    """

    def __init__(self, faces: Path, weights: Path, folder: Path, batch: int, images: int) -> None:
        model = open_recipe('export_casia', {}).model
        model.pop('output_size')
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        model.type = 'MAE'
        model.data_preprocessor = dict(type='SelfSupDataPreprocessor', mean=mean, std=std, to_rgb=True)
        model.head.loss = dict(type='PixelReconstructionLoss', criterion='L2')
        self.model = MODELS.build(model).eval()
        self.model.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
        self.paths = sorted(path for path in faces.glob('*/*'))[:images]
        self.out, self.batch = folder / 'loop', batch

    @torch.no_grad()
    def __call__(self) -> float:
        """Faces a second."""
        shutil.rmtree(self.out, ignore_errors=True)
        start = time.perf_counter()
        for first in range(0, len(self.paths), self.batch):
            paths = self.paths[first : first + self.batch]
            faces = np.stack([cv2.resize(cv2.imread(str(path)), (224, 224)) for path in paths])
            batch = dict(inputs=torch.from_numpy(faces).permute(0, 3, 1, 2), data_samples=[])
            inputs = self.model.data_preprocessor(batch)['inputs']
            latent, _, ids_restore = self.model.backbone(inputs)
            images = self.model.head.unpatchify(self.model.neck(latent, ids_restore))
            images = images * self.model.data_preprocessor.std + self.model.data_preprocessor.mean
            images = F.interpolate(images, size=112, mode='bilinear', align_corners=False)
            images = images.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(-1).numpy()
            for path, image in zip(paths, images, strict=True):
                out = self.out / path.parent.name
                out.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(out / f'{path.stem}.png'), image)
        return len(self.paths) / (time.perf_counter() - start)


def open_recipe(name: str, options: dict, **values: str) -> Config:
    """A recipe of `configs/`, with its variables set."""
    return load_config(CONFIGS / f'{name}.py', values | options)


def synthetic_faces(count: int) -> list[bytes]:
    """Smooth 112×112 pictures as JPEG."""
    rng = np.random.default_rng(0)
    faces = []
    for _ in range(count):
        face = cv2.resize(rng.normal(128, 50, (7, 7, 3)), (112, 112), interpolation=cv2.INTER_CUBIC)
        faces.append(cv2.imencode('.jpg', face.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    return [face.tobytes() for face in faces]


def write_folders(folder: Path, faces: Sequence[bytes]) -> Path:
    """Encoded faces in identity folders."""
    for number, face in enumerate(faces):
        path = folder / f'{number // IMAGES:06d}'
        path.mkdir(parents=True, exist_ok=True)
        extension = '.png' if face.startswith(b'\x89PNG') else '.jpg'
        (path / f'{number % IMAGES}{extension}').write_bytes(face)
    return folder


def write_records(path: Path, faces: Sequence[bytes], count: int) -> Path:
    """As many faces, the given ones again and again, as `train.rec`."""
    with RecordWriter(path) as writer:
        for number in range(count):
            writer.write(number // IMAGES, faces[number % len(faces)])
    return path


def save_weights(path: Path, recipe: str, options: dict | None = None) -> Path:
    """Random weights of a recipe's model."""
    torch.manual_seed(0)
    model = MODELS.build(open_recipe(recipe, options or {}).model)
    model.init_weights()
    weight = model.neck.decoder_pred.weight.data  # (p · p · 3, D)
    side = model.head.patch_size
    grid = weight.view(side, side, 3, -1).permute(2, 3, 0, 1)
    smooth = F.interpolate(F.avg_pool2d(grid, side // 4) * (side // 4), size=side, mode='bicubic')
    weight.copy_(smooth.permute(2, 3, 0, 1).reshape(weight.shape))
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def memory(faces: Path, weights: Path, folder: Path) -> float:
    """Peak of an export by the least network in a process of its own, MiB."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import export
export.set_up()
export.Export('export_casia', *map(Path, sys.argv[1:]), export.LEAST)()
"""
    return peak_mib(code, faces, weights, folder)


def probe_forward(faces: Path, weights: Path) -> tuple[int, float]:
    """The batch size at which the model is fastest, and FLOPs of one face."""
    forward = Forward('export_casia', faces, weights, max(BATCHES))
    rates = {}
    for forward.batch in BATCHES:
        forward(forward.batch)
        rates[forward.batch] = forward()
    shown = ', '.join(f'{rate:.2f} by {batch}' for batch, rate in rates.items())
    print(f'forward pass alone, faces a second: {shown}', flush=True)
    forward.batch = 1
    return max(rates, key=rates.get), count_flops(lambda: forward(1))


def compare_rates(args: argparse.Namespace, faces: Path, weights: Path, folder: Path) -> tuple[list[str], float]:
    """The rates of the three sides, and how far the export is from what arithmetic allows; and its rate."""
    batch, flops = probe_forward(faces, weights)
    workers = {
        kind: Worker(__file__, '--serve', kind, faces, weights, folder, args.peer_images, batch)
        for kind in ('export', 'forward', 'loop')
    }
    rates = []

    def export() -> float:
        rates.append(workers['export']())
        return rates[-1]

    peers = dict(rate_vs_forward=workers['forward'], rate_vs_loop=workers['loop'])
    lines = print_ratios(export, peers, args.rounds, digits=2)
    rate = float(np.median(rates[1:]))
    print(
        '  peak memory: ours {:,.0f} MiB and its readers, forward {:,.0f} MiB, loop {:,.0f} MiB'.format(
            *(worker.close() for worker in workers.values())
        )
    )
    dtype = torch.bfloat16 if native_bfloat16('cpu') else torch.float32
    peak = peak_flops(dtype)
    print(
        f'  arithmetic: {flops / 1e9:.2f} GFLOP a face, {peak / flops:.2f} faces a second at the {peak / 1e9:,.0f} '
        f'GFLOP/s of a product of {dtype}; the export reaches {rate * flops / peak:.2f} of that',
        flush=True,
    )
    return lines, rate


def compare_small(rounds: int, faces: Path, folder: Path) -> float:
    """Prints the rate of the demo's network of 112 pixels against its forward pass; seconds to merge a face."""
    weights = save_weights(folder / 'small.pth', 'demo_export')
    export = Export('demo_export', faces, weights, folder)
    forward = Forward('demo_export', faces, weights, 512, 64)
    print_ratio('  the network of the demo (112 pixels) against its forward pass', export, forward, rounds, digits=0)
    return export.merging / export.images


def compare_memory(count: int, pictures: Sequence[bytes], folder: Path) -> str:
    """The line of memory at four times as many faces."""
    weights = save_weights(folder / 'least.pth', 'export_casia', LEAST)
    peaks = []
    for name, faces in (('once', count), ('four', 4 * count)):
        (folder / name).mkdir()
        peaks.append(memory(write_records(folder / name / 'train.rec', pictures, faces), weights, folder / name))
    print(
        f'memory_growth: {peaks[0]:,.0f} MiB for {count:,} faces, {peaks[1]:,.0f} MiB for {4 * count:,}',
        flush=True,
    )
    return f'ratio memory_growth {peaks[1] / peaks[0]:.3f}'


def bytes_a_face(pictures: Sequence[np.ndarray]) -> list[float]:
    """Mean size as PNG, and as JPEG of quality 95."""
    options: list[tuple[str, list[int]]] = [('.png', []), ('.jpg', [cv2.IMWRITE_JPEG_QUALITY, 95])]
    return [float(np.mean([len(cv2.imencode(kind, face, how)[1]) for face in pictures])) for kind, how in options]


def print_plan(rate: float, merging: float, released: Sequence[Path], sources: Sequence[bytes]) -> None:
    """What an export of 42 million faces would take."""
    chunk = GPU_CHUNK if torch.cuda.is_available() else CPU_CHUNK
    hours, merge = PLANNED / rate / 3600, PLANNED * merging / 3600
    sizes = bytes_a_face([cv2.imread(str(path)) for path in released])
    known = bytes_a_face([cv2.imdecode(np.frombuffer(face, np.uint8), cv2.IMREAD_COLOR) for face in sources])
    print(f'\nPlan for {PLANNED:,} faces, reckoned from the numbers above and not run:')
    print(f'  time: {hours:,.0f} hours here; {PLANNED / 3600:,.0f} / (N · R) hours on N devices of R faces a second')
    print(f'  and merging, by one process whatever N: at most {merge:.1f} hours ({merging * 1e6:.0f} µs a face here)')
    for kind, size, source in zip(('PNG', 'JPEG 95'), sizes, known, strict=True):
        print(
            f'  disk, {kind}: {PLANNED * size / 1e9:,.0f} GB at {size:,.0f} bytes a face released here (the source '
            f'faces would take {source:,.0f}), twice that while it is merged'
        )
    print(
        f'  files: {PLANNED:,} in folders, or three a shard in records; {-(-PLANNED // chunk):,} chunk files of '
        f'{chunk} faces until it is merged'
    )


def serve_side(kind: str, faces: str, weights: str, folder: str, images: str, batch: str) -> None:
    """One of the three sides in a process of its own."""
    make: dict[str, Callable[[], Callable[[], float]]] = dict(
        export=lambda: Export('export_casia', Path(faces), Path(weights), Path(folder)),
        forward=lambda: Forward('export_casia', Path(faces), Path(weights), int(images), int(batch)),
        loop=lambda: Loop(Path(faces), Path(weights), Path(folder), int(batch), int(images)),
    )
    serve(make[kind]())


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--images', type=int, default=256, help='faces in an export, multiples of 128 fill two cores (%(default)s)')
    add('--peer-images', type=int, default=128, help='faces in a round of each peer (%(default)s)')
    add('--small-images', type=int, default=1024, help="faces in an export by the demo's network (%(default)s)")
    add('--memory-images', type=int, default=2000, help='faces of memory_growth, and four times these (%(default)s)')
    add('--rounds', type=int, default=3, help='of each side, at least 3 (%(default)s)')
    add('--faces', help='a set of aligned 112×112 faces, of which the first are taken, in place of synthetic ones')
    add('--checkpoint', help='weights of configs/export_casia.py, in place of random ones')
    add('--full', action='store_true', help='1,024 faces an export, 512 a round of each peer, memory at 20,000')
    add('--serve', nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    set_up()
    if args.serve:
        return serve_side(*args.serve)
    if args.full:
        args.images, args.peer_images, args.memory_images = 1024, 512, 20_000
    native = native_bfloat16('cpu')
    print(f'{torch.get_num_threads()} threads; this processor multiplies {"" if native else "no "}bfloat16')
    with tempfile.TemporaryDirectory(prefix='export-') as name:
        folder = Path(name)
        if args.faces:
            source = open_faces(args.faces)
            pictures = [source.read(number) for number in range(min(args.images, len(source)))]
        else:
            pictures = synthetic_faces(args.images)
        faces = write_folders(folder / 'faces', pictures)
        weights = Path(args.checkpoint) if args.checkpoint else save_weights(folder / 'model.pth', 'export_casia')
        lines, rate = compare_rates(args, faces, weights, folder)
        (folder / 'many').mkdir()
        many = write_records(folder / 'many' / 'train.rec', pictures, args.small_images)
        merging = compare_small(args.rounds, many, folder / 'many')
        lines.append(compare_memory(args.memory_images, pictures, folder))
        print_plan(rate, merging, sorted(folder.glob('release_*/*/*.png')), pictures)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
