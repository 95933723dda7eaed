"""Fuzzes all that reads files from outside: mutated files must be read, or refused with an error that names them.

Each target runs in a process of its own, by atheris (coverage-guided, instrumenting facemae_mm.datasets). What is
refused is a ValueError, an UnpicklingError or an OSError that names the file; any other error, more than 10 seconds or
2 GiB for one input, and a crash are findings: the input is kept in --findings, and the exit code is 1.
"""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=['facemae_mm.datasets']):
    from facemae_mm.datasets.face_source import open_faces
    from facemae_mm.datasets.landmarks import read_landmarks
    from facemae_mm.datasets.load_face import decode_face
    from facemae_mm.datasets.masked_dataset import decode_masked, encode_masked
    from facemae_mm.datasets.recordio import RecordWriter
    from facemae_mm.datasets.verification_pairs import read_pairs

import cv2
import numpy as np

#: Inputs of each target by default: 1,200,000 in all.
RUNS = dict(
    rec=250_000, idx=150_000, bin=300_000, pairs=150_000, zip=100_000, masked=100_000, tables=50_000, image=100_000
)

REFUSALS = (ValueError, OSError, pickle.UnpicklingError)


def picture(extension: str = '.jpg', size: int = 16) -> bytes:
    """A small encoded image."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return cv2.imencode(extension, cv2.resize(pixels, (size, size)))[1].tobytes()


def read_all(path: Path) -> None:
    """What a data loader does with a set, for its first images."""
    source = open_faces(path)
    for i in range(min(len(source), 8)):
        source.keys[i]
        source.read(i)


def packed(folder: Path) -> tuple[bytes, bytes]:
    """A genuine .rec and its .idx: three identities, one image in parts."""
    with RecordWriter(folder / 'seed.rec', (16, 16)) as writer:
        for number in range(6):
            writer.write(number // 2, picture() + struct.pack('<I', 0xCED7230A) * (number == 3))
    return (folder / 'seed.rec').read_bytes(), (folder / 'seed.idx').read_bytes()


def fuzz_rec(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The .rec and its .idx together: two bytes say how long the .idx is, which comes first."""
    rec, idx = packed(folder)
    plain = struct.pack('<II', 0xCED7230A, 24 + 4) + struct.pack('<IfQQ', 0, 1.0, 0, 0) + b'data'  # without a header
    array = struct.pack('<II', 0xCED7230A, 24 + 12) + struct.pack('<IfQQ2f', 2, 0, 0, 0, 1, 7) + b'data'
    lines = b'0\t0\n1\t36\n'
    seeds = [struct.pack('<H', len(idx)) + idx + rec, struct.pack('<H', len(lines)) + lines + plain + array]

    def test(data: bytes) -> None:
        length = int.from_bytes(data[:2], 'little')
        (folder / 'fuzzed.idx').write_bytes(data[2 : 2 + length])
        (folder / 'fuzzed.rec').write_bytes(data[2 + length :])
        read_all(folder / 'fuzzed.rec')

    return seeds, test


def fuzz_idx(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The .idx of a genuine .rec."""
    rec, idx = packed(folder)
    (folder / 'fuzzed.rec').write_bytes(rec)

    def test(data: bytes) -> None:
        (folder / 'fuzzed.idx').write_bytes(data)
        read_all(folder / 'fuzzed.rec')

    return [idx, b'\n'.join(reversed(idx.split())), b'0\t0\r\n1\t60\r\n'], test


def fuzz_bin(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """A verification .bin, by the pickle protocols there are, its images bytes or arrays."""
    image = picture(size=8)
    arrays = [np.frombuffer(image, np.uint8)] * 4
    seeds = [pickle.dumps((images, [True, False]), p) for p in range(2, 6) for images in ([image] * 4, arrays)]
    seeds += [pickle.dumps((os.system, ['true'])), pickle.dumps(([[[image]]], {'a': 1.5}, None))]

    def test(data: bytes) -> None:
        (folder / 'fuzzed.bin').write_bytes(data)
        read_all(folder / 'fuzzed.bin')

    return seeds, test


def fuzz_pairs(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """Lists of pairs: the first byte says as which file."""
    lists = ('2 1\nA\t1\t2\nA\t1\tB\t1\nC\t1\t2\nA\t1\tC\t1\n', 'key1,key2,same\nA/1,A/2,1\nA/1,"B/1",0\n')
    seeds = [
        bytes([i % 2]) + text.encode() for i, text in enumerate((*lists, 'A/1.jpg A/2.jpg 1\nA/1.jpg B/1.jpg 0\n'))
    ]

    def test(data: bytes) -> None:
        path = folder / ('fuzzed.csv' if data[:1] == b'\x01' else 'fuzzed.txt')
        path.write_bytes(data[1:])
        read_pairs(path)

    return seeds, test


def fuzz_zip(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """A .zip of a folder of faces."""
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w', method) as archive:
            for name in ('set/A/1.jpg', 'set/A/2.jpg', 'set/B/ü.jpg', 'set/note.txt'):
                archive.writestr(name, picture(size=8))
        seeds.append(file.getvalue())

    def test(data: bytes) -> None:
        (folder / 'fuzzed.zip').write_bytes(data)
        read_all(folder / 'fuzzed.zip')

    return seeds, test


def fuzz_masked(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """A masked face, or (first byte 1) the description of a masked dataset."""
    image = cv2.imdecode(np.frombuffer(picture(), np.uint8), cv2.IMREAD_COLOR)
    face = encode_masked(image, np.array([1, 0, 1, 1], np.uint8), 8)
    fuzzed = folder / 'fuzzed'
    fuzzed.mkdir()
    with RecordWriter(fuzzed / 'faces.rec', (16, 16)) as writer:
        writer.write(0, face)
    (fuzzed / 'keys.bin').write_bytes(bytes(32))
    info = dict(format='facemae-masked', version=1, images=1, identities=1, skipped=0, mask=dict(patch_size=8))
    seeds = [b'\0' + face, b'\x01' + json.dumps(info).encode()]

    def test(data: bytes) -> None:
        if data[:1] == b'\x01':
            (fuzzed / 'facemasked.json').write_bytes(data[1:])
            read_all(fuzzed)
        else:
            decode_masked(data[1:], 'fuzzed')

    return seeds, test


def fuzz_tables(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """landmarks5.csv, or (first byte 1) keys.csv, beside a folder of faces."""
    fuzzed = folder / 'fuzzed'
    for name in ('A/1', 'A/2', 'B/1'):
        (fuzzed / name).parent.mkdir(parents=True, exist_ok=True)
        (fuzzed / f'{name}.jpg').write_bytes(picture())
    points = 'path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy\nA/1.jpg,1,2,3,4,5,6,7,8,9,10\nB/1,1,2,3,4,5,6,7.5,8e0,9,10\n'
    seeds = [b'\0' + points.encode(), b'\x01key,source_key\nA/1,x/1\nA/2,"x, y/2"\nB/1,z\n']

    def test(data: bytes) -> None:
        (fuzzed / 'keys.csv').unlink(missing_ok=True)
        (fuzzed / ('keys.csv' if data[:1] == b'\x01' else 'landmarks5.csv')).write_bytes(data[1:])
        source = open_faces(fuzzed)
        read_landmarks(source)
        source.keys[:]

    return seeds, test


def fuzz_image(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """An encoded face."""
    seeds = [picture(extension) for extension in ('.jpg', '.png', '.bmp', '.webp', '.ppm', '.tiff')]
    return seeds, lambda data: decode_face(data, 'fuzzed')


TARGETS = {name.removeprefix('fuzz_'): function for name, function in list(globals().items()) if name[:5] == 'fuzz_'}


def fuzz(target: str, runs: int, seed: int, findings: Path, folder: Path) -> None:
    """Fuzzes one target in this process, which ends with it, and counts into `folder/counts.json`."""
    corpus, work = folder / 'corpus', folder / 'work'
    corpus.mkdir()
    work.mkdir()
    seeds, test = TARGETS[target](work)
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    counts = Counter()

    def test_one(data: bytes) -> None:
        counts['inputs'] += 1
        if counts['inputs'] % 1000 == 0 or counts['inputs'] >= runs:  # libFuzzer ends without a word to Python
            (folder / 'counts.json').write_text(json.dumps(counts))
        try:
            test(data)
            counts['read'] += 1
        except REFUSALS as error:
            if 'fuzzed' not in str(error):
                raise AssertionError(f'the error names no file: {error!r}') from error

    flags = [f'-runs={runs}', f'-seed={seed}', '-max_len=4096', '-timeout=10', '-rss_limit_mb=2048', '-verbosity=0']
    atheris.Setup([sys.argv[0], str(corpus), *flags, f'-artifact_prefix={findings}/{target}-'], test_one)
    atheris.Fuzz()


def main() -> None:
    """Fuzzes the targets, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=f'of {", ".join(TARGETS)} (default: all)')
    parser.add_argument('--runs', type=int, help='inputs of each (default: 1,200,000 in all)')
    parser.add_argument('--seed', type=int, default=1, help='(default: %(default)s)')
    parser.add_argument('--findings', type=Path, default=Path('work_dirs/fuzz'), help='(default: %(default)s)')
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)  # this process fuzzes one target
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f'no target {", ".join(sorted(unknown))}; there are {", ".join(TARGETS)}')
    if args.folder:
        fuzz(args.targets[0], args.runs, args.seed, args.findings, args.folder)
        return
    args.findings.mkdir(parents=True, exist_ok=True)
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    total = found = 0
    for target in args.targets or TARGETS:
        log = args.findings / f'{target}.log'
        flags = ['--runs', str(args.runs or RUNS[target]), '--seed', str(args.seed), '--findings', str(args.findings)]
        with tempfile.TemporaryDirectory(prefix='fuzz-', dir=memory) as folder, log.open('w') as file:
            command = [sys.executable, __file__, target, *flags, '--folder', folder]
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
            report = Path(folder, 'counts.json')
            counts = Counter(json.loads(report.read_text()) if report.exists() else {})
        total, found = total + counts['inputs'], found + bool(code)
        finding = f'FINDING (exit code {code}), see {log}' if code else 'no finding'
        print(f'{target:7} {counts["inputs"]:9,} inputs, {counts["read"]:9,} read: {finding}', flush=True)
    print(f'{total:,} inputs, {found} targets with findings')
    sys.exit(bool(found))


if __name__ == '__main__':
    main()
