"""Verification sets: LFW's list, lists by key, and .bin files that may be hostile."""

import os
import pickle

import numpy as np
import pytest
from test_face_sources import write_folder

from facemae_mm.datasets import LoadFace, VerificationPairs, open_faces

FOLDER = ('Ann_Lee/Ann_Lee_0001.jpg', 'Ann_Lee/Ann_Lee_0002.jpg', 'Bo/Bo_0010.png')


def write(path, text):
    path.write_text(text)
    return str(path)


def pairs_of(folder, text, name='pairs.txt'):
    dataset = VerificationPairs(dict(x=dict(source=str(folder), pairs=write(folder.parent / name, text))))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(a['img_key'], b['img_key'], a['same']) for a, b in zip(infos[::2], infos[1::2], strict=True)]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'faces', *FOLDER)


# Genuine files


def test_lfw(shared):
    faces = shared / 'faces'
    dataset = VerificationPairs(dict(lfw=dict(source=faces / 'lfw112', pairs=faces / 'lfw_pairs.txt')))
    assert len(dataset) == 12_000 and dataset.metainfo == dict(pairs=dict(lfw=6000))
    lfw = dataset.sets['lfw']
    assert lfw.same.reshape(10, 2, 300).all(-1).tolist() == [[True, False]] * 10
    assert lfw.same.sum() == 3000 and len(np.unique(lfw.images)) == 7701
    people = lfw.source.labels[lfw.images].reshape(-1, 2)
    assert ((people[:, 0] == people[:, 1]) == lfw.same).all()
    folds = [set(fold.tolist()) for fold in people.reshape(10, -1)]
    assert sum(map(len, folds)) == len(set.union(*folds)) == 4281
    first, last = dataset.get_data_info(1), dataset.get_data_info(600)
    assert first.pop('img_bytes') == (faces / 'lfw112/Abel_Pacheco/Abel_Pacheco_0004.jpg').read_bytes()
    assert first == dict(
        img_path=f'{faces / "lfw112"}:Abel_Pacheco/Abel_Pacheco_0004',
        img_key='Abel_Pacheco/Abel_Pacheco_0004',
        set_name='lfw',
        pair_index=0,
        side=1,
        same=True,
        identity='Abel_Pacheco',
        sample_idx=1,
    )
    assert (last['img_key'], last['same'], last['side']) == (
        'Abdel_Madi_Shabneh/Abdel_Madi_Shabneh_0001',
        False,
        0,
    )


def test_bin_by_insightface(shared):
    path = shared / 'formats/small_lfw.bin'
    source = open_faces(path)
    images, same = pickle.loads(path.read_bytes())  # trusted: InsightFace's own file
    assert [source.read(i) for i in range(20)] == [image.tobytes() for image in images]
    assert len(source) == 20 and source.same.tolist() == same == [True] * 10
    assert source.identities == [] and (source.labels == -1).all() and source.keys[19] == '19'
    for i in range(20):
        assert LoadFace(size=112)(dict(img_bytes=source.read(i)))['img_shape'] == (112, 112)


def test_several_sets(shared, folder):
    small = shared / 'formats/small_lfw.bin'
    text = write(folder.parent / 'pairs.txt', 'Ann_Lee 1 2\nAnn_Lee 1 Bo 10\n')
    dataset = VerificationPairs(
        dict(a=dict(source=folder, pairs=text), b=dict(source=small)),
        pipeline=[lambda sample: sample | dict(seen=True)],
    )
    assert dataset.metainfo == dict(pairs=dict(a=2, b=10)) and len(dataset) == 24
    seen = [(x['set_name'], x['pair_index'], x['side']) for x in map(dataset.get_data_info, range(24))]
    sizes = dict(a=2, b=10)
    assert seen == [(n, i, side) for n in sizes for i in range(sizes[n]) for side in (0, 1)]
    last = dataset[23]
    assert (last['img_key'], last['identity'], last['same']) == ('19', '', True) and last['seen']
    for index in (-1, 24):
        with pytest.raises(IndexError):
            dataset[index]


# Lists of pairs

SAME = ('Ann_Lee/Ann_Lee_0001', 'Ann_Lee/Ann_Lee_0002', True)
DIFFERENT = ('Bo/Bo_0010', 'Ann_Lee/Ann_Lee_0001', False)


@pytest.mark.parametrize(
    'text',
    [
        'Ann_Lee\t1\t2\nBo\t10\tAnn_Lee\t1\n',
        '1\t1\nAnn_Lee\t1\t2\nBo\t10\tAnn_Lee\t1\n',
        '1\nAnn_Lee 1 2\r\n\r\nBo  10 Ann_Lee 1',
        '1 1\nAnn_Lee 0001 0002\nBo 10 Ann_Lee 1\n\n',
    ],
)
def test_both_shapes_of_line_with_and_without_a_first_line(folder, text):
    assert pairs_of(folder, text) == [SAME, DIFFERENT]


def test_names_with_blanks_need_tabs(tmp_path):
    folder = write_folder(tmp_path / 'f', 'Ann Lee/Ann Lee_0001.jpg', 'Ann Lee/Ann Lee_0002.jpg')
    assert pairs_of(folder, 'Ann Lee\t1\t2\n')[0][1] == 'Ann Lee/Ann Lee_0002'


def test_pairs_by_key(tmp_path):
    folder = write_folder(tmp_path / 'f', 's1/1.pgm', 's1/2.pgm', 's2/a,b.png')
    text = 'key1,key2,same\ns1/1,s1/2,1\n"s2/a,b",s1/1,0\n'
    assert pairs_of(folder, text, 'pairs.csv') == [
        ('s1/1', 's1/2', True),
        ('s2/a,b', 's1/1', False),
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'holds 0 pairs, but at least one'),
        ('10\t300\nAnn_Lee\t1\t2\n', 'holds 1 pairs, but its first line promises 6000'),
        ('Ann_Lee\t1\t2\nAnn_Lee\t1\n', r"line 2: \['Ann_Lee', '1'\] is no pair. Write 'name n m'"),
        ('Ann_Lee\t1\tx\n', 'line 1: .* is no pair'),
        ('1\t1\nAnn_Lee\t1\t2\nBo\tx\tAnn_Lee\t1\n', 'line 3: .* is no pair'),
        ('key1,key2,same\na,b,yes\n', 'line 2: .* is no pair. Write key1,key2,same'),
        (
            'Ann_Lee\t1\t2\nBo\t10\tEve\t1\n',
            'lacks the image Eve/Eve_0001 of pair 1 in .*pairs.txt',
        ),
        ('Ann_Lee\t1\t3\n', 'lacks the image Ann_Lee/Ann_Lee_0003 of pair 0'),
    ],
)
def test_list_errors(folder, text, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(folder, text)


def test_set_errors(shared, folder):
    text = write(folder.parent / 'pairs.txt', 'Ann_Lee 1 2\n')
    small = shared / 'formats/small_lfw.bin'
    with pytest.raises(ValueError, match='sets is empty'):
        VerificationPairs({})
    with pytest.raises(ValueError, match=r"set 'x' .*pairs=None. Give a list of pairs"):
        VerificationPairs(dict(x=dict(source=folder)))
    with pytest.raises(ValueError, match=r"set 'x' .*Leave pairs out"):
        VerificationPairs(dict(x=dict(source=small, pairs=text)))
    with pytest.raises(FileNotFoundError, match=r'nopairs\.txt does not exist'):
        VerificationPairs(dict(x=dict(source=folder, pairs=folder / 'nopairs.txt')))
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        VerificationPairs(dict(x=dict(source=folder / 'nowhere', pairs=text)))


# Files of type .bin


def open_bin(tmp_path, content):
    path = tmp_path / 'x.bin'
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
    return open_faces(path)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_bytes_and_arrays_of_every_protocol(tmp_path, protocol):
    array = np.frombuffer(b'two!', np.uint8)
    column = np.frombuffer(b'three', np.uint8)[:, None]
    content = ([b'one', array, column, b'four'], [True, False])
    if protocol == 2:
        # Python 3 writes bytes at protocol 2 through a codec; Python 2 wrote them as its strings.
        content = b'\x80\x02(]q\x00(U\x03oneU\x04two!T\x05\x00\x00\x00threeU\x04foure]q\x01(\x88\x89et.'
    elif protocol == 5:
        content = pickle.dumps(([b'one', b'two!', b'three', b'four'], [True, False]), 5)
    else:
        content = pickle.dumps(content, protocol)
    source = open_bin(tmp_path, content)
    assert [source.read(i) for i in range(4)] == [b'one', b'two!', b'three', b'four']
    assert source.same.tolist() == [True, False]


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
    ],
)
def test_everything_else_is_refused_by_name_and_does_not_run(tmp_path, build, name):
    mark = tmp_path / 'mark'
    with pytest.raises(pickle.UnpicklingError, match=name) as error:
        open_bin(tmp_path, ([build(str(mark)), b'x'], [True]))
    assert not mark.exists() and str(tmp_path / 'x.bin') in str(error.value)


def test_state_cannot_be_set_on_what_stands_for_arrays(tmp_path):
    # numpy.ndarray, then BUILD with (None, {'x': 1}): setattr on what find_class returned.
    for name in (b'ndarray', b'dtype'):
        with pytest.raises(pickle.UnpicklingError, match='cannot be read'):
            open_bin(tmp_path, b'\x80\x02cnumpy\n' + name + b'\n(N}U\x01xK\x01stb.')


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
