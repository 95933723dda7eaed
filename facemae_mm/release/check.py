"""Is a release what its manifest says?"""

from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from ..datasets import open_faces
from ..datasets.load_face import decode_face
from ..datasets.release_source import MANIFEST
from ..datasets.resumable import sha256_file
from .audit import AUDIT, CARD
from .layouts import CHECKSUMS, FOLDERS, RECORD_FILES
from .manifest import read_manifest

SAMPLES = 'samples.png'


def check_release(release: str | Path) -> str:
    """Holds every file of a release against its manifest.

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
    expected = {MANIFEST, CARD, AUDIT, *([SAMPLES] if manifest['samples'] else [])}
    if manifest['samples']:
        _compare(release / SAMPLES, manifest['samples']['sha256'], faults)
    total = manifest['images'] if manifest['layout'] == FOLDERS else len(RECORD_FILES) * len(manifest['shards'])
    with tqdm(total=total, desc='checking', unit='file', mininterval=1) as bar:
        for shard in manifest['shards']:
            for file, digest in shard['sha256'].items():
                path = PurePosixPath(shard['path'], file)
                expected.add(str(path))
                intact = _compare(release / path, digest, faults)
                if file != CHECKSUMS:
                    bar.update()
                elif intact:
                    expected |= _compare_faces(release, shard['path'], faults, bar)
    present = {path.relative_to(release).as_posix() for path in release.rglob('*') if not path.is_dir()}
    faults += [f'{path} does not belong to it' for path in sorted(present - expected)]
    faults += [f'{path} is a link' for path in sorted(present) if (release / path).is_symlink()]
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


def _compare(path: Path, digest: str, faults: list[str]) -> bool:
    """Adds a fault where a file is missing or has other bytes."""
    if not path.is_file():
        faults.append(f'{path.name} is missing' if path.parent.is_dir() else f'{path} is missing')
        return False
    if sha256_file(path) != digest:
        faults.append(f'{path} has other bytes')
        return False
    return True


def _compare_faces(release: Path, shard: str, faults: list[str], bar: tqdm) -> set[str]:
    """Faces that a shard's checksums list, each compared."""
    listed = set()
    for line in (release / shard / CHECKSUMS).read_text(encoding='utf-8').splitlines():
        digest, _, name = line.partition('  ')
        path = str(PurePosixPath(shard, name))
        if '..' in PurePosixPath(path).parts or path.startswith('/'):
            faults.append(f'{CHECKSUMS} names {name!r}, outside of the release')
            continue
        listed.add(path)
        _compare(release / path, digest, faults)
        bar.update()
    return listed


def _compare_numbers(release: Path, manifest: dict, faults: list[str]) -> None:
    """Counts and the size of faces, as a reader of the set finds them."""
    source = open_faces(release)
    counts = np.bincount(source.labels).tolist()
    shards = manifest['shards']
    told = dict(
        images=(manifest['images'], len(source), sum(shard['images'] for shard in shards)),
        identities=(manifest['identities'], len(counts), sum(shard['identities'] for shard in shards)),
    )
    for what, numbers in told.items():
        if len(set(numbers)) > 1:
            faults.append('{}: {} in the manifest, {} in the set, {} in its shards'.format(what, *numbers))
    if counts != manifest['images_by_identity']:
        faults.append('the numbers of images by identity are others')
    size = manifest['image']['size']
    shape = decode_face(source.read(0), str(release)).shape[:2]
    if shape != (size, size):
        faults.append(f'faces are {shape[1]}×{shape[0]} pixels, not {size}×{size}')
