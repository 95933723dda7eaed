"""Verification .bin files: what InsightFace and others write, and what the hostile try."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from facemae_mm.datasets import LoadFace, open_faces
from facemae_mm.datasets.verification_bin import MAX_BYTES, load_images_and_bools

IMAGES = [b'one', b'two!', b'three', b'x' * 300, b'y' * 70_000, b'six']
SAME = [True, False, False]


def open_bin(tmp_path, content):
    path = tmp_path / 'x.bin'
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
    return open_faces(path)


def images_of(source):
    return [source.read(i) for i in range(len(source))]


# Genuine files


def test_bin_by_insightface(shared):
    path = shared / 'formats/small_lfw.bin'
    source = open_faces(path)
    images, same = pickle.loads(path.read_bytes())  # trusted: InsightFace's own file
    assert images_of(source) == [image.tobytes() for image in images]
    assert len(source) == 20 and source.same.tolist() == same == [True] * 10
    assert source.identities == [] and (source.labels == -1).all() and source.keys[19] == '19'
    for i in range(20):
        assert LoadFace(size=112)(dict(img_bytes=source.read(i)))['img_shape'] == (112, 112)


def vector(data):
    return np.frombuffer(data, np.uint8)


def writable_column(data):
    return np.frombuffer(data, np.uint8).copy()[:, None]


@pytest.mark.parametrize('pickler', [pickle.Pickler, pickle._Pickler])
@pytest.mark.parametrize('protocol', [3, 4, 5])
@pytest.mark.parametrize('kind', [bytes, vector, writable_column])
@pytest.mark.parametrize('outer', [list, tuple])
def test_what_python_3_writes(tmp_path, pickler, protocol, kind, outer):
    images = [kind(image) for image in IMAGES]
    images[5] = images[0]  # stored once
    file = io.BytesIO()
    pickler(file, protocol).dump(outer([outer(images), outer(SAME)]))
    source = open_bin(tmp_path, file.getvalue())
    assert images_of(source) == [*IMAGES[:5], b'one'] and source.same.tolist() == SAME


def test_arrays_of_numpy_before_2(tmp_path):
    content = pickle.dumps(([vector(b'one'), vector(b'two!')], [True]), 3)
    assert content.count(b'numpy._core.') == 1
    source = open_bin(tmp_path, content.replace(b'numpy._core.', b'numpy.core.'))
    assert images_of(source) == [b'one', b'two!']


def test_what_python_2_writes(tmp_path):
    """Its strings are the images; its memo starts at 1; its array has a shape of longs."""
    text = b'\x80\x02(]q\x01(U\x03oneq\x02T\x05\x00\x00\x00three'
    array = (
        b'cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01b\x87q\x06Rq\x07'
        b'(K\x01\x8a\x01\x04\x85cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xff'
        b'J\xff\xff\xff\xffK\x00tb\x89U\x04two!tb'
    )
    content = text + array + b'U\x04fourq\x0ae]q\x0b(\x88\x89et.'
    expected, same = pickle.loads(content, encoding='bytes')
    source = open_bin(tmp_path, content)
    assert (
        images_of(source) == [*expected[:2], expected[2].tobytes(), expected[3]] == [b'one', b'three', b'two!', b'four']
    )
    assert source.same.tolist() == same == [True, False]


def test_a_full_set_takes_a_moment(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.bytes(int(n)) for n in rng.integers(2000, 5000, 12_000)]
    for kind in (bytes, vector):
        content = pickle.dumps(([kind(image) for image in images], [True] * 6000), 4)
        path = tmp_path / 'x.bin'
        path.write_bytes(content)
        start = time.perf_counter()
        assert load_images_and_bools(path) == (images, [True] * 6000)
        assert time.perf_counter() - start < 10


# Hostile files: refused by name, before anything runs


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ('build', 'name'),
    [
        (lambda mark: Call(os.system, f'touch {mark}'), r'(posix|nt)\.system'),
        (lambda mark: Call(eval, f'open({mark!r}, "w")'), r'builtins\.eval'),
        (lambda mark: Call(open, mark, 'w'), r'io\.open|_io\.open'),
        (lambda mark: Call(getattr, 'x', 'join'), r'builtins\.getattr'),
        (lambda mark: Call(np.fromfile, mark), r'numpy\S*\.fromfile'),
        (lambda mark: np.bool_(True), r'numpy\S*multiarray\.scalar'),
        (lambda mark: np.array([{1: 2}], object), "dtype 'O8'"),
        (lambda mark: np.zeros(3, np.float32), "dtype 'f4'"),
        (lambda mark: np.zeros((2, 2, 3), np.uint8), r'shape \(2, 2, 3\) is no encoded image'),
        (lambda mark: {1: 2}, 'opcode EMPTY_DICT'),
        (lambda mark: {1}, 'opcode EMPTY_SET'),
        (lambda mark: 1.5, 'opcode BINFLOAT'),
        (lambda mark: 1 << 4000, 'opcode LONG4'),
        (lambda mark: 'x' * 101, 'a text of 101 characters'),
        (lambda mark: pickle.UnpicklingError, r'_?pickle\.UnpicklingError'),
    ],
)
def test_everything_else_is_refused_by_name_and_does_not_run(tmp_path, build, name):
    mark = tmp_path / 'mark'
    with pytest.raises(pickle.UnpicklingError, match=name) as error:
        open_bin(tmp_path, ([build(str(mark)), b'x'], [True]))
    assert not mark.exists() and str(tmp_path / 'x.bin') in str(error.value)


def test_bytes_of_python_3_at_protocol_2_need_a_function(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match=r'it asks for ._codecs\.encode'):
        open_bin(tmp_path, pickle.dumps(([b'a', b'b'], [True]), 2))


def integer(value):
    return b'J' + struct.pack('<i', value)


RECONSTRUCT = b'cnumpy.core.multiarray\n_reconstruct\n'


def array(shape=b'K\x03\x85', dtype=b'X\x02\x00\x00\x00u1K\x00K\x01\x87R', data=b'C\x03abc', state=None):
    """An array's opcodes, any part of which may be replaced."""
    dtype = b'cnumpy\ndtype\n' + dtype
    empty = RECONSTRUCT + b'cnumpy\nndarray\nK\x00\x85C\x01b\x87R'
    return empty + (b'(K\x01' + shape + dtype + b'\x89' + data + b't' if state is None else state) + b'b'


def with_image(image):
    return b'\x80\x04](' + image + b'C\x01xe](\x88e\x86.'


HUGE = b'\x8a\xff' + b'\x7f' * 255  # an integer of 2,039 bits
LAUGHS = b')' + b''.join(b'\x94h' + bytes([i]) + b'\x86' for i in range(60))  # 2 to the 60 leaves
HOSTILE = {
    # What the C unpickler allocates on the file's word.
    'memo index': (b'\x80\x04N' + b'r\xff\xff\xff\xff.', 'does not hold two lists'),
    'recalled index': (b'\x80\x04j\xff\xff\xff\xff.', r'do not fit together \(KeyError\(4294967295\)\)'),
    'BINBYTES': (with_image(b'B\xff\xff\xff\x7fabc'), 'expected 2147483647 bytes'),
    'BINBYTES8': (with_image(b'\x8e' + struct.pack('<Q', 1 << 62)), f'expected {1 << 62} bytes'),
    'BINBYTES8 above all': (with_image(b'\x8e' + b'\xff' * 8), 'bytes8 byte count'),
    'BYTEARRAY8': (with_image(b'\x96' + struct.pack('<Q', 1 << 62)), f'expected {1 << 62} bytes'),
    'BINUNICODE8': (with_image(b'\x8d' + struct.pack('<Q', 1 << 62)), f'expected {1 << 62} bytes'),
    'BINSTRING': (with_image(b'T\xff\xff\xff\xff'), 'byte count < 0'),
    'FRAME': (b'\x80\x04\x95' + struct.pack('<Q', 1 << 62) + b'N.', 'does not hold two lists'),
    'LONG4': (b'\x80\x04\x8b\xff\xff\xff\x7f.', 'not enough data'),
    # Floods.
    'lists': (b'\x80\x04' + b']' * 5_000_000 + b'.', 'more than 322500 opcodes'),
    'nested tuples': (b'\x80\x04)' + b'\x85' * 300_000 + b'N' * 5_000_000, 'more than .* opcodes'),
    'memo': (b'\x80\x04N' + b'\x94' * 5_000_000 + b'.', 'more than .* opcodes'),
    'nested lists': (b'\x80\x04' + b']' * 4000 + b'a' * 3999 + b'.', 'does not hold two lists'),
    'deep image': (with_image(b')' + b'\x85' * 9000), 'image 0 is tuple, not bytes'),
    'list in itself': (b'\x80\x04]\x94h\x00ah\x00a.', 'image 0 is list, not bytes'),
    'digits': (b'\x80\x04I' + b'9' * 5_000_000 + b'\n.', 'Exceeds the limit'),
    'long digits': (b'\x80\x04L' + b'9' * 5_000_000 + b'L\n.', 'Exceeds the limit'),
    'long name': (b'\x80\x04c' + b'a' * 5_000_000 + b'\nb\n.', "it asks for 'aaa"),
    'text without quotes': (b'\x80\x04S' + b'a' * 5_000_000 + b'\n.', 'no string quotes'),
    'tuple as name': (b'\x80\x04' + LAUGHS + b'\x8c\x01x\x93.', 'whose name is no text'),
    'tuple as shape': (with_image(array(LAUGHS)), 'an array of shape'),
    'tuple as dtype': (with_image(array(dtype=LAUGHS + b'\x85R')), 'an array has dtype'),
    'calls with many arguments': (
        b'\x80\x04(' + b'N' * 100_000 + b't\x94' + RECONSTRUCT + b'\x94' + b'h\x01h\x00R' * 60_000 + bytes(5 << 20),
        'it makes a call that no array needs',
    ),
    'name that writes to the terminal': (b'\x80\x04ca\x1b[2J\nb\n.', r"it asks for 'a\\x1b\[2J\.b'"),
    # Opcodes that name or build objects.
    'PERSID': (b'\x80\x04Pos.system\n.', 'opcode PERSID'),
    'BINPERSID': (b'\x80\x04NQ.', 'opcode BINPERSID'),
    'EXT1': (b'\x80\x04\x82\x01.', 'opcode EXT1'),
    'EXT4': (b'\x80\x04\x84\x01\x00\x00\x00.', 'opcode EXT4'),
    'INST': (b'\x80\x04(ios\nsystem\n.', 'opcode INST'),
    'OBJ': (b'\x80\x04(cnumpy\ndtype\no.', 'opcode OBJ'),
    'NEWOBJ': (b'\x80\x04cnumpy\ndtype\n)\x81.', 'opcode NEWOBJ'),
    'NEXT_BUFFER': (b'\x80\x05\x97.', 'opcode NEXT_BUFFER'),
    'DUP': (b'\x80\x04N2.', 'opcode DUP'),
    'unknown': (b'\x80\x04\xff.', "opcode b'.xff' unknown"),
    'BUILD on a list': (b'\x80\x04]Nb.', 'sets the state of what is no array'),
    'BUILD on a function': (b'\x80\x04cnumpy\ndtype\nNb.', 'sets the state of what is no array'),
    'BUILD on a class': (b'\x80\x04cnumpy\nndarray\nNb.', 'sets the state of what is no array'),
    'call of a text': (b'\x80\x04\x8c\x01x)R.', 'it makes a call that no array needs'),
    'call of a class': (b'\x80\x04cnumpy\nndarray\n)R.', 'it makes a call that no array needs'),
    'call with a list': (b'\x80\x04cnumpy\ndtype\n]R.', 'it makes a call that no array needs'),
    'call of an array': (with_image(array() + b')R'), 'it makes a call that no array needs'),
    'call without arguments': (b'\x80\x04cnumpy\ndtype\n)R.', 'do not fit together'),
    # Opcodes that do not fit together.
    'nothing on the stack': (b'\x80\x04.', 'do not fit together'),
    'no mark': (b'\x80\x04t.', 'do not fit together'),
    'item of a tuple': (b'\x80\x04)Na.', 'do not fit together'),
    'items of bytes': (b'\x80\x04C\x01a(NNe.', 'do not fit together'),
    # Arrays.
    'shape, huge': (with_image(array(HUGE + b'\x85')), 'an array of shape'),
    'shape, many': (with_image(array(b'(' + HUGE + b'\x94' + b'h\x00' * 9000 + b't')), 'an array of shape'),
    'shape, product': (with_image(array(b'(' + integer(2**31 - 1) * 9000 + b't')), 'an array of shape'),
    'shape, negative': (with_image(array(integer(-3) + integer(-1) + b'\x86')), r'shape \(-3, -1\)'),
    'shape, empty': (with_image(array(b')', data=b'C\x00')), r'shape \(\)'),
    'shape, list': (with_image(array(b'](K\x03e')), r'shape \[3\]'),
    'shape, number': (with_image(array(b'K\x03')), 'shape 3'),
    'shape, none': (with_image(array(b'N')), 'shape None'),
    'shape, nested': (with_image(array(b'K\x03\x85\x85')), r'shape \(\(3,\),\)'),
    'shape, others': (with_image(array(b'K\x01K\x03\x86')), r'shape \(1, 3\)'),
    'shape, other length': (with_image(array(b'K\x04\x85')), r'shape \(4,\)'),
    'data, text': (with_image(array(data=b'\x8c\x03abc')), 'does not hold bytes'),
    'data, list': (with_image(array(data=b'](K\x01K\x02K\x03e')), 'does not hold bytes'),
    'data, itself': (with_image(array(data=array())), 'does not hold bytes'),
    'dtype, function': (with_image(array(dtype=b'')), 'does not hold bytes'),
    'dtype, bytes': (with_image(array(dtype=b'C\x02f4\x85R')), "dtype b'f4'"),
    'dtype, none at all': (with_image(array(dtype=b')R')), 'do not fit together'),
    'state, none': (with_image(array(state=b'N')), 'do not fit together'),
    'state, short': (with_image(array(state=b')')), 'not enough values to unpack'),
    'state, text': (with_image(array(state=b'\x8c\x05abcde')), 'does not hold bytes'),
}  # fmt: skip

LOAD = """
import importlib.util, json, pickle, resource, sys, time
spec = importlib.util.spec_from_file_location('verification_bin', sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)
answers = []
for path in sys.argv[2:]:
    start = time.perf_counter()
    try:
        module.load_images_and_bools(path)
        answer = 'read'
    except (ValueError, pickle.UnpicklingError) as error:
        answer = str(error)
    answers.append((answer, time.perf_counter() - start))
print(json.dumps(answers))
"""


@pytest.fixture(scope='module')
def answers(repository, tmp_path_factory):
    """Name → (answer, seconds) of a process that may take 150 MiB; the files have at most 5 MB."""
    folder = tmp_path_factory.mktemp('hostile')
    paths = [folder / f'{i}.bin' for i in range(len(HOSTILE))]
    for path, (content, _) in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(content)
    command = [sys.executable, '-c', LOAD, repository / 'facemae_mm/datasets/verification_bin.py', *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(HOSTILE, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickles_are_refused_in_bounded_time_and_memory(answers, name):
    answer, seconds = answers[name]
    assert re.search(HOSTILE[name][1], answer) and '.bin' in answer and len(answer) < 600
    assert re.search('Download it (again|from a source you trust)', answer) and seconds < 10


def test_a_memo_index_costs_nothing(tmp_path):
    content = b'\x80\x04](C\x01ar\xff\xff\xff\xffj\xff\xff\xff\xffe](\x88e\x86.'
    assert images_of(open_bin(tmp_path, content)) == [b'a', b'a']


def test_an_array_without_state_is_an_empty_image(tmp_path):
    source = open_bin(tmp_path, with_image(array().partition(b'(K')[0]))
    assert images_of(source) == [b'', b'x']
    with pytest.raises(ValueError, match=r'is empty \(0 bytes\)'):
        LoadFace()(dict(img_bytes=source.read(0)))


@pytest.mark.filterwarnings('ignore:invalid escape:DeprecationWarning')
def test_random_damage_is_refused_or_harmless(tmp_path):
    """Bytes changed anywhere, half the files cut off too: one of the errors above, or bytes and bools."""
    rng = np.random.default_rng(0)
    whole = [
        pickle.dumps(([b'one', vector(b'two!'), writable_column(b'three'), b'four'], SAME[:2]), protocol)
        for protocol in (3, 4, 5)
    ]
    refused, path = 0, tmp_path / 'x.bin'
    for i in range(1000):
        data = bytearray(whole[i % 3])
        for _ in range(rng.integers(1, max(len(data) // 10, 2))):
            data[rng.integers(len(data))] = rng.integers(256)
        if i % 2:
            data[rng.integers(len(data)) :] = b''
        path.write_bytes(data)
        try:
            images, same = load_images_and_bools(path)
        except (ValueError, pickle.UnpicklingError) as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert {*map(type, images)} == {bytes} and {*map(type, same)} == {bool}
    assert 700 < refused < 1000


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([b'a', b'b'], 'does not hold two lists'),
        (([b'a', b'b'],), 'does not hold two lists'),
        (b'\x80\x04N.', 'does not hold two lists'),
        (([b'a', b'b', b'c'], [True]), '3 images do not make 1 pairs'),
        (([], []), '0 images do not make 0 pairs'),
        (([b'a', 'b'], [True]), 'image 1 is str, not bytes'),
        (([b'a', b'b'], [1]), 'entry 0 of the second list is int, not bool'),
    ],
)
def test_another_content(tmp_path, content, message):
    with pytest.raises(ValueError, match=f'no verification set: .*{message}.*Download it again'):
        open_bin(tmp_path, content)


def test_damaged_pickles(tmp_path, shared):
    whole = (shared / 'formats/small_lfw.bin').read_bytes()
    for size in (2, 50, 5000, len(whole) - 1):
        with pytest.raises(pickle.UnpicklingError, match=r'x\.bin cannot be read'):
            open_bin(tmp_path, whole[:size])


def test_a_file_above_one_gib_is_refused_unread(tmp_path):
    path = tmp_path / 'x.bin'
    with path.open('wb') as file:
        file.write(b'\x80\x04')
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=r'x\.bin is 1,073,741,825 bytes.*Give the images as a folder'):
        open_faces(path)
