"""Pairs of faces of which a recogniser must say whether they show one person."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset

from .face_source import FaceSource, open_faces
from .verification_bin import VerificationBin

#: First line of a list of pairs by image key.
KEY_COLUMNS = ['key1', 'key2', 'same']


def read_pairs(path: str | Path) -> tuple[list[str], list[bool]]:
    """Reads a list of pairs: LFW's `pairs.txt`, or a CSV of `key1,key2,same` (1 or 0).

    LFW's lines are `name n m` (one person, images n and m) and `name n other m` (two persons),
    separated by tabs, or by blanks where a line has no tab; image n of a person is NAME/NAME_000n.
    A first line of one or two numbers gives the number of folds and of pairs of either kind in
    each; it may be absent. Order is kept: it makes the folds.

    Args:
        path: The file.

    Returns:
        Image keys (2 · pairs,), pair i at 2i and 2i + 1, and whether each pair shows one person
        (pairs,).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line of another shape, or another number of pairs than the first line says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist. Give a list of pairs (pairs.txt in the form of LFW).')
    lines = path.read_text(encoding='utf-8').splitlines()
    promised = None
    if lines and lines[0].split(',') == KEY_COLUMNS:
        rows, parse, header, shape = list(csv.reader(lines)), _key_pair, 1, ','.join(KEY_COLUMNS)
    else:
        rows = [line.split('\t') if '\t' in line else line.split() for line in lines]
        if rows and len(rows[0]) in (1, 2) and all(map(str.isdecimal, rows[0])):
            promised = 2 * math.prod(map(int, rows[0]))
        parse, header, shape = _lfw_pair, promised is not None, "'name n m' or 'name n other m'"
    keys, same = [], []
    for number, row in enumerate(rows, 1):
        if number <= header or not any(row):
            continue
        pair = parse(row)
        if pair is None:
            raise ValueError(f'{path}, line {number}: {row} is no pair. Write {shape}.')
        keys += pair[:2]
        same.append(pair[2])
    if not same or promised not in (None, len(same)):
        expected = 'at least one is needed' if promised is None else f'its first line promises {promised}'
        raise ValueError(f'{path} holds {len(same)} pairs, but {expected}. Copy the list again.')
    return keys, same


def _lfw_pair(row: list[str]) -> tuple[str, str, bool] | None:
    if len(row) == 3 and row[1].isdecimal() and row[2].isdecimal():
        name, n, m = row
        return _lfw_key(name, n), _lfw_key(name, m), True
    if len(row) == 4 and row[1].isdecimal() and row[3].isdecimal():
        return _lfw_key(row[0], row[1]), _lfw_key(row[2], row[3]), False
    return None


def _lfw_key(name: str, number: str) -> str:
    return f'{name}/{name}_{int(number):04d}'


def _key_pair(row: list[str]) -> tuple[str, str, bool] | None:
    if len(row) == 3 and row[2] in ('0', '1'):
        return row[0], row[1], row[2] == '1'
    return None


@DATASETS.register_module()
class VerificationPairs(Dataset):
    """The images of one or several verification sets, two to a pair, in the order of the pairs.

    A sample holds img_bytes, img_path (for messages), img_key, set_name, pair_index, side (0 or
    1), same (bool), identity (folder's name; '' in a `.bin`, which knows none) and sample_idx. An
    image that stands in several pairs comes once for each.

    Args:
        sets: Name → dict(source=PATH.bin), or dict(source=FOLDER, pairs=FILE) with a list that
            `read_pairs` reads.
        pipeline: Transforms, from LoadFace to PackInputs.

    Raises:
        FileNotFoundError: A source or a list of pairs does not exist.
        ValueError: A set without pairs, a pair whose image the source lacks, or damaged files.
    """

    def __init__(self, sets: dict[str, dict], pipeline: Sequence = ()) -> None:
        if not sets:
            raise ValueError(
                'VerificationPairs: sets is empty. Give one or several, as dict(lfw=dict(source=…, pairs=…)).'
            )
        self.pipeline = Compose([TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline])
        self.sets = {name: _PairSet(name, **options) for name, options in sets.items()}
        self._names = list(self.sets)
        self._ends = np.cumsum([len(pairs.images) for pairs in self.sets.values()])

    @property
    def metainfo(self) -> dict:
        """Number of pairs by set. MMEngine writes it into checkpoints: no names belong here."""
        return dict(pairs={name: len(pairs.same) for name, pairs in self.sets.items()})

    def full_init(self) -> None:
        """For MMEngine, which calls it before use; everything is read at construction already."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def get_data_info(self, idx: int) -> dict:
        """One image before the pipeline, with its bytes."""
        if not 0 <= idx < len(self):
            raise IndexError(f'VerificationPairs: index {idx} is not in [0, {len(self)}).')
        number = int(np.searchsorted(self._ends, idx, side='right'))
        name = self._names[number]
        pairs = self.sets[name]
        position = idx - int(self._ends[number] - len(pairs.images))
        image, source = int(pairs.images[position]), pairs.source
        return dict(
            img_bytes=source.read(image),
            img_path=f'{source.path}:{source.keys[image]}',
            img_key=source.keys[image],
            set_name=name,
            pair_index=position // 2,
            side=position % 2,
            same=bool(pairs.same[position // 2]),
            identity=source.identities[source.labels[image]] if source.identities else '',
            sample_idx=idx,
        )

    def __getitem__(self, idx: int) -> dict:
        return self.pipeline(self.get_data_info(idx))


class _PairSet:
    """One set: `images` (2 · pairs,) are indices into `source`, `same` is (pairs,) bool."""

    def __init__(self, name: str, source: str, pairs: str | None = None) -> None:
        self.source: FaceSource = open_faces(source)
        is_bin = isinstance(self.source, VerificationBin)
        if is_bin == (pairs is not None):
            remedy = 'Leave pairs out, a .bin holds them' if is_bin else 'Give a list of pairs too'
            raise ValueError(f'VerificationPairs: set {name!r} has source {source} and {pairs=}. {remedy}.')
        if is_bin:
            self.images, self.same = np.arange(len(self.source)), self.source.same
            return
        keys, same = read_pairs(pairs)
        index = {key: i for i, key in enumerate(self.source.keys)}
        missing = next((i for i, key in enumerate(keys) if key not in index), None)
        if missing is not None:
            raise ValueError(
                f'{source} lacks the image {keys[missing]} of pair {missing // 2} in {pairs}. '
                'Give the folder that the list was made for, or remove the pair.'
            )
        self.images, self.same = np.array([index[key] for key in keys]), np.array(same, bool)
