"""LFW cut into parts that share no person, by the folds of its own pairs."""

import csv
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from tqdm import tqdm

from ..datasets.face_dataset import part_of
from ..datasets.face_source import FaceSource, open_faces
from ..datasets.landmarks import TABLE, find_landmarks
from ..datasets.resumable import keys_digest, sha256_file
from ..datasets.verification_pairs import KEY_COLUMNS, read_pairs
from ..whole_file import whole_file

PAIRS = 'pairs.csv'

#: Names that no reader of faces takes: a set is cut, and known by its bytes, without them.
HIDDEN = ('.*', 'Thumbs.db')


def check_lfw(source: FaceSource, pairs: Path, split: Config) -> None:
    """Whether faces and list are those that a split was made for.

    Args:
        source: The faces.
        pairs: The list.
        split: `people`, `images`, `names_sha256` and `pairs_sha256` (`configs/mini/split.py`).

    Raises:
        FileNotFoundError: No such list.
        ValueError: Other counts, names or list.
    """
    people, images = len(source.identities), len(source)
    if (people, images) != (split.people, split.images):
        raise ValueError(
            f'{source.path} holds {images} images of {people} people; LFW has {split.images} of {split.people}. Give '
            'the whole of LFW, aligned: tools/prepare_faces.py PHOTOS OUT --keep-names makes it; '
            'OUT.private/report.csv names the photos in which it found no face, and --border or another --detector may '
            'find them.'
        )
    folders = sorted({key.partition('/')[0] for key in source.keys})  # faces that were numbered keep their keys alone
    if keys_digest(sorted(source.keys)) != split.names_sha256 or folders != sorted(source.identities):
        raise ValueError(
            f"{source.path}: its images are not named as LFW's (NAME/NAME_0001.jpg), such as "
            f'{source.identities[source.labels[0]]}/…. Give the folders under their own names: '
            'tools/prepare_faces.py PHOTOS OUT --keep-names leaves them.'
        )
    if sha256_file(pairs) != split.pairs_sha256:
        raise ValueError(
            f"{pairs} is not LFW's list of 6,000 pairs in ten folds (View 2, pairs.txt, SHA-256 "
            f'{split.pairs_sha256[:12]}…). Fetch it anew from where LFW comes from.'
        )


def folds_of(pairs: Path, split: Config) -> dict[str, int]:
    """Which fold names each person, 1 …; people whom none names are absent.

    Raises:
        ValueError: A person in two folds.
    """
    keys, _ = read_pairs(pairs)
    fold = {}
    for number, key in enumerate(keys):
        person, own = key.partition('/')[0], number // (2 * split.pairs_of_fold) + 1
        if fold.setdefault(person, own) != own:
            raise ValueError(f'{pairs}: folds {fold[person]} and {own} share {person}.')
    return fold


def people_of(part: Mapping, fold: Mapping[str, int], images: Mapping[str, int]) -> list[str]:
    """Who is in a part.

    Args:
        part: `folds`; `min_images` a person (1); `half`, 0 or 1, of them by the hash of the name (both). `people`, how
            many recognisers are told of, is held against the outcome by `split_lfw`.
        fold: As of `folds_of`.
        images: Of every person.
    """
    half = part.get('half')
    return [
        name
        for name in sorted(images)
        if fold.get(name, 0) in part['folds']
        and images[name] >= part.get('min_images', 1)
        and (half is None or part_of(name, 2) == half)
    ]


def split_lfw(faces: Path, pairs: Path, split: Config, out: Path) -> dict[str, tuple[int, int]]:
    """Copies every part into a folder of its own, with its landmarks where they are known, and writes the pairs.

    Args:
        faces: LFW, aligned.
        pairs: Its list.
        split: `configs/mini/split.py`.
        out: Folder to write: PART/NAME/*, PART/landmarks5.csv, and `pairs.csv`, the pairs of `test_folds`, same and
            different by turns, so that each tenth holds both. It appears when it is complete.

    Returns:
        People and images of each part.

    Raises:
        FileExistsError: `out` is there.
        FileNotFoundError: No faces, no list.
        OSError: They cannot be copied.
        ValueError: Not LFW.
    """
    if out.exists():
        raise FileExistsError(f'{out} exists already. Name another folder, or delete it.')
    source = open_faces(faces)
    check_lfw(source, pairs, split)
    images = Counter(source.identities[label] for label in source.labels)
    fold = folds_of(pairs, split)
    table = find_landmarks(faces)
    rows = []
    if table is not None:
        with table.open(newline='', encoding='utf-8') as file:
            rows = list(csv.reader(file))
    draft, counts = out.with_name(f'{out.name}.partial'), {}
    shutil.rmtree(draft, ignore_errors=True)
    for name, part in tqdm(split.parts.items(), desc='parts'):
        people = people_of(part, fold, images)
        counts[name] = len(people), sum(images[person] for person in people)
        if part.get('people', len(people)) != len(people):
            raise ValueError(
                f'Part {name} has {len(people)} people, and the split says {part["people"]}. Mend the split.'
            )
        for person in people:
            shutil.copytree(faces / person, draft / name / person, ignore=shutil.ignore_patterns(*HIDDEN))
        if rows:
            chosen = set(people)
            own = [row for row in rows[1:] if row[0].partition('/')[0] in chosen]
            with whole_file(draft / name / TABLE, 'x') as file:
                csv.writer(file, lineterminator='\n').writerows([rows[0], *own])
    _write_pairs(*read_pairs(pairs), split, draft / PAIRS)
    draft.rename(out)
    return counts


def _write_pairs(keys: Sequence[str], same: Sequence[bool], split: Config, path: Path) -> None:
    first = [2 * split.pairs_of_fold * (fold - 1) for fold in split.test_folds]
    chosen = [i // 2 for start in first for i in range(start, start + 2 * split.pairs_of_fold, 2)]
    lines = {kind: [[*keys[2 * i : 2 * i + 2], int(kind)] for i in chosen if same[i] == kind] for kind in (True, False)}
    with whole_file(path, 'x') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(KEY_COLUMNS)
        for yes, no in zip(lines[True], lines[False], strict=True):
            writer.writerows([yes, no])
