"""LFW cut into parts by the folds of its pairs, on eight people in three folds."""

import csv
import hashlib

import cv2
import numpy as np
import pytest
from conftest import _runner

from facemae_mm.datasets import open_faces

#: Images of each person, fold by fold; the last two are in no pair.
FOLDS = (dict(Ann=3, Bob=2, Cleo=2), dict(Dan=2, Eve=4, Finn=1), dict(Gus=2, Hal=2), dict(Ida=1, Jo=2))


@pytest.fixture
def split_lfw(repository, monkeypatch, capsys):
    """Runs tools/split_lfw.py in this process; gives exit code and output."""
    return _runner('split_lfw', repository, monkeypatch, capsys)


@pytest.fixture
def lfw(tmp_path):
    """(faces, pairs, split) of a small LFW, and landmarks of some faces."""
    faces, lines, rows = tmp_path / 'lfw', ['3\t2'], []
    for number, fold in enumerate(FOLDS):
        for name, images in fold.items():
            (faces / name).mkdir(parents=True)
            for image in range(1, images + 1):
                picture = np.full((112, 112, 3), (16 * number, len(rows), image), np.uint8)
                cv2.imwrite(str(faces / name / f'{name}_{image:04d}.png'), picture)
                rows.append([f'{name}/{name}_{image:04d}', *range(10)])
        one, two = [name for name, images in fold.items() if images > 1 or number == 3][:2]
        if number < 3:
            lines += [f'{one}\t1\t2', f'{two}\t1\t2', f'{one}\t1\t{two}\t1', f'{list(fold)[-1]}\t1\t{one}\t2']
    with (faces / 'landmarks5.csv').open('w', newline='') as file:
        header = ['path', 'lex', 'ley', 'rex', 'rey', 'nx', 'ny', 'lmx', 'lmy', 'rmx', 'rmy']
        csv.writer(file).writerows([header, *rows[::2]])
    pairs = tmp_path / 'pairs.txt'
    pairs.write_text('\n'.join(lines) + '\n')
    names = ''.join(f'{name}\n' for name in sorted(row[0] for row in rows))
    split = tmp_path / 'split.py'
    split.write_text(
        f'people = 10\nimages = {len(rows)}\nfolds = 3\npairs_of_fold = 4\ntest_folds = [3]\n'
        f"names_sha256 = '{hashlib.sha256(names.encode()).hexdigest()}'\n"
        f"pairs_sha256 = '{hashlib.sha256(pairs.read_bytes()).hexdigest()}'\n"
        'parts = dict(start=dict(folds=[0]), train=dict(folds=[1]), deploy=dict(folds=[2], min_images=2, people=2), '
        'half0=dict(folds=[1, 2], half=0), half1=dict(folds=[1, 2], half=1), test=dict(folds=[3]))\n'
    )
    return faces, pairs, split


def test_people_are_in_the_parts_of_their_folds(split_lfw, lfw, tmp_path):
    faces, pairs, split = lfw
    code, text = split_lfw(faces, pairs, tmp_path / 'out', '--split', split)
    assert code == 0, text
    assert 'deploy             2 people      6 images' in text
    parts = {part: set(open_faces(tmp_path / 'out' / part).identities) for part in ('start', 'train', 'deploy', 'test')}
    assert parts == dict(start={'Ida', 'Jo'}, train={'Ann', 'Bob', 'Cleo'}, deploy={'Dan', 'Eve'}, test={'Gus', 'Hal'})
    halves = [set(open_faces(tmp_path / 'out' / part).identities) for part in ('half0', 'half1')]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == {*FOLDS[0], *FOLDS[1]}
    for part in ('start', 'train', 'deploy', 'test'):
        for face in (tmp_path / 'out' / part).glob('*/*.png'):
            assert face.read_bytes() == (faces / face.parent.name / face.name).read_bytes()
    with (faces / 'landmarks5.csv').open() as all_of_them, (tmp_path / 'out/deploy/landmarks5.csv').open() as own:
        header, *rows = all_of_them.read().splitlines()
        assert own.read().splitlines() == [header] + [row for row in rows if row.split('/')[0] in ('Dan', 'Eve')]
    assert (tmp_path / 'out/pairs.csv').read_text().splitlines() == [
        'key1,key2,same',
        'Gus/Gus_0001,Gus/Gus_0002,1',
        'Gus/Gus_0001,Hal/Hal_0001,0',
        'Hal/Hal_0001,Hal/Hal_0002,1',
        'Hal/Hal_0001,Gus/Gus_0002,0',
    ]
    code, text = split_lfw(faces, pairs, tmp_path / 'out', '--split', split)
    assert code == 2 and 'out exists already' in text


def lose_a_face(faces, pairs, split):
    (faces / 'Ann/Ann_0003.png').unlink()


def rename_a_person(faces, pairs, split):
    (faces / 'Ann').rename(faces / 'Anna')


def number_the_faces(faces, pairs, split):
    """As prepare_faces.py does without --keep-names: their own names stand in the private table alone."""
    private = faces.with_name('lfw.private')
    private.mkdir()
    named = {path: f'{path.parent.name}/{path.stem}' for path in sorted(faces.glob('*/*.png'))}
    people = {name: f'{number:06d}' for number, name in enumerate(sorted({path.parent.name for path in named}))}
    rows = []
    for number, (path, key) in enumerate(named.items()):
        rows.append([f'{people[path.parent.name]}/{number:06d}', key])
        path.rename(path.with_name(f'{number:06d}.png'))
    for name, number in people.items():
        (faces / name).rename(faces / number)
    with (private / 'keys.csv').open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([['key', 'source_key'], *rows])


def change_the_list(faces, pairs, split):
    pairs.write_text(pairs.read_text().replace('Gus\t1\t2', 'Gus\t2\t1'))


def expect_more_people(faces, pairs, split):
    split.write_text(split.read_text().replace('people=2', 'people=3'))


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lose_a_face, 'holds 20 images of 10 people; LFW has 21 of 10.'),
        (rename_a_person, "its images are not named as LFW's"),
        (number_the_faces, 'such as 000000/…. Give the folders under their own names'),
        (change_the_list, "is not LFW's list of 6,000 pairs"),
        (expect_more_people, 'Part deploy has 2 people, and the split says 3'),
    ],
)
def test_what_is_not_lfw_is_said_and_leaves_nothing(split_lfw, lfw, tmp_path, change, says):
    faces, pairs, split = lfw
    change(faces, pairs, split)
    code, text = split_lfw(faces, pairs, tmp_path / 'out', '--split', split)
    assert code == 2 and says in text, text
    assert not (tmp_path / 'out').exists()


def test_a_person_in_two_folds_is_refused(split_lfw, lfw, tmp_path):
    faces, pairs, split = lfw
    before = hashlib.sha256(pairs.read_bytes()).hexdigest()
    pairs.write_text(pairs.read_text().replace('Dan\t1\t2', 'Ann\t1\t2'))
    split.write_text(split.read_text().replace(before, hashlib.sha256(pairs.read_bytes()).hexdigest()))
    code, text = split_lfw(faces, pairs, tmp_path / 'out', '--split', split)
    assert code == 2 and 'folds 1 and 2 share Ann' in text
