"""A release as a set of faces, in one piece or in shards."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

#: The file that makes a directory a release, and what it must say of itself.
MANIFEST = 'manifest.json'
FORMAT = 'facemae-release'
VERSION = 1

SHARD = re.compile(r'shard_\d{5,}')


def release_parts(folder: Path) -> tuple[str, list[str]] | None:
    """Layout and shards of a release; None where a folder is none.

    Args:
        folder: Any folder.

    Raises:
        ValueError: A release of another version, or whose shards have other names than an export gives.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        return None
    if manifest.get('version') != VERSION:
        raise ValueError(
            f'{path} has version {manifest.get("version")!r}; this program reads {VERSION}. Install the FaceMAE-MM '
            'that wrote it.'
        )
    shards = manifest.get('shards')
    names = [shard.get('path') if isinstance(shard, dict) else None for shard in shards] if shards else []
    if not names or not (names == ['.'] or all(isinstance(name, str) and SHARD.fullmatch(name) for name in names)):
        raise ValueError(f'{path} names no shards of a release. Get the release again from where it comes.')
    return manifest.get('layout'), names


class ShardedSource:
    """The shards of a release as one set; a `FaceSource`.

    Keys are those of a shard behind its name, `shard_00000/000000/000000`.

    Args:
        folder: The release.
        shards: Names of its shards.
        open_shard: Opens one.

    Raises:
        ValueError: An identity that is in two shards.
    """

    def __init__(self, folder: Path, shards: Sequence[str], open_shard: Callable) -> None:
        self.path = folder
        self._sources = [open_shard(folder / name) for name in shards]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self.keys = ShardKeys(shards, self._sources, self._starts)
        first = np.cumsum([0, *(len(source.identities) for source in self._sources)])
        self.labels = np.concatenate([source.labels + start for source, start in zip(self._sources, first)])
        self.identities = [name for source in self._sources for name in source.identities]
        if len(set(self.identities)) != len(self.identities):
            raise ValueError(f'{folder}: an identity is in two shards. Get the release again from where it comes.')

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes:
        """Returns one encoded face."""
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        return self._sources[shard].read(index - int(self._starts[shard]))


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
