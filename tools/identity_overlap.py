"""Lists the identities that two sets of faces are likely to share: training and deployment, or training and test."""

import argparse
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from facemae_mm.alignment import ARCFACE_SIZE
from facemae_mm.command_line import add_embedder_flags, embedder_flags
from facemae_mm.datasets import open_faces
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.resumable import faces_digest
from facemae_mm.evaluation.embedding_metric import check_embeddings
from facemae_mm.evaluation.identity_overlap import IdentityPairs, closest_pairs, identity_templates, pairs_above
from facemae_mm.launch import refuse
from facemae_mm.models.embedders import FaceEmbedder
from facemae_mm.open_embedder import open_embedder

#: Images in one file of the cache: what an interrupted run can lose.
PART = 8192

#: Pairs on the contact sheet, and faces of each side.
SHEET_PAIRS, SHEET_FACES = 24, 3

EPILOG = """\
in DIR, which only you can open, as it names people:
  overlap.csv             the pairs, surest first: similarity is the cosine of their mean embeddings, expected_false how
                          many pairs of different people chance puts at least as close, of all compared (0.01 is sure)
  overlap.json            counts, settings, φ, and what chance gives
  overlap.png             pairs found against pairs by chance, without faces
  identities_to_drop.txt  the listed identities of B; a recipe keeps the others by subset=dict(identities=[…])
  pairs.png               with --sheet: the surest and the least sure pairs. Real faces: not for publication
  embeddings/             the cache: biometric data. Delete it when you are done

examples:
  python tools/identity_overlap.py data/lfw112 data/casia/train.rec --out work_dirs/overlap
  python tools/identity_overlap.py data/agedb_30.bin data/casia/train.rec --out work_dirs/overlap \\
      --phi weights/arcface_r50.pth --false-matches 10

The list shows an overlap, never that there is none: of people that two halves of LFW share, the default finds two of
three (dlib's φ); an ArcFace network found nine of ten. What chance gives is learnt from identities within each set.
People under two names come on top, and siblings may; where one set has single images and the other many of each person,
twice as many false matches as expected were seen. A .bin knows no identities: each of its images counts as one, named
by its number, and chance is learnt from the other set."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('a', metavar='A', help='aligned faces: folder of identity folders, .zip of one, train.rec or verification .bin')
    add('b', metavar='B', help='another set, from which identities can be dropped')
    add('--out', required=True, metavar='DIR', help='folder to write: a new one, or that of an earlier run')
    phi = "dlib, an InsightFace pack, an .onnx or a checkpoint, as tools/verify.py's EMBEDDER (default: dlib)"
    add('--phi', default='dlib', metavar='EMBEDDER', help=f'what embeds the faces: {phi}')
    add_embedder_flags(parser)
    add('--no-flip', action='store_true', help='do not add the embedding of the mirrored face: faster, finds less')
    limit = parser.add_mutually_exclusive_group()
    false = 'how many pairs of different people are expected in the list (default: 1)'
    limit.add_argument('--false-matches', type=float, default=1.0, metavar='F', help=false)
    limit.add_argument('--threshold', type=float, metavar='T', help='least cosine instead; nothing is expected then')
    most = 'images of an identity to embed, drawn with a fixed seed; 0 for all (default: 20)'
    add('--max-images-per-identity', type=int, default=20, metavar='N', help=most)
    error = 'an image that cannot be read or embedded ends the run, or is left out and counted (default: raise)'
    add('--on-error', choices=['raise', 'skip'], default='raise', help=error)
    add('--sheet', action='store_true', help='draw pairs.png, with real faces: not for publication')
    add('--workers', type=int, default=0, help='processes that read images (default: 0)')
    args = parser.parse_args()
    if not args.false_matches > 0 or args.workers < 0 or args.max_images_per_identity < 0:
        parser.error('--false-matches must be above 0, --workers and --max-images-per-identity at least 0')
    return args


class Faces(Dataset):
    """The images of a set that are embedded, at most `most` of an identity, 0 for all.

    Attributes:
        names: Of the identities; keys of the images where the set knows none.
        indices: Places of the images in the source, (N,).
        labels: Their identities, (N,).
    """

    def __init__(self, path: str, most: int) -> None:
        self.source = open_faces(path)
        self.labelled = bool(self.source.identities)
        self.names = self.source.identities if self.labelled else self.source.keys
        labels = self.source.labels if self.labelled else np.arange(len(self.source))
        order = np.random.default_rng(0).permutation(len(labels))
        order = order[np.argsort(labels[order], kind='stable')]
        rank = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])  # in its identity
        self.indices = np.sort(order[rank < most] if most else order)
        self.labels = labels[self.indices]

    def leave_out(self, bad: np.ndarray) -> None:
        """Forgets images (N,) bool, and identities without another."""
        self.indices = self.indices[~bad]
        present, self.labels = np.unique(self.labels[~bad], return_inverse=True)
        self.names = [self.names[label] for label in present]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, i: int) -> str:
        """For messages."""
        return f'{self.source.path}:{self.source.keys[int(self.indices[i])]}'

    def __getitem__(self, i: int) -> tuple[torch.Tensor | None, str]:
        """Face (3, 112, 112) uint8 RGB, or None and why."""
        try:
            image = decode_face(self.source.read(int(self.indices[i])), self.name(i))
        except (OSError, ValueError) as error:
            return None, str(error)
        if image.shape[:2] != (ARCFACE_SIZE, ARCFACE_SIZE):
            size = f'{image.shape[1]}×{image.shape[0]} pixels, not {ARCFACE_SIZE}×{ARCFACE_SIZE}'
            return None, f'{self.name(i)} is {size}. Align the faces first: tools/prepare_faces.py does it.'
        return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1), ''


def embed_part(faces: Faces, part: range, phi: FaceEmbedder, args: argparse.Namespace, bar: tqdm) -> np.ndarray:
    """Embeddings (n, D) of some images; NaN where one was left out."""
    rows = []
    for batch in DataLoader(Subset(faces, part), 64, num_workers=args.workers, collate_fn=list):
        unread = np.array([face is None for face, _ in batch])
        if unread.any() and args.on_error == 'raise':
            raise ValueError(f'{batch[unread.argmax()][1]} Or leave it out: --on-error skip.')
        blank = torch.zeros(3, ARCFACE_SIZE, ARCFACE_SIZE, dtype=torch.uint8)
        stack = torch.stack([blank if face is None else face for face, _ in batch]).to(phi.mean.device)
        with torch.inference_mode():
            embeddings = phi(stack)[0] if args.no_flip else phi(stack)[0] + phi(stack.flip(-1))[0]
        embeddings = embeddings.cpu().numpy()
        if args.on_error == 'raise':
            check_embeddings(embeddings, [faces.name(part[len(rows) + k]) for k in range(len(batch))])
        embeddings[unread | ~np.isfinite(embeddings).all(1) | ~embeddings.any(1)] = np.nan
        rows.extend(embeddings)
        bar.update(len(batch))
    return np.stack(rows)


def embed(faces: Faces, phi: FaceEmbedder, args: argparse.Namespace, cache: Path) -> np.ndarray:
    """Embeddings (N, D) of a set, from the cache as far as they are there."""
    path = faces.source.path.resolve()
    made_by = [phi.fingerprint(phi.mean.device), args.no_flip, faces_digest(faces.source, faces.indices.tolist())]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    parts = []
    with tqdm(total=len(faces), desc=f'embed {path.name}', unit='image', mininterval=1) as bar:
        for start in range(0, len(faces), PART):
            file = cache / f'{digest.hexdigest()[:16]}-{start:09d}.npy'
            embeddings = np.load(file) if file.is_file() else None
            if embeddings is None or (args.on_error == 'raise' and np.isnan(embeddings).any()):
                embeddings = embed_part(faces, range(start, min(start + PART, len(faces))), phi, args, bar)
                write(file, lambda draft, embeddings=embeddings: np.save(draft, embeddings))
            else:
                bar.update(len(embeddings))
            parts.append(embeddings)
    return np.concatenate(parts)


def write(path: Path, save: Callable[[io.BufferedIOBase], object]) -> None:
    """Writes a file that appears under its name when it is complete."""
    draft = path.with_name(f'{path.name}.tmp')
    with draft.open('wb') as file:
        save(file)
    draft.replace(path)


def draw_curve(pairs: IdentityPairs, compared: int, limit: float, path: Path) -> None:
    """How many pairs were found against how many chance gives; by cosine where that is unknown."""
    figure = Figure(figsize=(6.4, 4.6), layout='constrained')
    axes = figure.subplots()
    axes.set(yscale='log', ylabel='pairs at least as close')
    number = np.arange(1, len(pairs.a) + 1)
    if pairs.tail is None:
        axes.plot(pairs.similarity, number, label='pairs of A and B')
        axes.set(xlabel='cosine')
    else:
        low, worth = min(limit, 1) / 1000, compared / pairs.tail.seen
        high = pairs.tail.count * worth
        within = worth * np.arange(1, pairs.tail.count + 1)
        axes.plot(np.maximum(pairs.expected_false, low), number, linewidth=2, label='pairs of A and B')
        axes.plot(np.maximum(pairs.impostors, low), within, label='pairs within A and within B, scaled')
        axes.plot([low, high], [low, high], 'k--', linewidth=1, label='chance, as fitted')
        axes.axvline(limit, color='k', linestyle=':', label='the list ends here')
        axes.set(xscale='log', xlim=(low, high), ylim=(min(limit, 1) / 10, None))
        axes.set(xlabel='pairs of different people expected to be at least as close')
    axes.legend()
    write(path, lambda file: figure.savefig(file, format='png', dpi=130))


def draw_sheet(pairs: IdentityPairs, listed: int, sets: list[Faces], path: Path) -> None:
    """The surest and the least sure of the listed pairs, faces of A left and of B right."""
    shown = [m for m in range(listed) if m < SHEET_PAIRS // 2 or m >= listed - SHEET_PAIRS // 2]
    figure = Figure(figsize=(9, 1.1 * max(len(shown), 1) + 0.5), layout='constrained')
    figure.suptitle(
        f'Real people: not for publication. A left, B right; the surest and the least sure of {listed}', fontsize=9
    )
    ratios = [1] * SHEET_FACES + [2.5] + [1] * SHEET_FACES
    grid = figure.subplots(max(len(shown), 1), len(ratios), squeeze=False, gridspec_kw=dict(width_ratios=ratios))
    for axes in grid.flat:
        axes.axis('off')
    for row, m in zip(grid, shown):
        text = [f'cosine {pairs.similarity[m]:.3f}']
        if pairs.tail:
            text.append(f'expected false {pairs.expected_false[m]:.2g}')
        for side, (faces, identity) in enumerate(zip(sets, (pairs.a[m], pairs.b[m]))):
            text.insert(side * len(text), f'{"AB"[side]}: {faces.names[identity]:.28}')
            images = np.flatnonzero(faces.labels == identity)[:SHEET_FACES]
            for axes, face in zip(row[side * (SHEET_FACES + 1) :], (faces[int(i)][0] for i in images)):
                if face is not None:
                    axes.imshow(face.permute(1, 2, 0).numpy())
        row[SHEET_FACES].text(0.5, 0.5, '\n'.join(text), ha='center', va='center', fontsize=7.5, parse_math=False)
    write(path, lambda file: figure.savefig(file, format='png', dpi=110))


def run(args: argparse.Namespace) -> None:
    """Embeds, compares and writes."""
    out = Path(args.out)
    cache = out / 'embeddings'
    if out.exists() and not cache.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} exists and was not written by this tool. Give a new folder to --out.')
    sets = [Faces(path, args.max_images_per_identity) for path in (args.a, args.b)]
    phi = open_embedder(args.phi, **embedder_flags(args))
    phi.to('cuda' if torch.cuda.is_available() else 'cpu')
    cache.mkdir(parents=True, exist_ok=True)
    os.chmod(out, 0o700)

    templates, report = [], {}
    for letter, faces in zip('AB', sets):
        embeddings = embed(faces, phi, args, cache)
        bad = np.isnan(embeddings[:, 0])
        if bad.all():
            raise ValueError(f'{faces.source.path}: no image could be embedded. Check the set and φ.')
        faces.leave_out(bad)
        templates.append(identity_templates(embeddings[~bad], faces.labels))
        numbers = dict(identities=len(faces.names), images=len(faces.source), embedded=len(faces))
        report[letter] = dict(path=str(faces.source.path), **numbers, skipped=int(bad.sum()))
    compared = len(templates[0]) * len(templates[1])
    if args.threshold is not None:
        pairs, limit = pairs_above(*templates, args.threshold), args.threshold
        listed = len(pairs.a)
    else:
        pairs, limit = closest_pairs(*templates, [faces.labelled for faces in sets]), args.false_matches
        most = pairs.tail.count * compared / pairs.tail.seen
        if limit > most:
            raise ValueError(f'--false-matches {limit:g}: chance is known up to {most:.3g}. Lower it, or give T.')
        listed = int(np.searchsorted(pairs.expected_false, limit, side='right'))

    a, b = sets
    counts = [np.bincount(faces.labels) for faces in sets]
    rows = [['identity_a', 'identity_b', 'similarity', 'expected_false', 'images_a', 'images_b']]
    for m, (i, j) in enumerate(zip(pairs.a[:listed], pairs.b[:listed])):
        expected = f'{pairs.expected_false[m]:.3g}' if pairs.tail else ''
        rows.append([a.names[i], b.names[j], f'{pairs.similarity[m]:.4f}', expected, counts[0][i], counts[1][j]])
    table = io.StringIO(newline='')
    csv.writer(table, lineterminator='\n').writerows(rows)
    drop = sorted({b.names[j] for j in pairs.b[:listed]})
    report |= dict(identity_pairs=compared, listed=listed, identities_to_drop=len(drop), phi_sha256=phi.sha256)
    report |= dict(chance=vars(pairs.tail) if pairs.tail else None, settings=vars(args))
    write(out / 'overlap.csv', lambda file: file.write(table.getvalue().encode()))
    write(out / 'overlap.json', lambda file: file.write(json.dumps(report, indent=1, ensure_ascii=False).encode()))
    write(out / 'identities_to_drop.txt', lambda file: file.write(''.join(f'{name}\n' for name in drop).encode()))
    draw_curve(pairs, compared, limit, out / 'overlap.png')
    (out / 'pairs.png').unlink(missing_ok=True)
    if args.sheet:
        draw_sheet(pairs, listed, sets, out / 'pairs.png')

    line = '{path}: {identities:,} identities; {embedded:,} of {images:,} images embedded, {skipped} skipped'
    print(f'A: {line.format(**report["A"])}\nB: {line.format(**report["B"])}')
    chance = f', {limit:g} of them expected by chance' if pairs.tail else ''
    print(f'{listed} of {compared:,} pairs look like one person{chance}. Identities of B to drop: {len(drop)}.')
    print(f'{out / "overlap.csv"}, {out / "overlap.png"}: look at pairs before you act.')


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'identity_overlap.py: {error}')
    except KeyboardInterrupt:
        refuse('identity_overlap.py: interrupted. The same command goes on with what is embedded.')


if __name__ == '__main__':
    main()
