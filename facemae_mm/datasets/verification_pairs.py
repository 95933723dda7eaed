"""Pairs of faces of which a recogniser must say whether they show one person."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset

from .face_source import IMAGE_EXTENSIONS, FaceSource, open_faces
from .verification_bin import VerificationBin

#: First line of a list of pairs by image key.
KEY_COLUMNS = ['key1', 'key2', 'same']

#: A larger list is refused before it is read; LFW's has 160 kB.
MAX_LIST_BYTES = 1 << 26

#: Folds of CFP, which are those that `FaceVerification` makes.
CFP_FOLDS = 10


def read_pairs(path: str | Path, protocol: str | None = None) -> tuple[list[str], list[bool]]:
    """Reads pairs: LFW's `pairs.txt`, lines of two paths, a CSV of `key1,key2,same`, or CFP's protocol.

    - LFW: `name n m` (one person, images n and m) and `name n other m` (two persons); image n of a
      person is NAME/NAME_000n. A first line of one or two numbers gives the number of folds and of
      pairs of either kind in each; it may be absent.
    - Paths, as AgeDB's and others' lists: `path1 path2 1` (one person) or 0. A path has a '/' or an
      image's extension; a second column that is a number makes the line LFW's, so no line is both.
    - The CSV has the first line `key1,key2,same`; same is 1 or 0.
    - CFP's protocol is a folder: see `read_cfp_protocol`.

    Lines of the first two are separated by tabs, or by blanks where a line has no tab. Of paths and
    of the CSV's keys, a leading './' and an image's extension are dropped, which makes them image
    keys. Order is kept: it makes the folds.

    Args:
        path: The file, UTF-8, or the folder of CFP's protocol.
        protocol: 'FP' (as is None) or 'FF', which of CFP's two; None for a file.

    Returns:
        Image keys (2 · pairs,), pair i at 2i and 2i + 1, and whether each pair shows one person
        (pairs,).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line of another shape, another number of pairs than the first line says, no
            text in UTF-8, more than 64 MiB, or a protocol given for a file.
    """
    path = Path(path)
    if path.is_dir():
        return read_cfp_protocol(path, protocol or 'FP')
    lines = _read_lines(path, 'Give a list of pairs (pairs.txt in the form of LFW)')
    if protocol is not None:
        raise ValueError(
            f'{path} is a file, but {protocol=} chooses between the lists of CFP. Leave protocol out, or give the '
            'folder Protocol of cfp-dataset.'
        )
    promised = None
    if lines and lines[0].split(',') == KEY_COLUMNS:
        parse, header, shape = _key_pair, 1, ','.join(KEY_COLUMNS)
        reader = csv.reader(lines)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f'{path}, line {reader.line_num}: {error}. Write {shape}.') from None
    else:
        rows = [line.split('\t') if '\t' in line else line.split() for line in lines]
        if rows and len(rows[0]) in (1, 2) and all(map(_is_number, rows[0])):
            promised = 2 * math.prod(map(int, rows[0]))
        parse, header = _line_pair, promised is not None
        shape = "'name n m', 'name n other m', or 'path1 path2 1' (one person) or 0"
    keys, same = [], []
    for number, row in enumerate(rows, 1):
        if number <= header or not any(row):
            continue
        pair = parse(row)
        if pair is None:
            raise ValueError(f'{path}, line {number}: {str(row)[:200]} is no pair. Write {shape}.')
        keys += pair[:2]
        same.append(pair[2])
    if not same or promised not in (None, len(same)):
        expected = 'at least one is needed' if promised is None else f'its first line promises {promised}'
        raise ValueError(f'{path} holds {len(same)} pairs, but {expected}. Copy the list again.')
    return keys, same


def read_cfp_protocol(folder: str | Path, protocol: str = 'FP') -> tuple[list[str], list[bool]]:
    """Reads the pairs of CFP (Celebrities in Frontal-Profile): ten folds, in each the same pairs, then the others.

    `Pair_list_F.txt` and `Pair_list_P.txt` number the frontal and the profile images, one
    `number path` a line; they lie in the folder, in its Split, or one level up.
    `Split/FP/01 … 10/{same,diff}.txt` (or FF) hold the folds' pairs, two numbers `a,b` a line. The
    image key is the path's last three components without extension: 001/frontal/01.

    Args:
        folder: `cfp-dataset/Protocol`, or its `Split`.
        protocol: 'FP', frontal (first) against profile, or 'FF', frontal against frontal.

    Returns:
        As `read_pairs`; the genuine lists give 7,000 pairs of either protocol.

    Raises:
        FileNotFoundError: A list or a fold is missing.
        ValueError: Another protocol, a line of another shape, a number that is not in its list or
            stands there twice, or folds of unequal size, which ten equal parts would mix.
    """
    if protocol not in ('FP', 'FF'):
        raise ValueError(f"{protocol=} is none of CFP's. Give 'FP' (frontal-profile) or 'FF' (frontal-frontal).")
    folder = Path(folder)
    remedy = (
        'Give the folder Protocol of cfp-dataset as it is: with Pair_list_F.txt, Pair_list_P.txt and '
        f'Split/{protocol}/01 … {CFP_FOLDS:02d}/{{same,diff}}.txt'
    )
    split = next((path for path in (folder / 'Split' / protocol, folder / protocol) if path.is_dir()), None)
    if split is None:
        raise FileNotFoundError(f'{folder} has no folder Split/{protocol}. {remedy}.')
    listed = []
    for view in protocol:
        places = [place / f'Pair_list_{view}.txt' for place in (folder, folder / 'Split', folder / '..')]
        path = next((path for path in places if path.is_file()), places[0])
        listed.append((path, _cfp_images(path, remedy)))
    keys, same, sizes = [], [], []
    for fold in range(1, CFP_FOLDS + 1):
        before = len(same)
        for is_same, name in ((True, 'same.txt'), (False, 'diff.txt')):
            path = split / f'{fold:02d}' / name
            for where, match in _matching_lines(path, r'(\d{1,9})\s*,\s*(\d{1,9})', 'two numbers, a,b', remedy):
                for number, (list_path, images) in zip(map(int, match.groups()), listed, strict=True):
                    if number not in images:
                        raise ValueError(f'{where}: there is no image {number} in {list_path}. Copy both files again.')
                    keys.append(images[number])
                same.append(is_same)
        sizes.append(len(same) - before)
    if not sizes[0] or len(set(sizes)) > 1:
        raise ValueError(
            f'{split}: the folds have {", ".join(map(str, sizes))} pairs. The evaluation cuts the pairs into '
            f'{CFP_FOLDS} equal parts, which are the folds only where all have the same number, not 0. Copy it again.'
        )
    return keys, same


def _cfp_images(path: Path, remedy: str) -> dict[int, str]:
    """Number → image key."""
    images = {}
    for where, match in _matching_lines(path, r'(\d{1,9})\s+(\S.*)', 'number path', remedy):
        number, parts = int(match[1]), PurePosixPath(match[2]).parts
        if len(parts) < 3:
            raise ValueError(f'{where}: {match[2][:200]!r} is no path of the form …/001/frontal/01.jpg. Copy it again.')
        if number in images:
            raise ValueError(f'{where}: number {number} stands for {images[number]} already. Copy the list again.')
        images[number] = image_key('/'.join(parts[-3:]))
    return images


def _matching_lines(path: Path, pattern: str, shape: str, remedy: str) -> list[tuple[str, re.Match]]:
    """Where each line that is not blank stands, for messages, and its match.

    Raises:
        ValueError: A line does not match.
    """
    lines = []
    for number, line in enumerate(_read_lines(path, remedy), 1):
        if not line.strip():
            continue
        match = re.fullmatch(pattern, line.strip(), re.ASCII)
        if match is None:
            raise ValueError(f'{path}, line {number}: {line[:200]!r} is not {shape}. Copy the file again.')
        lines.append((f'{path}, line {number}', match))
    return lines


def image_key(path: str) -> str:
    """The img_key of a path: a leading './' and an image's extension are dropped."""
    path = path.removeprefix('./')
    stem, _, extension = path.rpartition('.')
    return stem if extension.lower() in IMAGE_EXTENSIONS else path


def match_pairs(source: FaceSource, pairs: str | Path, protocol: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Finds the images of a list of pairs.

    Args:
        source: The faces.
        pairs: What `read_pairs` reads.
        protocol: As for `read_pairs`.

    Returns:
        Indices into the source (2 · pairs,) int64, pair i at 2i and 2i + 1, and whether each pair
        shows one person (pairs,) bool.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: The list is damaged, or has an image that the source lacks.
    """
    keys, same = read_pairs(pairs, protocol)
    index = {key: i for i, key in enumerate(source.keys)}
    missing = next((i for i, key in enumerate(keys) if key not in index), None)
    if missing is not None:
        raise ValueError(
            f'{source.path} lacks the image {keys[missing][:200]} of pair {missing // 2} in {pairs}; its first is '
            f'{source.keys[0]}. Give the folder that the list was made for, or remove the pair.'
        )
    return np.array([index[key] for key in keys]), np.array(same, bool)


def _read_lines(path: Path, remedy: str) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist. {remedy}.')
    size = path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise ValueError(f'{path} is {size:,} bytes; a list has at most {MAX_LIST_BYTES:,}. {remedy}.')
    try:
        return path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is no text in UTF-8: {error.reason} at byte {error.start}. {remedy}, or convert it (iconv).'
        ) from None


def _line_pair(row: list[str]) -> tuple[str, str, bool] | None:
    if len(row) == 3 and _is_number(row[1]) and _is_number(row[2]):
        name, n, m = row
        return _lfw_key(name, n), _lfw_key(name, m), True
    if len(row) == 4 and _is_number(row[1]) and _is_number(row[3]):
        return _lfw_key(row[0], row[1]), _lfw_key(row[2], row[3]), False
    if len(row) == 3 and _is_path(row[0]) and _is_path(row[1]):
        return _key_pair(row)
    return None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _is_path(text: str) -> bool:
    return '/' in text or image_key(text) != text


def _lfw_key(name: str, number: str) -> str:
    return f'{name}/{name}_{int(number):04d}'


def _key_pair(row: list[str]) -> tuple[str, str, bool] | None:
    if len(row) == 3 and row[2] in ('0', '1'):
        return image_key(row[0]), image_key(row[1]), row[2] == '1'
    return None


@DATASETS.register_module()
class VerificationPairs(Dataset):
    """The images of one or several verification sets, two to a pair, in the order of the pairs.

    A sample holds img_bytes, img_path (for messages), img_key, set_name, pair_index, side (0 or
    1), same (bool), identity (folder's name; '' in a `.bin`, which knows none) and sample_idx. An
    image that stands in several pairs comes once for each.

    Args:
        sets: Name → dict(source=PATH.bin), or dict(source=FACES, pairs=FILE) with what `read_pairs`
            reads; for CFP dict(source=FACES, pairs=PROTOCOL_FOLDER, protocol='FP'), or 'FF'.
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
        self.sets = {name: PairSet(name, **options) for name, options in sets.items()}
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


class PairSet:
    """One verification set: faces, and which of them make pairs.

    Args:
        name: For messages.
        source: What `open_faces` opens.
        pairs: What `read_pairs` reads; None for a `.bin`, which holds its pairs.
        protocol: As for `read_pairs`.

    Attributes:
        source: The faces.
        images: Indices into it (2 · pairs,) int64, pair i at 2i and 2i + 1.
        same: Whether each pair shows one person, (pairs,) bool.

    Raises:
        FileNotFoundError: The source or the list does not exist.
        ValueError: A list for a `.bin`, or none for other faces; damaged files; an image that the source lacks.
    """

    def __init__(self, name: str, source: str, pairs: str | None = None, protocol: str | None = None) -> None:
        self.source: FaceSource = open_faces(source)
        is_bin = isinstance(self.source, VerificationBin)
        if is_bin and (pairs, protocol) != (None, None) or not is_bin and pairs is None:
            remedy = 'Leave both out, a .bin holds its pairs' if is_bin else 'Give a list of pairs too (FACES:PAIRS)'
            raise ValueError(f'Verification set {name!r} has source {source}, {pairs=}, {protocol=}. {remedy}.')
        if is_bin:
            self.images, self.same = np.arange(len(self.source)), self.source.same
        else:
            self.images, self.same = match_pairs(self.source, pairs, protocol)
