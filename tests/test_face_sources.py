"""Folders and .rec files: what they hold, and the first wrong thing named."""

import math
import os
import pickle
import re
import struct

import numpy as np
import pytest

from facemae_mm.datasets import LoadFace, open_faces

MAGIC = bytes.fromhex('0a23d7ce')


def split_at_magic(data):
    """Parts of a record as the format defines them, by a literal walk in steps of four bytes."""
    parts, start = [], 0
    for i in range(0, len(data) - 3, 4):
        if data[i : i + 4] == MAGIC:
            parts.append(data[start:i])
            start = i + 4
    return [*parts, data[start:]]


def record(data):
    parts, out = split_at_magic(data), b''
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        out += MAGIC + struct.pack('<I', flag << 29 | len(part)) + part + b'\0' * (-len(part) % 4)
    return out


def image_record(label, image=b'image', number=0):
    if isinstance(label, list):
        labels = struct.pack(f'<{len(label)}f', *label)
        return struct.pack('<IfQQ', len(label), 0, number, 0) + labels + image
    return struct.pack('<IfQQ', 0, label, number, 0) + image


def write_rec(folder, records):
    """train.rec and train.idx of {key: data}; data is framed unless it starts with the magic."""
    rec, idx = b'', ''
    for key, data in records.items():
        idx += f'{key}\t{len(rec)}\n'
        rec += data if data.startswith(MAGIC) else record(data)
    (folder / 'train.rec').write_bytes(rec)
    (folder / 'train.idx').write_text(idx)
    return folder / 'train.rec'


def write_folder(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def images_of(source):
    return {source.keys[i]: source.read(i) for i in range(len(source))}


# Genuine files


def test_record_file_by_mxnet_holds_the_faces_that_went_into_it(shared):
    source = open_faces(shared / 'formats/lfw60_mxnet/train.rec')
    assert len(source) == 600 and list(source.keys) == [str(i) for i in range(1, 601)]
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [i // 10 for i in range(600)]
    assert source.identities == [str(i) for i in range(60)]
    property_file = (shared / 'formats/lfw60_mxnet/property').read_text()
    assert property_file.strip() == f'{len(source.identities)},112,112'
    # Packed from LFW: the first ten images of the first 60 identities that have ten.
    faces = shared / 'faces/lfw112'
    folders = [sorted(folder.iterdir()) for folder in sorted(faces.iterdir())]
    expected = [path for folder in folders if len(folder) >= 10 for path in folder[:10]][:600]
    assert [source.read(i) for i in range(600)] == [path.read_bytes() for path in expected]


def test_record_file_without_identity_header(shared):
    folder = shared / 'formats/adaface_sample'
    source = open_faces(folder / 'train.rec')
    rows = sorted(line.split('\t') for line in (folder / 'train.lst').read_text().splitlines())
    assert len(source) == 8 and list(source.keys) == [key for key, *_ in rows]
    assert [source.identities[label] for label in source.labels] == [label for _, label, _ in rows]
    for i in range(8):
        assert LoadFace(size=112)(dict(img_bytes=source.read(i)))['img_shape'] == (112, 112)


def test_lfw_as_folders(shared):
    source = open_faces(shared / 'faces/lfw112')
    assert (len(source), len(source.identities)) == (13233, 5749)
    assert source.keys == sorted(source.keys) and source.identities == sorted(source.identities)
    assert source.labels.dtype == np.int64 and set(source.labels.tolist()) == set(range(5749))
    assert all(
        key.startswith(f'{source.identities[label]}/') for key, label in zip(source.keys, source.labels, strict=True)
    )
    for i in (0, 7000, 13232):
        data = source.read(i)
        assert data == (source.path / f'{source.keys[i]}.jpg').read_bytes()
        assert LoadFace(size=112)(dict(img_bytes=data))['img'].shape == (112, 112, 3)


# Folders


def test_folder_takes_image_files_only_in_the_order_of_their_keys(tmp_path):
    write_folder(tmp_path, 'b/2.PNG', 'b/1.v2.jpg', 'a b/x.Jpeg', 'a/x.tif', 'a/y.webp')
    write_folder(tmp_path, 'a/.hidden.jpg', 'a/notes.txt', 'a/deeper/z.jpg', '.git/x.jpg', 'top.jpg')
    (tmp_path / 'a/folder.png').mkdir()
    source = open_faces(str(tmp_path))
    assert source.keys == ['a b/x', 'a/x', 'a/y', 'b/1.v2', 'b/2']
    assert source.identities == ['a', 'a b', 'b']
    assert source.labels.tolist() == [1, 0, 0, 2, 2]
    assert images_of(source)['b/2'] == b'b/2.PNG' and images_of(source)['b/1.v2'] == b'b/1.v2.jpg'


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        ([], 'no images and no identity folders'),
        (['.hidden/a.jpg'], 'no images and no identity folders'),
        (['a.jpg', 'b.jpg'], 'images but no identity folders.*folder of their own'),
        (['train.rec'], 'Give .*train.rec itself'),
        (['bob/1.jpg', 'eve/notes.txt'], 'eve holds no image'),
        (['bob/1.jpg', 'eve/1/1.jpg'], 'eve holds no image.*directly in it'),
        (['bob/1.jpg', 'bob/1.png'], r'1\.(jpg|png) and 1\.(jpg|png), which share the key bob/1\b'),
    ],
)
def test_folder_errors(tmp_path, names, message):
    write_folder(tmp_path, *names)
    with pytest.raises(ValueError, match=message) as error:
        open_faces(tmp_path)
    assert str(tmp_path) in str(error.value)


# Records


def test_records_come_by_key_with_labels_in_a_row(tmp_path):
    path = write_rec(
        tmp_path,
        {
            7: image_record(30.0, b'x'),
            2: image_record([5.0, 99.5, -1.0], b'yy'),
            10: image_record(5.0, b'z' * 20_001),
        },
    )
    source = open_faces(path)
    assert images_of(source) == {'2': b'yy', '7': b'x', '10': b'z' * 20_001}
    assert source.labels.tolist() == [0, 1, 0] and source.identities == ['5', '30']


def test_identity_header_bounds_the_images(tmp_path):
    records = {
        0: image_record([3.0, 5.0], b''),
        1: image_record(4.0, b'a'),
        2: image_record(9.0, b'b'),
        3: image_record([1.0, 2.0], b''),
        4: image_record([2.0, 3.0], b''),
    }
    source = open_faces(write_rec(tmp_path, records))
    assert images_of(source) == {'1': b'a', '2': b'b'} and source.identities == ['4', '9']


@pytest.mark.parametrize('size', [0, 40_000])
def test_parts_are_rejoined_with_the_magic_between_them(tmp_path, size):
    filler = bytes(range(1, 5)) * (size // 4)
    image = b'1234' + MAGIC + filler + MAGIC + MAGIC + b'56' + MAGIC + b'78' + b'x'
    assert len(split_at_magic(image_record(0.0, image))) == 4  # the last stands unaligned
    header = image_record(1.0, b'tail', number=int.from_bytes(MAGIC, 'little'))
    assert split_at_magic(header)[0] == header[:8]  # cut within the image header
    array = image_record([2.0, *struct.unpack('<f', MAGIC)], b'array')
    assert [len(part) for part in split_at_magic(array)] == [28, 5]
    source = open_faces(write_rec(tmp_path, {0: image_record(0.0, image), 1: header, 2: array}))
    assert images_of(source) == {'0': image, '1': b'tail', '2': b'array'}
    assert source.identities == ['0', '1', '2']


def test_a_source_travels_without_its_file_handle(tmp_path):
    source = open_faces(write_rec(tmp_path, {1: image_record(0.0, b'a')}))
    assert source.read(0) == b'a'
    assert pickle.loads(pickle.dumps(source)).read(0) == b'a'


def test_each_process_opens_the_file_for_itself(tmp_path, monkeypatch):
    source = open_faces(write_rec(tmp_path, {1: image_record(0.0, b'a')}))
    assert source.read(0) == b'a'
    parents = source._records._file
    assert source.read(0) == b'a' and source._records._file is parents
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    assert source.read(0) == b'a' and source._records._file is not parents


def framed(data, word=None):
    return MAGIC + struct.pack('<I', len(data) if word is None else word) + data


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (struct.pack('<I', 0x3ED7230A) + b'\0' * 40, '0x3ed7230a, an old revision.*anew'),
        (b'\1\2\3\4' + b'\0' * 40, 'magic 0x04030201 instead of 0xced7230a'),
        (framed(image_record(0.0), word=10_000), 'cut off.*Copy'),
        (framed(image_record(0.0), word=(1 << 29) - 1), 'cut off.*Copy'),
        (framed(image_record(0.0), word=2 << 29 | 29), 'part flag 2 where 0 or 1'),
        (MAGIC, 'cut off'),
        (framed(b'short'), '5 bytes are too few'),
        (framed(image_record([1.0], b'')[:24]), '24 bytes are too few'),
        (image_record(math.nan), 'label nan is no class number'),
        (image_record(math.inf), 'label inf'),
        (image_record(-1.0), r'label -1\.0'),
        (image_record([0.5]), r'label 0\.5'),
    ],
)
def test_a_damaged_record_is_named(tmp_path, data, message):
    path = write_rec(tmp_path, {3: image_record(0.0)})
    at = path.stat().st_size
    with path.open('ab') as file:
        file.write(data if data[:4] in (MAGIC, b'\1\2\3\4') or data[1] == 0x23 else record(data))
    (tmp_path / 'train.idx').write_text(f'3\t0\n8\t{at}\n')
    with pytest.raises(ValueError, match=message) as error:
        open_faces(path)
    assert str(error.value).startswith(f'{path}, record 8 at byte {at}: ')


def test_parts_that_do_not_follow_each_other(tmp_path):
    start = framed(image_record(0.0, b'abcd'), word=1 << 29 | 28)
    path = write_rec(tmp_path, {0: start + framed(b'next')})
    with pytest.raises(ValueError, match='part flag 0 where 2 or 3 must stand'):
        open_faces(path).read(0)


def test_a_record_without_image_is_named_when_read(tmp_path):
    source = open_faces(write_rec(tmp_path, {5: image_record([1.0, 2.0], b'')}))
    with pytest.raises(ValueError, match='record 5 at byte 0: no image follows'):
        source.read(0)
    claims_more = struct.pack('<IfQQ', 2**32 - 1, 0, 0, 0) + struct.pack('<f', 1.0) + b'image'
    source = open_faces(write_rec(tmp_path, {6: claims_more}))
    with pytest.raises(ValueError, match='record 6 at byte 0: no image follows'):
        source.read(0)


def test_a_file_cut_off_after_it_was_opened(tmp_path):
    path = write_rec(tmp_path, {5: image_record(0.0, b'x' * 50_000)})
    source = open_faces(path)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(ValueError, match='record 5 at byte 0: 29992 of 50024 bytes'):
        source.read(0)


@pytest.mark.parametrize(
    ('index', 'error', 'message'),
    [
        (None, FileNotFoundError, r'train\.idx does not exist.*copy it'),
        ('', ValueError, r'train\.idx is empty'),
        ('1\t0\n2\t99999\n', ValueError, 'key 2 points at byte 99999, but .* 40 bytes.*copy both'),
        ('1\t-8\n', ValueError, 'key 1 points at byte -8'),
        ('1\t0\n1\t0\n', ValueError, 'key 1 twice'),
        ('1\t0\nx\ty\n', ValueError, 'no list of lines key<TAB>offset'),
        ('1\t0\t5\n', ValueError, 'no list of lines key<TAB>offset'),
        ('1\n', ValueError, 'no list of lines key<TAB>offset'),
        ('99999999999999999999\t0\n', ValueError, 'no list of lines key<TAB>offset'),
    ],
)
def test_index_errors(tmp_path, index, error, message):
    path = write_rec(tmp_path, {1: image_record(0.0)})
    assert path.stat().st_size == 40
    if index is None:
        (tmp_path / 'train.idx').unlink()
    else:
        (tmp_path / 'train.idx').write_text(index)
    with pytest.raises(error, match=message):
        open_faces(path)


@pytest.mark.parametrize(
    ('end', 'message'),
    [
        (4.0, 'lacks key 2, but the identity header .* images 1 … 3'),
        (9.0, 'lacks key 2'),
        (1e38, 'lacks key 2'),
        (1.0, r'end before key 1\.0'),
        (math.nan, 'end before key nan'),
    ],
)
def test_identity_header_errors(tmp_path, end, message):
    records = {0: image_record([end, 9.0]), 1: image_record(0.0), 3: image_record(0.0)}
    with pytest.raises(ValueError, match=message):
        open_faces(write_rec(tmp_path, records))


# Told apart by content


def test_kinds_are_told_apart_by_content(tmp_path):
    path = write_rec(tmp_path, {1: image_record(0.0, b'a')})
    renamed = path.rename(tmp_path / 'faces.zip')
    (tmp_path / 'train.idx').rename(tmp_path / 'faces.idx')
    assert open_faces(renamed).read(0) == b'a'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'hello', 'starts with the bytes 68 65 6c 6c'),
        (b'\x0a\x23', 'starts with the bytes 0a 23'),
    ],
)
def test_unknown_content(tmp_path, content, message):
    path = tmp_path / 'train.rec'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f'{path} {message}')):
        open_faces(path)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere does not exist\. Give a folder'):
        open_faces(tmp_path / 'nowhere')
