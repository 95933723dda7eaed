"""Maps sets of faces in an embedder's space, and says how far each lies from the originals (Figure 1)."""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import facemae_mm
from facemae_mm.command_line import add_embedder_flags, embedder_flags
from facemae_mm.datasets.resumable import faces_digest
from facemae_mm.evaluation.embed_faces import FaceImages, embed_faces
from facemae_mm.evaluation.embedding_parts import embed_in_parts
from facemae_mm.evaluation.unit_rows import unit_rows
from facemae_mm.launch import refuse
from facemae_mm.open_embedder import open_embedder
from facemae_mm.randomness import keyed_seed
from facemae_mm.release.audit import read_utility
from facemae_mm.reproduction.feature_distances import ZERO, HalfSet, feature_distances
from facemae_mm.reproduction.named_faces import NamedFaces, open_named_faces
from facemae_mm.reproduction.projection import Projection
from facemae_mm.whole_file import whole_file

#: Least of people in a half of a set, and of faces.
LEAST_PEOPLE, LEAST_FACES = 10, 20

#: The originals, then colours that the colour-blind tell apart (Okabe and Ito); markers tell sets apart as well.
ORIGINAL, COLOURS = '#8a8a8a', ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vPX'

EPILOG = """\
The first set is the originals. FACES is a set of any kind (a folder of identity folders, a .zip of one, a train.rec, a
release, a masked dataset), aligned, 112 pixels or more. LINKS says which photo each face of a release was made from;
where links.csv lies in FACES.private it is found. EMBEDDER is as for tools/verify.py: take one that the making of no
set saw, or what was trained to match it comes out too near.

in DIR:
  feature_map.png, .svg   a point a face, no faces: every set before the originals' cloud, all sets together, and their
                          accuracies. One plane for all: the first two principal components of all embeddings, of length
                          1 and as many of each set. It shows where sets differ most; the distances see all dimensions
  feature_map.json        for every set, with 95 % intervals that resample people:
    frechet               Fréchet distance of Gaussians (as FID, with this embedder); too large by an amount that falls
                          with the number of faces, so it is taken over as many faces of every set: read it beside zero
    mmd2                  squared MMD, Gaussian kernel, σ the median distance between originals; unbiased, may be < 0
    zero                  both from one half of the originals' people to the other half: the distance of nothing
                          Sets are compared across the same halves, so that nobody is on both sides
    differences           of every two sets; an interval on one side of 0 says which lies nearer to the originals

examples:
  python tools/feature_map.py original=data/lfw112 facemae=work_dirs/release/facemae mae=work_dirs/release/mae \\
      --embedder weights/buffalo_l --out work_dirs/figure1 \\
      --accuracy original=verify_original.json facemae=verify_facemae.json mae=verify_mae.json
  python tools/feature_map.py real=data/casia/train.rec synthetic=data/digiface --embedder dlib --out work_dirs/map"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('sets', metavar='NAME=FACES[:LINKS]', nargs='+', help='two to eight sets; the first is the originals')
    add('--embedder', required=True, help='what embeds the faces: a pack, .onnx, checkpoint or dlib')
    add('--out', required=True, type=Path, metavar='DIR', help='folder to write; results there are replaced')
    add_embedder_flags(parser)
    wrote = 'what tools/verify.py --out, or tools/test.py --out FILE --out-item metrics, wrote'
    add('--accuracy', nargs='+', default=[], metavar='NAME=FILE', help=f'accuracies to draw beside a set: {wrote}')
    add('--images', type=int, default=6000, metavar='N', help='faces of a set at most (default: 6000)')
    most = 'faces of a person at most, so that a few with very many do not stand for all (default: 10)'
    add('--images-per-person', type=int, default=10, metavar='N', help=most)
    add('--resamples', type=int, default=1000, metavar='N', help='of people, for the intervals (default: 1000)')
    add('--seed', type=int, default=0, help='of the draw of faces and halves, and of the resamples (default: 0)')
    add('--no-flip', action='store_true', help='embed f(x) alone, in place of f(x) + f(flip x)')
    kept = 'keep embeddings there, for you alone, and go on with those that are there'
    add('--embeddings', metavar='FOLDER', help=kept)
    add('--batch-size', type=int, default=64, metavar='N', help='faces at once (default: 64)')
    add('--workers', type=int, default=0, metavar='N', help='processes that read faces (default: 0)')
    args = parser.parse_args()
    if not 2 <= len(args.sets) <= 1 + len(COLOURS):
        parser.error(f'{len(args.sets)} sets: give the originals and 1 to {len(COLOURS)} others')
    if min(args.images_per_person, args.batch_size) < 1 or args.images < 2 * LEAST_FACES or args.resamples < 40:
        parser.error(
            f'--images must be {2 * LEAST_FACES} or more, --resamples 40 or more, --images-per-person and --batch-size '
            '1 or more'
        )
    if args.workers < 0:
        parser.error('--workers must be 0 or more')
    return args


def draw_halves(sets: list[NamedFaces], args: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places of the faces that are embedded, of each set in two halves by person; as many in each half of each set.

    Raises:
        ValueError: Too few faces or people.
    """
    halves = []
    for faces in sets:
        order = faces.draw(args.images_per_person, args.seed)
        side = {name: keyed_seed('half', args.seed, name) & 1 for name in set(faces.people.tolist())}
        sides = np.array([side[name] for name in faces.people[order].tolist()])
        halves.append((order[sides == 0], order[sides == 1]))
    count = min(args.images // 2, *(len(half) for pair in halves for half in pair))
    for faces, pair in zip(sets, halves):
        people = min(len(np.unique(faces.people[half[:count]])) for half in pair)
        smallest = min(map(len, pair))
        if smallest < LEAST_FACES or people < LEAST_PEOPLE:
            raise ValueError(
                f'{faces.name} ({faces.source.path}) leaves {smallest} faces and {people} people in the smaller half '
                f'of its people, and {LEAST_FACES} and {LEAST_PEOPLE} are needed to tell anything. Give a larger set.'
            )
    return [(first[:count], second[:count]) for first, second in halves]


def embed(faces: NamedFaces, places: np.ndarray, phi: torch.nn.Module, args: argparse.Namespace) -> np.ndarray:
    """Embeddings of some faces of a set, of length 1: (n, D) float64."""
    images = FaceImages(faces.source, places)
    options = not args.no_flip, args.batch_size, args.workers, f'embed {faces.name}'
    if args.embeddings is None:
        rows, _ = embed_faces(images, phi, *options)
    else:
        made_by = f'{phi.fingerprint(phi.mean.device)} {options[:2]} {faces_digest(faces.source, places.tolist())}'
        key = hashlib.sha256(made_by.encode()).hexdigest()[:24]
        rows, _ = embed_in_parts(images, phi, args.embeddings, key, *options)
    return unit_rows(rows.astype(np.float64)).astype(np.float64)


def read_accuracies(texts: list[str], names: list[str]) -> dict[str, dict[str, list[float]]]:
    """[accuracy, low, high] by set of faces and verification set.

    Raises:
        OSError: A file cannot be read.
        ValueError: Not NAME=FILE, a name of no set, or a file without accuracies.
    """
    accuracies = {}
    for text in texts:
        name, _, file = text.partition('=')
        if name not in names or not file:
            raise ValueError(f'--accuracy {text}: it is NAME=FILE, and NAME one of {", ".join(names)}.')
        found = {
            verified: [metrics.get(key, metrics['accuracy']) for key in ('accuracy', 'accuracy_lo', 'accuracy_hi')]
            for verified, metrics in read_utility(file).items()
            if 'accuracy' in metrics
        }
        if not found:
            raise ValueError(f'{file} holds no accuracy. Give what tools/verify.py --out wrote of pairs.')
        accuracies[name] = found
    return accuracies


def style(number: int) -> dict:
    """Colour and marker of a set by its place; 0 is the originals."""
    if number == 0:
        return dict(color=ORIGINAL, marker='*')
    return dict(color=COLOURS[number - 1], marker=MARKERS[number - 1])


def draw_map(
    points: Mapping[str, np.ndarray],
    explained: np.ndarray,
    found: Mapping,
    accuracies: Mapping[str, Mapping[str, list[float]]],
    out: Path,
) -> None:
    """Draws the picture, as PNG and SVG."""
    names = list(points)
    original, others = points[names[0]], names[1:]
    verified = sorted({name for by_set in accuracies.values() for name in by_set})
    columns = min(len(others), 4)
    rows = -(-len(others) // columns)
    with rc_context({'svg.hashsalt': 'facemae', 'font.size': 9}):
        figure = Figure(figsize=(max(2.6 * columns, 7.8), 2.75 * rows + 4.6), layout='constrained')
        small, large = figure.subfigures(2, 1, height_ratios=[2.75 * rows, 4.6])
        grid = small.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        spread = np.concatenate(list(points.values()))
        middle, half = (spread.max(0) + spread.min(0)) / 2, 0.52 * np.ptp(spread, 0).max()
        limits = dict(xlim=middle[0] + half * np.array([-1, 1]), ylim=middle[1] + half * np.array([-1, 1]))
        for number, axes in enumerate(grid.flat, 1):
            if number > len(others):
                axes.axis('off')
                continue
            name = names[number]
            _cloud(axes, original, 0, name=names[0])
            _cloud(axes, points[name], number, name=name)
            axes.set(**limits)
            axes.set_title(
                f'{name}\nFréchet {found["frechet"][name][0]:.3f}, MMD² {found["mmd2"][name][0]:.4f}', size=9
            )
        small.supxlabel(f'first principal component ({explained[0]:.0%} of the variance of all sets)', size=9)
        small.supylabel(f'second ({explained[1]:.0%})', size=9)
        both = large.subplots(1, 2 if verified else 1, squeeze=False)[0]
        for number, name in enumerate(names):
            _cloud(both[0], points[name], number, size=3)
        for number, name in enumerate(names):
            both[0].scatter(
                *points[name].mean(0), s=95, **style(number), edgecolors='white', linewidths=1.2, label=name
            )
        both[0].set(**limits, xlabel='first principal component', ylabel='second principal component')
        zero = f'Fréchet {found["frechet"][ZERO][0]:.3f}, MMD² {found["mmd2"][ZERO][0]:.4f}'
        both[0].set_title(f'all sets, with their means\nzero (originals, half to half): {zero}', size=9)
        both[0].legend(fontsize=8, framealpha=0.85)
        if verified:
            _draw_accuracies(both[1], names, accuracies, verified)
        for suffix, metadata in (('png', {}), ('svg', dict(Date=None))):
            with whole_file(out / f'feature_map.{suffix}') as file:
                figure.savefig(file, format=suffix, dpi=150, metadata=metadata)


def _cloud(axes: Axes, points: np.ndarray, number: int, size: float = 8, name: str | None = None) -> None:
    alpha = 0.35 if number == 0 else 0.5
    options = style(number) | dict(marker='.')
    axes.scatter(
        *points.T, s=size, alpha=alpha, linewidths=0, rasterized=True, label=name, zorder=1 + number / 10, **options
    )


def _draw_accuracies(
    axes: Axes, names: list[str], accuracies: Mapping[str, Mapping[str, list[float]]], verified: list[str]
) -> None:
    """Accuracies with their intervals: a line of sets for each verification set."""
    shown = [name for name in names if name in accuracies]
    step = 0.8 / len(shown)
    for place, name in enumerate(shown):
        for row, kind in enumerate(verified):
            if kind in accuracies[name]:
                value, low, high = accuracies[name][kind]
                axes.errorbar(
                    value,
                    row + (place - (len(shown) - 1) / 2) * step,
                    xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                    **style(names.index(name)),
                    markersize=7,
                    capsize=2,
                    linestyle='none',
                    label=name if kind == next(k for k in verified if k in accuracies[name]) else None,
                )
    axes.set(yticks=range(len(verified)), xlabel='verification accuracy [95 %]', ylim=(len(verified) - 0.5, -0.5))
    axes.set_yticklabels(verified, parse_math=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title('a recogniser trained on each set\n(right means better)', size=9)
    axes.grid(axis='x', linewidth=0.4)
    axes.legend(fontsize=8, framealpha=0.85)


def print_table(sets: list[NamedFaces], found: Mapping, count: int) -> None:
    """The distances, as a person reads them."""
    titles = {ZERO: 'zero: half to half'} | {faces.name: faces.name for faces in sets[1:]}
    print(f'{"set":<26}{"Fréchet [95 %]":>28}{"MMD² [95 %]":>32}')
    for name, title in titles.items():
        (frechet, low, high), (mmd2, down, up) = found['frechet'][name], found['mmd2'][name]
        print(f'{title:<26}{f"{frechet:.4f} [{low:.4f}, {high:.4f}]":>28}{f"{mmd2:.5f} [{down:.5f}, {up:.5f}]":>32}')
    print(f"{count} faces on either side, of different people; Fréchet's bias at that number is about the zero's.")


def run(args: argparse.Namespace) -> None:
    """Embeds, measures, draws and writes."""
    sets = open_named_faces(args.sets)
    names = [faces.name for faces in sets]
    if ZERO in names:
        raise ValueError(
            f'A set is named {ZERO!r}, which is what the originals are from themselves. Name it otherwise.'
        )
    accuracies = read_accuracies(args.accuracy, names)
    halves = draw_halves(sets, args)
    phi = open_embedder(args.embedder, **embedder_flags(args))
    phi.to('cuda' if torch.cuda.is_available() else 'cpu')
    args.out.mkdir(parents=True, exist_ok=True)
    count, measured, rows = len(halves[0][0]), {}, {}
    for faces, pair in zip(sets, halves):
        rows[faces.name] = embed(faces, np.concatenate(pair), phi, args)
        measured[faces.name] = tuple(
            HalfSet(part, faces.people[half]) for part, half in zip(np.split(rows[faces.name], [count]), pair)
        )
    found = feature_distances(measured, names[0], args.resamples, args.seed)
    projection = Projection.fit(np.concatenate(list(rows.values())))
    points = {name: projection(part) for name, part in rows.items()}
    draw_map(points, projection.explained, found, accuracies, args.out)

    described = {
        faces.name: dict(
            matched_by=faces.by,
            faces=len(faces.source),
            people_embedded=len(np.unique(faces.people[np.concatenate(pair)])),
            mean=[round(value, 5) for value in points[faces.name].mean(0).tolist()],
        )
        for faces, pair in zip(sets, halves)
    }
    network = dict(checkpoint=args.embedder, sha256=phi.sha256, network=type(phi.backbone).__name__)
    network |= {key: [round(v, 4) for v in getattr(phi, key).flatten().tolist()] for key in ('mean', 'std')}
    settings = dict(flip=not args.no_flip, seed=args.seed, resamples=args.resamples, most=args.images_per_person)
    record = dict(
        command=shlex.join(['python', *sys.argv]),
        embedder=network | dict(channel_order=phi.channel_order, dimensions=rows[names[0]].shape[1]),
        settings=settings | dict(facemae_mm=facemae_mm.__version__, torch=torch.__version__),
        originals=names[0],
        faces_on_either_side=count,
        sets=described,
        projection=dict(method='PCA', explained=projection.explained.tolist()),
        **found,
        accuracy=accuracies,
    )
    with whole_file(args.out / 'feature_map.json', 'x') as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    print_table(sets, found, count)
    if count < 2 * rows[names[0]].shape[1]:
        print(f'{count} faces are few for {rows[names[0]].shape[1]} dimensions: trust MMD² rather than Fréchet.')
    for faces in sets[1:]:
        if faces.by == 'none':
            print(f'{faces.name} has no links: some of its people may be on both sides, and their intervals are apart.')
    print(f'{args.out / "feature_map.png"}, .svg, .json')


def main() -> None:
    """Maps."""
    args = parse_args()
    try:
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'feature_map.py: {error}')
    except KeyboardInterrupt:
        kept = f'embeddings are in {args.embeddings}' if args.embeddings else 'nothing was kept'
        refuse(f'feature_map.py: interrupted; {kept}.')


if __name__ == '__main__':
    main()
