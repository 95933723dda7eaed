"""Is a release what its manifest says?"""

import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from ..datasets import open_faces
from ..datasets.load_face import decode_face
from ..datasets.release_source import FOLDERS, MANIFEST
from ..datasets.resumable import sha256_file
from .audit import AUDIT, CARD
from .layouts import CHECKSUMS, RECORD_FILES
from .manifest import read_manifest

SAMPLES = 'samples.png'

#: A line of the checksums.
FACE = re.compile(r'([0-9a-f]{64})  ([0-9]{6,}/[0-9]{6,}\.(?:png|jpg))\n')

#: Characters of a line that are read at once; a genuine one has fewer.
LINE = 256


def check_release(release: str | Path) -> str:
    """Holds every file of a release against its manifest.

    Nothing is read that does not lie in the release itself: links are not followed.

    Args:
        release: Its directory.

    Returns:
        What was checked, in a sentence.

    Raises:
        FileNotFoundError: No manifest.
        ValueError: All faults, up to ten by name.
    """
    release = Path(release)
    manifest, name = read_manifest(release)
    faults: list[str] = []
    present = _plain_files(release, faults)
    if manifest['samples']:
        _compare(release, SAMPLES, manifest['samples']['sha256'], present, faults)
    total = manifest['images'] if manifest['layout'] == FOLDERS else len(RECORD_FILES) * len(manifest['shards'])
    with tqdm(total=total, desc='checking', unit='file', mininterval=1) as bar:
        for shard in manifest['shards']:
            for file, digest in shard['sha256'].items():
                intact = _compare(release, str(PurePosixPath(shard['path'], file)), digest, present, faults)
                if file != CHECKSUMS:
                    bar.update()
                elif intact:
                    _compare_faces(release, shard['path'], present, faults, bar)
    faults += [f'{path!r} does not belong to it' for path in sorted(present - {MANIFEST, CARD, AUDIT})]
    if not faults:
        _compare_numbers(release, manifest, faults)
    if faults:
        more = f', and {len(faults) - 10} more' if len(faults) > 10 else ''
        raise ValueError(
            f'{release} is not what its manifest {name} says: {"; ".join(faults[:10])}{more}. Get it again from where '
            'it comes.'
        )
    return (
        f'{release}: all {manifest["images"]:,} faces of {manifest["identities"]:,} identities are as the manifest '
        f'{name} says.'
    )


def _plain_files(release: Path, faults: list[str], deepest: int = 2) -> set[str]:
    """Paths of the files in a release; adds a fault for links, devices, empty folders and what lies deeper."""
    files = set()
    folders = [('', deepest)]
    while folders:
        folder, deeper = folders.pop()
        with os.scandir(release / folder) as found:
            entries = list(found)
        if not entries:
            faults.append(f'{folder!r} is an empty folder')
        for entry in entries:
            path = f'{folder}/{entry.name}' if folder else entry.name
            if entry.is_symlink():
                faults.append(f'{path!r} is a link')
            elif entry.is_file():
                files.add(path)
            elif entry.is_dir() and deeper:
                folders.append((path, deeper - 1))
            else:
                faults.append(f'{path!r} does not belong to it')
    return files


def _compare(release: Path, path: str, digest: str, present: set[str], faults: list[str]) -> bool:
    """Takes a file from those that are still to compare; adds a fault where it is missing or has other bytes."""
    if path not in present:
        faults.append(f'{path!r} is missing')
        return False
    present.remove(path)
    if sha256_file(release / path) != digest:
        faults.append(f'{path!r} has other bytes')
        return False
    return True


def _compare_faces(release: Path, shard: str, present: set[str], faults: list[str], bar: tqdm) -> None:
    """Compares the faces that a shard's checksums list."""
    checksums = PurePosixPath(shard, CHECKSUMS)
    last = ''
    with (release / checksums).open(encoding='ascii', errors='backslashreplace', newline='\n') as lines:
        while line := lines.readline(LINE):
            found = FACE.fullmatch(line)
            if found is None or found[2] <= last:
                faults.append(
                    f'{str(checksums)!r} says {line[:100]!r}, which is not the SHA-256 of the next face '
                    '(… 000000/000000.png)'
                )
                continue
            last = found[2]
            _compare(release, str(PurePosixPath(shard, last)), found[1], present, faults)
            bar.update()


def _compare_numbers(release: Path, manifest: dict, faults: list[str]) -> None:
    """Counts and the size of faces, as a reader of the set finds them."""
    source = open_faces(release)
    counts = np.bincount(source.labels).tolist()
    for what, told, found in (
        ('images', manifest['images'], len(source)),
        ('identities', manifest['identities'], len(counts)),
    ):
        if told != found:
            faults.append(f'{what}: {told} in the manifest, {found} in the set')
    if counts != manifest['images_by_identity']:
        faults.append('the numbers of images by identity are others')
    starts = getattr(source, 'starts', (0, len(source)))  # of shards, or of one piece
    for shard, start, end in zip(manifest['shards'], starts[:-1], starts[1:], strict=True):
        first, last = int(source.identities[source.labels[start]]), int(source.identities[source.labels[end - 1]])
        found = dict(first_label=first, identities=last + 1 - first, images=int(end - start))
        for what, number in found.items():
            if shard[what] != number:
                faults.append(f'shard {shard["path"]}: {what}: {shard[what]} in the manifest, {number} in the set')
    size = manifest['image']['size']
    shape = decode_face(source.read(0), str(release)).shape[:2]
    if shape != (size, size):
        faults.append(f'faces are {shape[1]}×{shape[0]} pixels, not {size}×{size}')
