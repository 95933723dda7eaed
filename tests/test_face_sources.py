"""Folders and .rec files: what they hold, and the first wrong thing named."""

import math
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest

from facemae_mm.datasets import LoadFace, open_faces, recordio
from facemae_mm.datasets.recordio import RecordSource, RecordWriter, read_index

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
        (folder / name).write_bytes(os.fsencode(name))
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
    write_folder(tmp_path, 'a/.hidden.jpg', 'a/notes.txt', 'a/view/deep/z.jpg', '.git/x.jpg', 'top.jpg')
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
        (['train.rec'], 'Give .*train.rec itself'),
        (['bob/1.jpg', 'eve/notes.txt'], 'eve holds no image'),
        (['bob/1.jpg', 'eve/1/1/1.jpg'], 'eve holds no image.*directly in it'),
        (['lfw/bob/1.jpg', 'lfw/eve/1.jpg'], 'two folders deep, in 2 folders of 1 .*such as .*lfw'),
        (['lfw/bob/1.jpg', 'lfw/eve/1.jpg', 'casia/0/1.jpg'], 'two folders deep, in 3 folders of 2'),
        (['bob/1.jpg', 'bob/1.png'], r'1\.(jpg|png) and bob/1\.(jpg|png), which share the key bob/1\b'),
        (['bob/1\n.jpg'], r'bob/1\\n\.jpg.*no readable Unicode'),
        (['bob/1\udcff.jpg'], r'no readable Unicode'),
    ],
)
def test_folder_errors(tmp_path, names, message):
    write_folder(tmp_path, *names)
    with pytest.raises(ValueError, match=message) as error:
        open_faces(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_images_without_identity_folders_have_unknown_identities(tmp_path):
    source = open_faces(write_folder(tmp_path, 'b.jpg', 'a.png', 'notes.txt'))
    assert source.keys == ['a', 'b'] and source.read(1) == b'b.jpg'
    assert source.identities == [] and source.labels.tolist() == [-1, -1]


def test_views_within_identities_as_cfp_has_them(tmp_path):
    names = [
        f'{person:03d}/{view}/{n:02d}.jpg' for person in (1, 2, 3) for view in ('frontal', 'profile') for n in (1, 2)
    ]
    source = open_faces(write_folder(tmp_path, *reversed(names)))
    assert source.keys == [name.removesuffix('.jpg') for name in names]
    assert source.identities == ['001', '002', '003'] and source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.read(5).decode() == names[5]


# Zip files


def write_zip(path, *names, top=''):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(top + name, name)
    return path


@pytest.mark.parametrize('top', ['', 'faces/'])
def test_a_zip_is_the_folder_that_went_into_it(tmp_path, top):
    names = ['b/2.PNG', 'b/1.v2.jpg', 'a b/x.Jpeg', 'a/x.tif', 'a/notes.txt', 'a/.hidden.jpg', 'top.jpg']
    names = names[:-1] if top else names
    folder = open_faces(write_folder(tmp_path / 'folder', *names))
    source = open_faces(write_zip(tmp_path / 'faces.bin', *names, top=top))
    assert source.keys == folder.keys and source.identities == folder.identities
    assert source.labels.tolist() == folder.labels.tolist() and images_of(source) == images_of(folder)
    assert pickle.loads(pickle.dumps(source)).read(3) == folder.read(3)


@pytest.mark.parametrize('top', ['', 'faces/'])
def test_a_zip_leaves_alone_what_the_folder_leaves_alone(tmp_path, top):
    names = ['a/1.png', 'a/v/2.png', 'b/1.png']
    hidden = ['.Trash/x/1.png', 'a/.thumbnails/t.png', 'a/v/.cache/t.png', 'a/v/w/deep.png', 'a/v/w/x/deeper.png']
    folder = open_faces(write_folder(tmp_path / 'folder', *names, *hidden))
    path = write_zip(tmp_path / 'faces.zip', *names, *hidden, top=top)
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('.Trash/y/1.png', b'beside the top folder')
    source = open_faces(path)
    assert source.keys == folder.keys == ['a/1', 'a/v/2', 'b/1'] and source.identities == folder.identities
    assert images_of(source) == images_of(folder)


def test_a_zip_of_nothing_but_hidden_images(tmp_path):
    with pytest.raises(ValueError, match=r'faces\.zip holds no images'):
        open_faces(write_zip(tmp_path / 'faces.zip', '.Trash/a/1.png', 'a/.b/1.png', 'a/b/c/d/e.png'))


def test_a_zip_is_opened_anew_in_each_process(tmp_path, monkeypatch):
    source = open_faces(write_zip(tmp_path / 'faces.zip', 'a/1.jpg', 'b/1.jpg'))
    parents = source._file
    assert source.read(0) == b'a/1.jpg' and source._file is parents
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    assert source.read(0) == b'a/1.jpg' and source._file is not parents


# Original keys of a prepared set


def write_keys(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(f'{row}\n' for row in ('key,source_key', *rows)), encoding='utf-8')


@pytest.mark.parametrize('place', ['set', 'set.private'])
def test_the_owners_table_gives_records_their_original_keys(tmp_path, place):
    (tmp_path / 'set').mkdir()
    path = write_rec(tmp_path / 'set', {i: image_record(0.0, b'x') for i in (2, 7, 10)})
    assert list(open_faces(path).keys) == ['2', '7', '10']
    write_keys(tmp_path / place / 'keys.csv', '2,bob/ä1', '7,"bob/a,b"', '10,eve/1')
    source = open_faces(path)
    assert list(source.keys) == ['bob/ä1', 'bob/a,b', 'eve/1'] and source.keys[-1] == 'eve/1'
    assert source.keys[1:] == ['bob/a,b', 'eve/1'] and list(pickle.loads(pickle.dumps(source)).keys) == list(
        source.keys
    )
    with pytest.raises(IndexError):
        source.keys[3]


def test_the_owners_table_gives_a_folder_its_original_keys(tmp_path):
    folder = write_folder(tmp_path / 'set', '000000/000000.png', '000000/000001.png')
    write_keys(tmp_path / 'set.private/keys.csv', '000000/000000,bob/1', '000000/000001,bob/2')
    assert list(open_faces(folder).keys) == ['bob/1', 'bob/2']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('key,source_key\n1,a\n', 'a row for each of 2 images: it has 1'),
        ('key,source_key\n1,a\n2,b\n3,c\n', 'it has 3'),
        ('key,source_key\n1,a\n2,b', 'it has 1'),
        ('a,b\n1,a\n2,b\n', 'is no table of key,source_key'),
        ('', 'it has 0'),
        ('key,source_key\n2,a\n1,b\n', r"line 2: b'2,a.n' is no row .* of image 1"),
        ('key,source_key\n1,a,b\n2,b\n', 'line 2'),
        ('key,source_key\n1\n2,b\n', 'line 2'),
    ],
)
def test_a_table_of_another_set_is_refused(tmp_path, text, message):
    path = write_rec(tmp_path, {i: image_record(0.0, b'x') for i in (1, 2)})
    (tmp_path / 'keys.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        list(open_faces(path).keys)


@pytest.mark.parametrize(
    ('key', 'fault'),
    [
        ('/tmp/pwned', 'is no plain path'),
        ('../pwned', 'is no plain path'),
        ('a/../../pwned', 'is no plain path'),
        ('a/./b', 'is no plain path'),
        ('..', 'is no plain path'),
        ('a//b', 'is no plain path'),
        ('a/', 'is no plain path'),
        ('""', 'is no plain path'),
        ('a\\..\\b', 'holds a backslash'),
        ('a/\x07', 'is no readable Unicode'),
        ('a/\u202eb', 'is no readable Unicode'),
    ],
)
def test_a_table_leads_out_of_no_folder(tmp_path, key, fault):
    path = write_rec(tmp_path, {i: image_record(0.0, b'x') for i in (1, 2)})
    write_keys(tmp_path / 'keys.csv', '1,bob/1', f'2,{key}')
    source = open_faces(path)
    assert source.keys[0] == 'bob/1'
    with pytest.raises(ValueError, match=rf'keys\.csv, line 3: source_key .* {fault}.* move it away'):
        source.keys[1]


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


# Identities by the ranges at the end of the file


def ranged(labels, ranges=None):
    """Records with an identity header, images of these labels, and the ranges of their identities."""
    starts = [i for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
    if ranges is None:
        ranges = [(a + 1, b + 1) for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)]
    end = len(labels) + 1
    records = {0: image_record([float(end), float(end + len(ranges))], b'')}
    records |= {i + 1: image_record(float(label), b'image %d' % i) for i, label in enumerate(labels)}
    return records | {end + i: image_record([float(a), float(b)], b'') for i, (a, b) in enumerate(ranges)}


LABELS = [4, 4, 4, 9, 2, 2]


def test_labels_by_ranges_look_at_few_records(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(
        RecordSource,
        '_read_labels',
        lambda self, images, read=RecordSource._read_labels: looked.append(images) or read(self, images),
    )
    source = open_faces(write_rec(tmp_path, ranged([7] * 500 + [8] * 300 + [3] * 200)))
    assert source.identities == ['3', '7', '8'] and source.labels.tolist() == [1] * 500 + [2] * 300 + [0] * 200
    assert [len(images) for images in looked] == [6]


@pytest.mark.parametrize(
    'ranges',
    [
        None,
        [],
        [(1, 4), (4, 5)],  # do not cover
        [(1, 3), (4, 5), (5, 7)],  # a gap
        [(2, 4), (4, 5), (5, 7)],
        [(1, 2), (2, 2), (2, 7)],
        [(1, 7)],  # ends differ
        [(1.0, math.nan)],
    ],
)
def test_ranges_that_do_not_fit_are_not_trusted(tmp_path, ranges):
    source = open_faces(write_rec(tmp_path, ranged(LABELS, ranges)))
    assert [source.identities[label] for label in source.labels] == list(map(str, LABELS))
    assert source.read(3) == b'image 3'


def test_a_label_that_the_ranges_contradict_is_named_when_read(tmp_path):
    records = ranged([5] * 6)
    records[3] = image_record(6.0, b'other')
    source = open_faces(write_rec(tmp_path, records))
    assert source.labels.tolist() == [0] * 6 and source.read(0) == b'image 0'
    with pytest.raises(ValueError, match='record 3 at byte .*label 6, but the ranges .* give it 5'):
        source.read(2)


@pytest.mark.parametrize('error', [-2, -1, 0, 1, 2])
def test_ranges_that_float32_rounded(tmp_path, monkeypatch, error):
    """Above 2²⁴ keys float32 knows a key to within a few; here by the same error in a small file."""
    labels = [1] * 40 + [2] * 3 + [7] * 30 + [3] * 20
    records = ranged(
        labels, [(1, 41 + error), (41 + error, 44 - error), (44 - error, 74 + error), (74 + error, 94 + error)]
    )
    records[0] = image_record([94.0 + error, 98.0], b'')
    monkeypatch.setattr(recordio, '_rounding', lambda key: 2)
    source = open_faces(write_rec(tmp_path, records))
    assert [int(source.identities[label]) for label in source.labels] == labels
    assert [source.read(i) for i in (0, 40, 92)] == [b'image 0', b'image 40', b'image 92']


def test_identities_of_few_images_whose_range_float32_rounds_away(tmp_path, monkeypatch):
    """42 million keys come in steps of 4: ranges of one image start and end alike. Looked at block by block."""
    labels = [5, 6, 6, 7, 7, 7, 8, 8, 8, 8, 9, 1, 2, 2, 3]
    starts = [1, *(i + 1 for i in range(1, 15) if labels[i] != labels[i - 1]), 16]
    ends = [1, *(round(start / 4) * 4 for start in starts[1:])]
    ranges = list(zip(ends[:-1], ends[1:], strict=True))
    assert any(first == last for first, last in ranges)
    records = ranged(labels, ranges) | {0: image_record([16.0, 16.0 + len(ranges)], b'')}
    monkeypatch.setattr(recordio, '_rounding', lambda key: 2)
    monkeypatch.setattr(recordio, 'BLOCK', 2)
    monkeypatch.setattr(RecordSource, '_label', None)  # no record is read for itself
    source = open_faces(write_rec(tmp_path, records))
    assert [int(source.identities[label]) for label in source.labels] == labels


def test_rounding_is_that_of_float32():
    for key in (1, 1000, 2**24, 2**24 + 1, 2**25 + 3, 42_474_558):
        near = np.float64(np.arange(key - 8, key + 9, dtype=np.float64).astype(np.float32)) - np.arange(
            key - 8, key + 9
        )
        assert np.abs(near).max() <= recordio._rounding(key + 8) <= 2


def test_an_index_whose_keys_count_up_is_kept_as_a_range(tmp_path):
    rows = 150_000
    (tmp_path / 'a.idx').write_text(''.join(f'{i + 5}\t{i * 4}\n' for i in range(rows)))
    keys, offsets = read_index(tmp_path / 'a.idx')
    assert keys == range(5, rows + 5) and offsets.tolist() == list(range(0, rows * 4, 4))
    swapped = [*range(rows - 2), rows - 1, rows - 2]
    (tmp_path / 'b.idx').write_text(''.join(f'{i}\t{i * 4}\n' for i in swapped))
    keys, offsets = read_index(tmp_path / 'b.idx')
    assert keys.tolist() == list(range(rows)) and offsets.tolist() == list(range(0, rows * 4, 4))
    (tmp_path / 'c.idx').write_text('1\t' + '0' * 5_000_000)
    with pytest.raises(ValueError, match='a line is too long'):
        read_index(tmp_path / 'c.idx')


# Writing


def test_the_writer_makes_mxnets_file_byte_by_byte(tmp_path, shared):
    genuine = shared / 'formats/lfw60_mxnet'
    source = open_faces(genuine / 'train.rec')
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for i in range(len(source)):
            assert writer.write(int(source.labels[i]), source.read(i)) == i + 1
    for name in ('train.rec', 'train.idx', 'property'):
        assert (tmp_path / name).read_bytes() == (genuine / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ['property', 'train.idx', 'train.rec']


IMAGES = [
    b'plain', b'x', MAGIC, b'1234' + MAGIC + b'5678' + MAGIC + MAGIC + b'9', b'12' + MAGIC + b'34', b'end!' + MAGIC,
    b'y' * 40_000 + MAGIC + b'z',
]  # fmt: skip


def test_parts_are_split_as_the_format_says_and_come_back_whole(tmp_path):
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for i, image in enumerate(IMAGES):
            writer.write(i // 2, image)
    body = b''.join(record(image_record(float(i // 2), image, i + 1)) for i, image in enumerate(IMAGES))
    assert (tmp_path / 'train.rec').read_bytes()[40 : 40 + len(body)] == body
    source = open_faces(tmp_path / 'train.rec')
    assert [source.read(i) for i in range(len(IMAGES))] == IMAGES
    assert source.labels.tolist() == [i // 2 for i in range(len(IMAGES))]


def test_a_writer_that_was_interrupted_anywhere_goes_on(tmp_path):
    with RecordWriter(tmp_path / 'whole.rec') as writer:
        for i, image in enumerate(IMAGES):
            writer.write(i // 2, image)
    writer = RecordWriter(tmp_path / 'train.rec')
    for i, image in enumerate(IMAGES[:5]):
        writer.write(i // 2, image)
    writer.abandon()
    rec, idx = (tmp_path / f'train.{kind}.partial' for kind in ('rec', 'idx'))
    data, index = rec.read_bytes(), idx.read_bytes()
    ends = [int(line.split(b'\t')[1]) for line in index.splitlines()] + [len(data)]
    for size in range(ends[1], len(data) + 1):
        for lines in {len(index), index.rindex(b'\n', 0, -1) + 1, len(index) - 1}:
            rec.write_bytes(data[:size])
            idx.write_bytes(index[:lines])
            writer = RecordWriter(tmp_path / 'train.rec', resume=True)
            whole = min(sum(end <= size for end in ends[1:]), index[:lines].count(b'\n')) - 1
            assert writer.count == whole
            writer.truncate(min(whole, 3))
            for i in range(writer.count, len(IMAGES)):
                writer.write(i // 2, IMAGES[i])
            assert not (tmp_path / 'train.rec').exists()
            writer.close()
            for kind in ('rec', 'idx'):
                assert (tmp_path / f'train.{kind}').read_bytes() == (tmp_path / f'whole.{kind}').read_bytes()
                (tmp_path / f'train.{kind}').unlink()


def test_what_the_writer_refuses(tmp_path):
    path = tmp_path / 'train.rec'
    with pytest.raises(ValueError, match='no image was written'), RecordWriter(path):
        pass
    with pytest.raises(ValueError, match='label 2 after 1 identities. Write the images identity by identity'):
        with RecordWriter(path) as writer:
            writer.write(0, b'a')
            writer.write(2, b'b')
    assert not path.exists()
    writer = RecordWriter(path)
    for label in (-1, 1):
        with pytest.raises(ValueError, match='after 0 identities'):
            writer.write(label, b'a')
    writer.write(0, b'a')
    writer.write(1, b'a')
    with pytest.raises(ValueError, match='label 0 after 2'):
        writer.write(0, b'a')
    with pytest.raises(ValueError, match='image 3 is empty'):
        writer.write(1, b'')
    writer.close()
    with pytest.raises(FileExistsError, match='exists already'):
        RecordWriter(path)
