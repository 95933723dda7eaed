"""A release as a set of faces, in one piece or in shards."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..json_file import read_json

#: The file that makes a directory a release, and what it must say of itself.
MANIFEST = 'manifest.json'
FORMAT = 'facemae-release'
VERSION = 1

FOLDERS, RECORDS = LAYOUTS = ('folders', 'records')

#: Bytes of the largest manifest that is read: that of 16 million identities.
MAX_MANIFEST = 1 << 26

#: Any of these lies in a release, beside its manifest: the faces' checksums, the first shard, or records.
CONTENT = ('SHA256SUMS', 'shard_00000', 'train.rec')

#: Name of an identity folder of a release.
NUMBERED = re.compile('[0-9]{6,}')


def load_manifest(path: Path) -> object:
    """What a manifest holds, which may be anything.

    Raises:
        ValueError: No JSON, a link, or more than `MAX_MANIFEST` bytes.
    """
    if path.is_symlink():
        raise ValueError(f'{path} is a link, which may lead anywhere. Get the release again from where it comes.')
    if path.stat().st_size > MAX_MANIFEST:
        raise ValueError(
            f'{path} has more than {MAX_MANIFEST >> 20} MiB, which no manifest needs. Get the release again from where '
            'it comes.'
        )
    return read_json(path, 'Get the release again from where it comes.', _no_number)


def _no_number(name: str) -> None:
    raise ValueError(f'{name} is no number')


def check_shards(version: object, shards: Sequence, path: Path | str) -> None:
    """Holds a manifest's version and the names of its shards against what this program reads.

    Raises:
        ValueError: Another version; or other names than '.' alone, or 'shard_00000', 'shard_00001', ….
    """
    if version != VERSION:
        shown = repr(version) if isinstance(version, int | float | str) else f'a {type(version).__name__}'
        raise ValueError(
            f'{path} has version {shown[:20]}; this program reads {VERSION}. Install the FaceMAE-MM that wrote it.'
        )
    names = [shard.get('path') if isinstance(shard, dict) else None for shard in shards]
    if names != ['.'] and (not names or names != [f'shard_{number:05d}' for number in range(len(names))]):
        raise ValueError(
            f"{path} names no shards of a release ('.' alone, or shard_00000, shard_00001, …). Get the release again "
            'from where it comes.'
        )


def release_parts(folder: Path) -> tuple[str, list[str]] | None:
    """Layout and shards of a release; None where a folder is none.

    Args:
        folder: Any folder.

    Raises:
        ValueError: A release of another version, or whose layout or shards have other names than an export gives; or
            what looks like a release, with a manifest that is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = load_manifest(path)
    except ValueError as error:
        if path.is_symlink():
            raise
        if _looks_like_release(folder):  # as a plain folder its links would be followed, and numbers be names
            raise ValueError(
                f'{folder} looks like a release, and its manifest is damaged: {error} Where it is none, remove that '
                'file.'
            ) from error
        return None
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        return None
    layout, shards = manifest.get('layout'), manifest.get('shards')
    check_shards(manifest.get('version'), shards if isinstance(shards, list) else [], path)
    if layout not in LAYOUTS:
        raise ValueError(f'{path} has no layout of {", ".join(LAYOUTS)}. Get the release again from where it comes.')
    return layout, [shard['path'] for shard in shards]


def _looks_like_release(folder: Path) -> bool:
    """Whether a folder holds what an export writes beside the manifest."""
    if any(os.path.lexists(folder / name) for name in CONTENT):
        return True
    with os.scandir(folder) as entries:
        people = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.')]
    return bool(people) and all(map(NUMBERED.fullmatch, people))


class ShardedSource:
    """The shards of a release as one set; a `FaceSource`.

    Keys are those of a shard behind its name, `shard_00000/000000/000000`.

    Args:
        folder: The release.
        shards: Names of its shards.
        open_shard: Opens one.

    Attributes:
        starts: First image of each shard, and how many there are, (S + 1,) int64.

    Raises:
        ValueError: An identity that is in two shards, or a shard whose images are nobody's.
    """

    def __init__(self, folder: Path, shards: Sequence[str], open_shard: Callable) -> None:
        self.path = folder
        self._sources = [open_shard(folder / name) for name in shards]
        for name, source in zip(shards, self._sources):
            if len(source) and not source.identities:
                raise ValueError(
                    f'{folder / name} holds images and no identity folders, so they are of nobody. Get the release '
                    'again from where it comes.'
                )
        self.starts = np.cumsum([0, *map(len, self._sources)])
        self.keys = ShardKeys(shards, self._sources, self.starts)
        first = np.cumsum([0, *(len(source.identities) for source in self._sources)])
        self.labels = np.concatenate([source.labels + start for source, start in zip(self._sources, first)])
        self.identities = [name for source in self._sources for name in source.identities]
        if len(set(self.identities)) != len(self.identities):
            raise ValueError(f'{folder}: an identity is in two shards. Get the release again from where it comes.')

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: int) -> bytes:
        """Returns one encoded face."""
        shard = int(np.searchsorted(self.starts, index, 'right')) - 1
        return self._sources[shard].read(index - int(self.starts[shard]))


class ShardKeys(Sequence):
    """Keys of all shards, one after the other, made when asked for."""

    def __init__(self, names: Sequence[str], sources: Sequence, starts: np.ndarray) -> None:
        self._names = names
        self._sources = sources
        self._starts = starts

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        return f'{self._names[shard]}/{self._sources[shard].keys[index - int(self._starts[shard])]}'
