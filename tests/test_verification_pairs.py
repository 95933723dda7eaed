"""Verification sets: LFW's list, lists of paths and by key, CFP's protocol."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_face_sources import write_folder

from facemae_mm.datasets import VerificationPairs
from facemae_mm.datasets.verification_pairs import (
    CFP_FOLDS,
    MAX_LIST_BYTES,
    image_key,
    match_pairs,
    read_cfp_protocol,
    read_pairs,
)
from facemae_mm.evaluation.face_verification import FOLDS, FaceVerification

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


@pytest.mark.parametrize('separator', [' ', '   ', '\t'])
@pytest.mark.parametrize('header', ['', '1 1\n'])
def test_lines_of_two_paths(folder, separator, header):
    lines = [
        ('./Ann_Lee/Ann_Lee_0001.jpg', 'Ann_Lee/Ann_Lee_0002', '1'),
        ('Bo/Bo_0010.JPG', 'Ann_Lee/Ann_Lee_0001.png', '0'),
    ]
    assert pairs_of(folder, header + '\n'.join(map(separator.join, lines))) == [SAME, DIFFERENT]


def test_paths_without_folder_and_with_blanks(tmp_path):
    (tmp_path / 'agedb.txt').write_text('1_A_30_f.jpg 2_A_60_f.jpg 1\n2_A_60_f.jpg 3_B_7_m.jpg 0\n')
    keys = ['1_A_30_f', '2_A_60_f', '2_A_60_f', '3_B_7_m']
    assert read_pairs(tmp_path / 'agedb.txt') == (keys, [True, False])
    (tmp_path / 'tabs.txt').write_text('a b/1.jpg\ta b/2.jpg\t1\n')
    assert read_pairs(tmp_path / 'tabs.txt') == (['a b/1', 'a b/2'], [True])


def test_a_number_in_the_second_column_makes_a_line_lfws(tmp_path):
    """Even where the name looks like a path; a path of digits alone needs its folder or extension."""
    (tmp_path / 'list.txt').write_text('a/b 1 0\nx.jpg 1 1\n1 0 1\n1.jpg 0.jpg 1\n./1 ./0 0\n')
    lfw = [('a/b/a/b_0001', 'a/b/a/b_0000'), ('x.jpg/x.jpg_0001',) * 2, ('1/1_0000', '1/1_0001')]
    expected = [*lfw, ('1', '0'), ('1', '0')]
    keys, same = read_pairs(tmp_path / 'list.txt')
    assert list(zip(keys[::2], keys[1::2], strict=True)) == expected and same == [True] * 4 + [False]


def test_keys_with_extension_and_byte_order_mark(tmp_path):
    text = '\ufeffkey1,key2,same\r\n./s1/1.pgm,s1/2.v2,1\r\ns1/1,s1/1.v2.png,0\r\n'
    (tmp_path / 'list.csv').write_bytes(text.encode())
    assert read_pairs(tmp_path / 'list.csv') == (['s1/1', 's1/2.v2', 's1/1', 's1/1.v2'], [True, False])


def test_image_key():
    paths = ['a/b.jpg', './a/b.JPEG', 'a/b', 'a.jpg/b', 'a/b.c.png', 'a/b.txt', '../a/b.tiff']
    assert [*map(image_key, paths)] == ['a/b', 'a/b', 'a/b', 'a.jpg/b', 'a/b.c', 'a/b.txt', '../a/b']


def test_what_is_no_text(tmp_path):
    path = tmp_path / 'pairs.txt'
    path.write_bytes('Andr\xe9 1 2\n'.encode('latin-1'))
    with pytest.raises(
        ValueError, match=r'pairs\.txt is no text in UTF-8: .* at byte 4\. Give a list .* or convert it'
    ):
        read_pairs(path)
    with path.open('wb') as file:
        file.truncate(MAX_LIST_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=r'pairs\.txt is 67,108,865 bytes; a list has at most'):
        read_pairs(path)


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
        ('Ann_Lee\t1\t3\n', 'lacks the image Ann_Lee/Ann_Lee_0003 of pair 0 .*its first is Ann_Lee/Ann_Lee_0001. Give'),
        ('a/b.jpg c/d.jpg 2\n', r"line 1: \['a/b.jpg', 'c/d.jpg', '2'\] is no pair. Write .*'path1 path2 1'"),
        ('a/b.jpg c/d.jpg -1\n', 'line 1: .* is no pair'),
        ('a/b.jpg c/d.jpg\n', 'line 1: .* is no pair'),
        ('name other 1\n', 'line 1: .* is no pair'),
        ('a/b.jpg other 1\n', 'line 1: .* is no pair'),
        ('a/b.jpg\tc/d.jpg\t1\te\n', 'line 1: .* is no pair'),
        ('Ann_Lee 1 ' + '9' * 5000, 'line 1: .{,250} is no pair'),
        ('9' * 5000 + ' 1\n', 'line 1: .{,250} is no pair'),
        ('key1,key2,same\na,b,1\n' + 'c' * 200_000 + ',d,1\n', 'line 3: field larger than .*Write key1,key2,same'),
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
    with pytest.raises(ValueError, match=r"set 'x' .*pairs=None, protocol=None. Give a list of pairs"):
        VerificationPairs(dict(x=dict(source=folder)))
    for options in (dict(pairs=text), dict(protocol='FP')):
        with pytest.raises(ValueError, match=r"set 'x' .*Leave both out, a .bin holds its pairs"):
            VerificationPairs(dict(x=dict(source=small, **options)))
    with pytest.raises(ValueError, match=r"pairs\.txt is a file, but protocol='FP' chooses.*Leave protocol out"):
        VerificationPairs(dict(x=dict(source=folder, pairs=text, protocol='FP')))
    with pytest.raises(FileNotFoundError, match=r'nopairs\.txt does not exist'):
        VerificationPairs(dict(x=dict(source=folder, pairs=folder / 'nopairs.txt')))
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        VerificationPairs(dict(x=dict(source=folder / 'nowhere', pairs=text)))


# CFP's protocol


def write_protocol(folder, pairs=2, lists=None, identities=20):
    """CFP's files, as small as they get: ten folds, each of two identities and `pairs` pairs of either kind."""
    lists = lists or folder
    lists.mkdir(parents=True, exist_ok=True)
    for name, view, images in (('F', 'frontal', 10), ('P', 'profile', 4)):
        paths = [
            f'../Data/Images/{i:03d}/{view}/{j:02d}.jpg' for i in range(1, identities + 1) for j in range(1, images + 1)
        ]
        text = ''.join(f'{number} {path}\n' for number, path in enumerate(paths, 1))
        (lists / f'Pair_list_{name}.txt').write_text(text)
    for protocol, images in (('FF', 10), ('FP', 4)):
        for fold in range(10):
            split = folder / 'Split' / protocol / f'{fold + 1:02d}'
            split.mkdir(parents=True)
            first, other = 20 * fold, images * 2 * fold
            same = [f'{first + 1 + i},{other + 2 + i}' for i in range(pairs)]
            diff = [f'{first + 1 + i},{other + images + 1 + i}' for i in range(pairs)]
            (split / 'same.txt').write_text('\n'.join(same))
            (split / 'diff.txt').write_text('\r\n'.join(diff) + '\r\n')
    return folder


def expected_cfp(view, pairs=2):
    """Walks the folds as they are defined, not as they are written."""
    keys, same = [], []
    for fold in range(10):
        a, b = 2 * fold + 1, 2 * fold + 2
        for i in range(pairs):
            keys += [f'{a:03d}/frontal/{i + 1:02d}', f'{a:03d}/{view}/{i + 2:02d}']
        for i in range(pairs):
            keys += [f'{a:03d}/frontal/{i + 1:02d}', f'{b:03d}/{view}/{i + 1:02d}']
        same += [True] * pairs + [False] * pairs
    return keys, same


@pytest.mark.parametrize('lists', ['Protocol', 'Protocol/Split', '.'])
def test_cfp(tmp_path, lists):
    folder = write_protocol(tmp_path / 'Protocol', lists=tmp_path / lists)
    assert read_cfp_protocol(folder) == read_pairs(folder) == read_pairs(folder, 'FP') == expected_cfp('profile')
    assert read_pairs(str(folder), 'FF') == expected_cfp('frontal')


def test_cfp_by_its_split_folder(tmp_path):
    folder = write_protocol(tmp_path / 'Protocol')
    assert read_pairs(folder / 'Split', 'FP') == expected_cfp('profile')


def test_cfp_as_large_as_the_genuine_one(tmp_path):
    """500 identities with 10 frontal and 4 profile images, 350 + 350 pairs a fold: 7,000 pairs of either protocol."""
    folder = write_protocol(tmp_path / 'Protocol', identities=500)
    rng = np.random.default_rng(0)
    for protocol, size in (('FF', 5000), ('FP', 2000)):
        drawn = []
        for fold in range(1, 11):
            for name in ('same', 'diff'):
                pairs = np.stack([rng.integers(1, 5001, 350), rng.integers(1, size + 1, 350)], 1)
                np.savetxt(folder / f'Split/{protocol}/{fold:02d}/{name}.txt', pairs, '%d', ',')
                drawn.append(pairs)
        keys, same = read_pairs(folder, protocol)
        assert len(same) == 7000 and np.array(same).reshape(10, 2, 350).all(-1).tolist() == [[True, False]] * 10
        images, view = (10, 'frontal') if protocol == 'FF' else (4, 'profile')
        first, second = np.concatenate(drawn).T - 1
        assert keys[::2] == [f'{i // 10 + 1:03d}/frontal/{i % 10 + 1:02d}' for i in first]
        assert keys[1::2] == [f'{i // images + 1:03d}/{view}/{i % images + 1:02d}' for i in second]


def test_the_evaluation_cuts_cfp_into_its_folds(tmp_path):
    """All answers of CFP's fold 04 are wrong, all others right: the accuracies are 0 once and 1 nine times."""
    assert CFP_FOLDS == FOLDS
    _, same = read_pairs(write_protocol(tmp_path / 'Protocol'))
    fold = np.repeat(np.arange(10), 4)  # of each pair
    right = np.where(fold == 3, ~np.array(same), np.array(same))  # in fold 04 all is wrong
    apart = np.where(right, 0.1, 1.5)
    second = np.stack([np.cos(apart), np.sin(apart)], 1)
    metrics = FaceVerification.calculate(np.tile([1.0, 0.0], (40, 1)), second, np.array(same))
    assert metrics['accuracy'] == pytest.approx(0.9) and metrics['accuracy_std'] == pytest.approx(0.3)


def test_match_pairs_in_a_source_of_any_kind(tmp_path):
    folder = write_protocol(tmp_path / 'Protocol')
    keys, same = expected_cfp('profile')
    source = SimpleNamespace(path='cfp.zip', keys=sorted(set(keys)))
    images, found = match_pairs(source, folder, 'FP')
    assert [source.keys[i] for i in images] == keys and found.tolist() == same
    source.keys.remove('003/profile/02')
    with pytest.raises(
        ValueError, match=r'cfp\.zip lacks the image 003/profile/02 of pair 4 in .*its first is 001/fro'
    ):
        match_pairs(source, folder)


def edit(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        ('Pair_list_F.txt', None, r'Pair_list_F\.txt does not exist. Give the folder Protocol of cfp-dataset'),
        ('Pair_list_P.txt', None, r'Pair_list_P\.txt does not exist. Give the folder Protocol'),
        ('Split/FP/07/diff.txt', None, r'07/diff\.txt does not exist. Give the folder Protocol'),
        (
            'Pair_list_F.txt',
            lambda t: t.replace('2 ', '1 ', 1),
            r'F\.txt, line 2: number 1 stands for 001/frontal/01 alr',
        ),
        ('Pair_list_P.txt', lambda t: t + 'x y\n', r"P\.txt, line 81: 'x y' is not number path. Copy the file again"),
        ('Pair_list_P.txt', lambda t: t + '81\n', r"P\.txt, line 81: '81' is not number path"),
        ('Pair_list_P.txt', lambda t: t + '81 a/b.jpg\n', r"line 81: 'a/b.jpg' is no path of the form …/001/frontal"),
        (
            'Pair_list_P.txt',
            lambda t: t.replace('\n', '\n\n')[:900],
            r'same\.txt, line 1: there is no image \d+ in .*_P\.txt',
        ),
        ('Split/FP/01/same.txt', lambda t: '1,2\n0,1', r'01/same\.txt, line 2: there is no image 0 in .*_F\.txt. Copy'),
        ('Split/FP/01/same.txt', lambda t: '1,2\n1,81', r'01/same\.txt, line 2: there is no image 81 in .*_P\.txt'),
        ('Split/FP/02/diff.txt', lambda t: '1,2\n1;2', r"02/diff\.txt, line 2: '1;2' is not two numbers, a,b"),
        ('Split/FP/02/diff.txt', lambda t: '1,2,3\n1,2', r"02/diff\.txt, line 1: '1,2,3' is not two numbers"),
        ('Split/FP/02/diff.txt', lambda t: f'1,{"9" * 5000}', r"line 1: '1,9{198}' is not two numbers"),
        ('Split/FP/03/same.txt', lambda t: '1,2', r'Split.FP: the folds have 4, 4, 3, 4.* pairs. The evaluation cuts'),
    ],
)
def test_cfp_errors(tmp_path, file, change, message):
    folder = write_protocol(tmp_path / 'Protocol')
    if change is None:
        (folder / file).unlink()
    else:
        edit(folder / file, change)
    with pytest.raises(ValueError if change else FileNotFoundError, match=message):
        read_pairs(folder, 'FP')


def test_cfp_wrong_folder_or_protocol(tmp_path):
    folder = write_protocol(tmp_path / 'Protocol')
    with pytest.raises(
        FileNotFoundError, match=r'has no folder Split/FP. Give the folder Protocol of cfp-dataset as it is'
    ):
        read_pairs(tmp_path)
    with pytest.raises(ValueError, match=r"protocol='PF' is none of CFP's. Give 'FP' .* or 'FF'"):
        read_pairs(folder, 'PF')
    for file in folder.glob('Split/FP/*/*.txt'):
        file.write_text('')
    with pytest.raises(ValueError, match='the folds have 0, 0'):
        read_pairs(folder)
