"""MXNet 1.9.1 reads what RecordWriter writes, and the other way round; needs a Python of MXNet's own.

FACEMAE_MXNET_PYTHON names it: `python3.11 -m venv mxnet-env && mxnet-env/bin/pip install 'numpy<1.24' mxnet==1.9.1`.
"""

import json
import os
import subprocess

import numpy as np
import pytest

from facemae_mm.datasets import open_faces
from facemae_mm.datasets.recordio import MAGIC, RecordWriter

#: Payloads that bend the format: every remainder of a length by 4, the magic aligned and not, at the start, the end,
#: twice in a row, and as all there is.
PAYLOADS = [
    b'a',
    b'ab',
    b'abc',
    b'abcd',
    b'abcd' + MAGIC + b'efgh',
    b'ab' + MAGIC + b'cd',
    MAGIC,
    MAGIC + b'tail',
    b'head' + MAGIC,
    b'head' + MAGIC + MAGIC + b'x' + MAGIC,
    bytes(range(256)) * 80,
]

#: Each payload's identity: two of one image, one of nine.
LABELS = [0, 1, *[2] * (len(PAYLOADS) - 2)]

READ = """
import json, sys
import mxnet as mx
file = mx.recordio.MXIndexedRecordIO(sys.argv[1][:-3] + 'idx', sys.argv[1], 'r')
found = {}
for key in file.keys:
    header, data = mx.recordio.unpack(file.read_idx(key))
    label = [float(number) for number in getattr(header.label, 'flat', [header.label])]
    found[key] = header.flag, label, header.id, header.id2, data.hex()
print(json.dumps(found))
"""

WRITE = """
import json, sys
import mxnet as mx
file = mx.recordio.MXIndexedRecordIO(sys.argv[1][:-3] + 'idx', sys.argv[1], 'w')
for key, label, data in json.load(sys.stdin):
    header = mx.recordio.IRHeader(0, label, key, 0)
    file.write_idx(key, mx.recordio.pack(header, bytes.fromhex(data)))
file.close()
"""


@pytest.fixture(scope='module')
def mxnet():
    """Runs a script by MXNet's Python; gives what it prints."""
    python = os.environ.get('FACEMAE_MXNET_PYTHON')
    if not python:
        pytest.skip('FACEMAE_MXNET_PYTHON names no Python with MXNet 1.9.1')

    def run(script, path, text=''):
        done = subprocess.run([python, '-c', script, path], input=text, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def write_by_mxnet(mxnet, path, records):
    """Records (key, label or labels, payload)."""
    mxnet(WRITE, path, json.dumps([(key, label, data.hex()) for key, label, data in records]))


def identity_ranges(labels):
    """Records after the images, (key, (first, last + 1), b''), and the header record, as InsightFace packs them."""
    starts = [1, *(np.flatnonzero(np.diff(labels)) + 2).tolist(), len(labels) + 1]
    end = starts[-1]
    ranges = [(end + n, pair, b'') for n, pair in enumerate(zip(starts[:-1], starts[1:]))]
    return (0, (end, end + len(ranges)), b''), ranges


def test_mxnet_reads_what_the_writer_writes(tmp_path, mxnet):
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for label, payload in zip(LABELS, PAYLOADS):
            writer.write(label, payload)
    found = json.loads(mxnet(READ, tmp_path / 'train.rec'))
    header, ranges = identity_ranges(LABELS)
    expected = {str(key): [2, list(pair), key, 0, ''] for key, pair, _ in [header, *ranges]}
    for key, (label, payload) in enumerate(zip(LABELS, PAYLOADS), 1):
        expected[str(key)] = [0, [label], key, 0, payload.hex()]
    assert found == expected


def test_the_writer_and_mxnet_write_the_same_bytes(tmp_path, mxnet):
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for label, payload in zip(LABELS, PAYLOADS):
            writer.write(label, payload)
    header, ranges = identity_ranges(LABELS)
    images = zip(range(1, len(PAYLOADS) + 1), LABELS, PAYLOADS)
    write_by_mxnet(mxnet, tmp_path / 'theirs.rec', [header, *images, *ranges])
    for suffix in ('.rec', '.idx'):
        assert (tmp_path / f'theirs{suffix}').read_bytes() == (tmp_path / f'train{suffix}').read_bytes()


def test_records_of_mxnet_with_identity_header(tmp_path, mxnet):
    header, ranges = identity_ranges(LABELS)
    images = zip(range(1, len(PAYLOADS) + 1), LABELS, PAYLOADS)
    write_by_mxnet(mxnet, tmp_path / 'train.rec', [header, *images, *ranges])
    source = open_faces(tmp_path / 'train.rec')
    assert [source.read(i) for i in range(len(source))] == PAYLOADS
    assert source.labels.tolist() == LABELS and source.identities == ['0', '1', '2']


def test_records_of_mxnet_without_identity_header(tmp_path, mxnet):
    # Array labels begin with the identity; im2rec's keys start at 0.
    arrays = [[label, 0.5, -1][: 1 + n % 3] for n, label in enumerate(LABELS)]
    write_by_mxnet(
        mxnet,
        tmp_path / 'train.rec',
        [
            (key, array if len(array) > 1 else array[0], payload)
            for key, (array, payload) in enumerate(zip(arrays, PAYLOADS))
        ],
    )
    source = open_faces(tmp_path / 'train.rec')
    assert [source.read(i) for i in range(len(source))] == PAYLOADS
    assert source.labels.tolist() == LABELS
