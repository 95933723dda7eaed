"""Reading, decoding and writing of record files, against MXNet, torchvision's ImageFolder and the encoder alone.

write_rate_vs_encode encodes as tools/prepare_faces.py does by default (PNG). JPEG of 5 KB is encoded in some 60 µs; the
search for the magic, the copy to the page cache and the fsync at the end take 10 µs and more, so its ratio is lower.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from side_by_side import peak_mib, print_ratio

from facemae_mm.datasets import FaceRecordDataset, open_faces
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.recordio import RecordWriter

EPILOG = """\
MXNet is no part of this project and needs an environment of its own:
  python3.11 -m venv mxnet-env && mxnet-env/bin/pip install 'numpy<1.24' mxnet==1.9.1 'opencv-python-headless<4.9'
  python benchmarks/records.py --mxnet-python mxnet-env/bin/python"""

#: MXNet reads as InsightFace's dataset does; with OpenCV beside it, unpack_img is timed too, and the faster one counts.
MXNET = r"""
import re, sys, time
import numpy as np, mxnet as mx
rec, images = sys.argv[1], int(sys.argv[2])
file = mx.recordio.MXIndexedRecordIO(rec[:-3] + 'idx', rec, 'r')
def imdecode(key):
    header, image = mx.recordio.unpack(file.read_idx(key))
    return mx.image.imdecode(image).asnumpy()
def unpack_img(key):
    return mx.recordio.unpack_img(file.read_idx(key))[1]
readers = [imdecode] + [unpack_img] * (mx.recordio.cv2 is not None)
print('ready', *(reader.__name__ for reader in readers), flush=True)
for line in sys.stdin:
    keys = (np.random.default_rng(int(line)).permutation(images) + 1).tolist()
    rates = []
    for reader in readers:
        start = time.perf_counter()
        for key in keys:
            reader(key)
        rates.append(images / (time.perf_counter() - start))
    print(max(rates), int(re.search(r'VmHWM:\s*(\d+)', open('/proc/self/status').read())[1]) / 1024, flush=True)
"""


#: The other sides' memory, each in a process of its own.
OURS = """
import sys
from facemae_mm.datasets import FaceRecordDataset
for sample in FaceRecordDataset(sys.argv[1], [dict(type='LoadFace', size=112)]): pass
"""
IMAGE_FOLDER = """
import sys
import numpy as np
from torchvision.datasets import ImageFolder
for sample in ImageFolder(sys.argv[1], transform=np.asarray): pass
"""


class MXNetReader:
    """MXNet in a process of its own that runs a round when it is told to.

    Args:
        python: Interpreter of its environment.
        rec: The record file.
        images: In it.

    Raises:
        RuntimeError: It does not start.
    """

    def __init__(self, python: str, rec: Path, images: int) -> None:
        command = [python, '-c', MXNET, str(rec), str(images)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.readers = self._process.stdout.readline().split()[1:]
        if not self.readers:
            raise RuntimeError(f'{python} cannot read records with MXNet. Install it as --help says.')
        self.peak_mib = 0.0

    def __call__(self, seed: int) -> float:
        """One round: images a second."""
        self._process.stdin.write(f'{seed}\n')
        self._process.stdin.flush()
        rate, self.peak_mib = map(float, self._process.stdout.readline().split())
        return rate

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def synthetic_jpegs(count: int) -> list[bytes]:
    """Smooth pictures with some noise, 112×112, as large as LFW's faces (about 5 KB)."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        smooth = cv2.resize(
            rng.uniform(0, 255, (9, 9, 3)).astype(np.float32), (112, 112), interpolation=cv2.INTER_CUBIC
        )
        face = (smooth + rng.normal(0, 4, (112, 112, 1))).clip(0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode('.jpg', face, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return jpegs


def write_sets(jpegs: list[bytes], folder: Path) -> tuple[Path, Path]:
    """The same images as train.rec and as identity folders of ten."""
    with RecordWriter(folder / 'train.rec') as writer:
        for number, jpeg in enumerate(jpegs):
            writer.write(number // 10, jpeg)
            path = folder / f'images/{number // 10:06d}/{number % 10}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
    return folder / 'train.rec', folder / 'images'


def rate(work: Callable[[object], object], items: list) -> float:
    """Items a second."""
    start = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - start)


def shuffled(count: int, seed: int) -> list[int]:
    """0 … count − 1 in a random order."""
    return np.random.default_rng(seed).permutation(count).tolist()


def read_records(rec: Path, seed: int) -> float:
    """Random reads and decoding, as a DataLoader's worker does them: images a second."""
    dataset = FaceRecordDataset(rec, [dict(type='LoadFace', size=112)])
    return rate(dataset.__getitem__, shuffled(len(dataset), seed))


def read_image_folder(folder: Path, seed: int) -> float:
    """The same by torchvision's ImageFolder with its own loader (PIL)."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(folder, transform=np.asarray)
    return rate(images.__getitem__, shuffled(len(images), seed))


def encode(faces: list[np.ndarray], extension: str) -> float:
    """Encoding as tools/prepare_faces.py does it, nothing written: images a second."""
    return rate(lambda face: encoded(face, extension), faces)


def write(faces: list[np.ndarray], extension: str, folder: Path) -> float:
    """The same, and writing a record file, closed and on its disk."""
    start = time.perf_counter()
    with RecordWriter(folder / 'written.rec') as writer:
        for number, face in enumerate(faces):
            writer.write(number // 10, encoded(face, extension))
    seconds = time.perf_counter() - start
    for path in folder.glob('written.*'):
        path.unlink()
    return len(faces) / seconds


def encoded(face: np.ndarray, extension: str) -> bytes:
    """PNG, or JPEG at 95."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension == '.jpg' else []
    return cv2.imencode(extension, face, options)[1].tobytes()


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--faces', help='set of 112×112 JPEG faces (default: synthetic pictures)')
    parser.add_argument('--images', type=int, default=5000, help='how many of them (default: %(default)s)')
    parser.add_argument('--full', action='store_true', help='50,000 images, or all of the set')
    parser.add_argument('--rounds', type=int, default=5, help='of each side (default: %(default)s)')
    parser.add_argument(
        '--mxnet-python',
        default=os.environ.get('FACEMAE_MXNET_PYTHON'),
        help="Python with MXNet 1.9.1 (default: the environment's FACEMAE_MXNET_PYTHON)",
    )
    args = parser.parse_args()
    count = 50_000 if args.full else args.images
    if args.faces:
        source = open_faces(args.faces)
        jpegs = [source.read(i) for i in shuffled(len(source), 0)[:count]]
    else:
        jpegs = synthetic_jpegs(count)
    size = sum(map(len, jpegs)) / len(jpegs)
    print(f'{len(jpegs):,} images of {size:,.0f} bytes; rates are images a second, one process')
    seeds = iter(range(10**6))
    with tempfile.TemporaryDirectory(prefix='records-') as name:
        folder = Path(name)
        rec, images = write_sets(jpegs, folder)
        lines = []
        if args.mxnet_python:
            mxnet = MXNetReader(args.mxnet_python, rec, len(jpegs))
            print(f'MXNet reads by {" and ".join(mxnet.readers)}; the faster counts')
            lines.append(
                print_ratio(
                    'read_rate_vs_mxnet',
                    lambda: read_records(rec, next(seeds)),
                    lambda: mxnet(next(seeds)),
                    args.rounds,
                )
            )
            print(f'  peak memory: ours {peak_mib(OURS, rec):,.0f} MiB, MXNet {mxnet.peak_mib:,.0f} MiB')
            mxnet.close()
        else:
            lines.append('ratio read_rate_vs_mxnet skipped')
        lines.append(
            print_ratio(
                'read_rate_vs_imagefolder',
                lambda: read_records(rec, next(seeds)),
                lambda: read_image_folder(images, next(seeds)),
                args.rounds,
            )
        )
        memory = peak_mib(OURS, rec), peak_mib(IMAGE_FOLDER, images)
        print('  peak memory: ours {:,.0f} MiB, ImageFolder {:,.0f} MiB'.format(*memory))
        faces = [decode_face(jpeg, 'face') for jpeg in jpegs[:20_000]]
        for name, extension in (('write_rate_vs_encode', '.png'), ('write_rate_vs_encode_jpeg', '.jpg')):
            ours, alone = partial(write, faces, extension, folder), partial(encode, faces, extension)
            lines.append(print_ratio(name, ours, alone, args.rounds))
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
