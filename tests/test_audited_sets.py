"""Who is who between a real and a released set, from folders, records and a release's manifest."""

import json

import cv2
import numpy as np
import pytest
import torch

from facemae_mm.audit.audited_sets import OwnedPairs, match_sets, memberships, own_identities
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.datasets.recordio import RecordWriter
from facemae_mm.evaluation.links import read_links

HEAD = 'released_path,released_label,source_key,source_label'


def write_faces(folder, people, side=112):
    """Flat faces: every image of a set has its own grey level, in the order of keys."""
    level = 0
    for person, images in people.items():
        (folder / person).mkdir(parents=True)
        for image in range(images):
            cv2.imwrite(str(folder / person / f'{image}.png'), np.full((side, side, 3), level, np.uint8))
            level += 1
    return open_faces(folder)


def write_links(path, rows):
    path.write_text('\n'.join([HEAD, *(','.join(row) for row in rows)]) + '\n', encoding='utf-8')
    return path


@pytest.fixture
def sets(tmp_path):
    """Anna has three photos, Bob one, Carl two; released are two faces of Anna, one of Bob, one of somebody else."""
    real = write_faces(tmp_path / 'real', dict(Anna=3, Bob=1, Carl=2))
    released = write_faces(tmp_path / 'released', {'00': 1, '01': 2, '02': 1})
    links = write_links(
        tmp_path / 'links.csv',
        [
            ('02/0.png', '2', 'Dora/0', 'Dora'),
            ('01/1.png', '1', 'Anna/2', 'Anna'),
            ('00/0.png', '0', 'Bob/0', 'Bob'),
            ('01/0.png', '1', 'Anna/9', 'Anna'),
        ],
    )
    return real, released, links


def test_links_say_who_is_who(sets):
    matched = match_sets(*sets)
    assert matched.by == 'links' and matched.sources
    assert matched.real_identity.tolist() == [0, 0, 0, 1, 2, 2]
    assert matched.real_source.tolist() == [0, 1, 2, 3, 4, 5]
    assert matched.released_identity.tolist() == [1, 0, 0, -1]
    assert matched.released_source.tolist() == [3, -1, 2, -1]
    assert {array.dtype for array in (matched.released_identity, matched.released_source)} == {np.dtype(np.int64)}
    assert matched.drawn.tolist() == [0]  # Bob has one photo, Carl no released face
    assert matched.released_people.tolist() == [0, 1]
    assert matched.notes == (
        '1 of 4 released faces were made from photos of people that the real set does not have, by the links.',
        '2 released faces were made from photos that the real set does not have.',
    )


def test_equal_names_say_who_is_who_but_never_which_photo(tmp_path, sets):
    released = write_faces(tmp_path / 'named', dict(Anna=1, Carl=2, Eve=1))
    matched = match_sets(sets[0], released)
    assert matched.by == 'names' and not matched.sources
    assert matched.released_identity.tolist() == [0, 2, 2, -1]
    assert (matched.released_source == -1).all()  # though Anna/0 and Carl/1 are keys of both
    assert matched.drawn.tolist() == [0, 2]
    assert [note for note in matched.notes if '1 of 4 released faces bear a name' in note]


def test_nothing_in_common_is_said(sets):
    matched = match_sets(sets[0], sets[1])
    assert matched.by == 'none' and (matched.released_identity == -1).all() and matched.drawn.size == 0
    assert matched.notes[-1] == 'No identity has the same name in both sets.'
    assert memberships(matched, matched.drawn).tolist() == [1] * 6


def test_a_set_without_identities_still_has_sources(tmp_path, sets):
    (tmp_path / 'flat').mkdir()
    for name in ('a', 'b'):
        cv2.imwrite(str(tmp_path / 'flat' / f'{name}.png'), np.zeros((112, 112, 3), np.uint8))
    links = write_links(tmp_path / 'l.csv', [(f'{k}.png', '0', 'a', 'x') for k in ('00/0', '01/0', '01/1', '02/0')])
    matched = match_sets(open_faces(tmp_path / 'flat'), sets[1], links)
    assert matched.sources and matched.released_source.tolist() == [0] * 4
    assert (matched.released_identity == -1).all() and matched.notes == ('The real set has no identities.',)
    unlabelled = match_sets(sets[0], open_faces(tmp_path / 'flat'))
    assert unlabelled.by == 'none' and unlabelled.released_identity.tolist() == [-1, -1]


def test_numbers_of_a_release_are_no_names(tmp_path):
    """A release and a real set both number people from 000000: the same number is not the same person."""
    real = write_faces(tmp_path / 'real', {'000000': 2, '000001': 2})
    released = write_faces(tmp_path / 'released', {'000000': 2, '000001': 2})
    matched = match_sets(real, released)
    assert matched.by == 'names' and [note for note in matched.notes if 'numbered anew' in note]
    manifest = dict(format='facemae-release', version=1, layout='folders', shards=[dict(path='.')])
    (tmp_path / 'released' / 'manifest.json').write_text(json.dumps(manifest))
    matched = match_sets(real, open_faces(tmp_path / 'released'))
    assert matched.by == 'none' and 'links alone' in matched.notes[-1]


def test_records_are_linked_by_their_keys(tmp_path, sets):
    """Their keys stand in the links without an extension."""
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for label, name in ((0, '00/0'), (1, '01/0'), (1, '01/1'), (2, '02/0')):
            writer.write(label, (tmp_path / 'released' / f'{name}.png').read_bytes())
    released = open_faces(tmp_path / 'train.rec')
    keys = list(released.keys)
    rows = [(keys[0], '0', 'Bob/0', 'Bob'), *((key, '1', 'Anna/1', 'Anna') for key in keys[1:])]
    matched = match_sets(sets[0], released, write_links(tmp_path / 'r.csv', rows))
    assert matched.released_source.tolist() == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([('00/0.png', '0', 'Bob/0', 'Bob')], r'3 of 4 released images are not in .*first 01/0'),
        ([(f'{k}.png', '0', 'Bob/0', 'Anna') for k in ('00/0', '01/0', '01/1', '02/0')], r'00/0 .*Bob/0 .*4 in all'),
        ([('00/0.png', '0', 'Bob/0', 'Bob'), ('00/0.png', '0', 'Anna/0', 'Anna')], r'line 3: 00/0.png has another'),
        ([('00/0.png', '0', 'Bob/0')], r'line 2, lacks'),
        ([('00/0.png', '0', '', 'Bob')], r'line 2, lacks'),
    ],
)
def test_links_that_do_not_fit_are_refused(tmp_path, sets, rows, message):
    with pytest.raises(ValueError, match=message):
        match_sets(*sets[:2], write_links(tmp_path / 'bad.csv', rows))


def test_links_that_are_no_table_are_refused(tmp_path):
    for content in (b'\xff\xfe\x00', f'{HEAD}\n"{"x" * 200_000}"'.encode()):
        (tmp_path / 'bad.csv').write_bytes(content)
        with pytest.raises(ValueError, match='no table in UTF-8'):
            read_links(tmp_path / 'bad.csv', ['a'])


def test_keys_with_dots_are_kept_whole(tmp_path):
    """Only an image's extension is taken off."""
    links = write_links(tmp_path / 'l.csv', [('a/x.v1', '0', 's', 'p'), ('a/x.v2.JPG', '0', 't', 'p')])
    assert read_links(links, ['a/x.v2', 'a/x.v1']) == (['t', 's'], ['p', 'p'])


def test_several_released_sets_share_one_numbering(tmp_path, sets):
    real, released, links = sets
    other = write_faces(tmp_path / 'other', {'7': 2})
    rows = [('7/0.png', '7', 'Anna/2', 'Anna'), ('7/1.png', '7', 'Carl/0', 'Carl')]
    first, second = match_sets(real, released, links), match_sets(real, other, write_links(tmp_path / 'o.csv', rows))
    assert second.released_identity.tolist() == [0, 2] and second.released_source.tolist() == [2, 4]
    assert first.real_identity.tolist() == second.real_identity.tolist()


@pytest.fixture
def many(tmp_path):
    people = {f'p{i:02}': 3 for i in range(20)}
    return write_faces(tmp_path / 'a', people), write_faces(tmp_path / 'b', people, side=128)


def test_an_attacker_owns_the_same_share_again(many):
    matched = match_sets(*many)
    owned = own_identities(matched, 0.3, 5)
    assert len(owned) == 6 and set(owned) <= set(matched.drawn) and (np.diff(owned) > 0).all()
    assert owned.tolist() == own_identities(matched, 0.3, 5).tolist()
    assert owned.tolist() != own_identities(matched, 0.3, 6).tolist()
    assert own_identities(matched, 0, 5).size == 0 and len(own_identities(matched, 0.999, 5)) == 19
    for share in (1, -0.1, 1.5):
        with pytest.raises(ValueError, match='a share of'):
            own_identities(matched, share, 0)
    member = memberships(matched, owned)
    assert (member == 1).sum() == 3 * 14 and (member[np.isin(matched.real_identity, owned)] == -1).all()


def test_pairs_by_names_show_one_person_and_stay_the_same(many):
    real, released = many
    matched = match_sets(real, released)
    owned = own_identities(matched, 0.5, 0)
    pairs = OwnedPairs(real, released, matched, owned)
    assert len(pairs) == 30 and set(pairs.identities) == set(owned)
    for i in range(len(pairs)):
        photo, face, identity = pairs[i]
        assert photo.shape == (3, 112, 112) and face.shape == (3, 128, 128) and type(identity) is int
        assert photo.dtype == face.dtype == torch.uint8
        assert photo[0, 0, 0] == pairs.photos[i] and face[0, 0, 0] == pairs.faces[i]  # the grey level is the number
        assert identity == pairs.identities[i] == pairs.photos[i] // 3 == pairs.faces[i] // 3
    again = OwnedPairs(real, released, matched, owned)
    assert again.photos.tolist() == pairs.photos.tolist()
    assert len(set(pairs.photos % 3)) == 3  # not always the first photo
    some = OwnedPairs(real, released, matched, owned[3:])
    assert some.photos.tolist() == pairs.photos[np.isin(pairs.identities, owned[3:])].tolist()


def test_pairs_by_links_are_a_face_and_its_own_photo(sets):
    real, released, links = sets
    matched = match_sets(real, released, links)
    pairs = OwnedPairs(real, released, matched, np.array([0]))
    assert pairs.faces.tolist() == [2] and pairs.photos.tolist() == [2]  # 01/0 comes from a photo that is not there
    photo, face, identity = pairs[0]
    assert (int(photo[0, 0, 0]), int(face[0, 0, 0]), identity) == (2, 2, 0)
    assert len(OwnedPairs(real, released, matched, np.array([], np.int64))) == 0


def test_members_are_who_has_a_released_face(sets):
    matched = match_sets(*sets)
    assert memberships(matched, np.array([], int)).tolist() == [1, 1, 1, 1, 0, 0]
    assert memberships(matched, np.array([0])).tolist() == [-1, -1, -1, 1, 0, 0]


def test_300000_faces_take_seconds(tmp_path):
    """Of 30,000 people, from keys alone: no loop over pairs."""

    class Listed:
        def __init__(self, path, keys):
            self.path = path
            self.keys = keys
            self.identities = sorted({key.split('/')[0] for key in keys})
            number = {name: label for label, name in enumerate(self.identities)}
            self.labels = np.array([number[key.split('/')[0]] for key in keys])

        def __len__(self):
            return len(self.keys)

    real = Listed(tmp_path, [f'p{i:06}/{j}' for i in range(30_000) for j in range(10)])
    released = Listed(tmp_path, [f'{i:06}/{j}' for i in range(30_000) for j in range(10)])
    order = np.random.default_rng(0).permutation(300_000)
    rows = ((f'{released.keys[i]}.png', 'x', real.keys[j], real.keys[j][:7]) for i, j in enumerate(order.tolist()))
    matched = match_sets(real, released, write_links(tmp_path / 'l.csv', rows))
    assert matched.released_source.tolist() == order.tolist()
    assert (matched.released_identity == order // 10).all() and len(matched.drawn) == 30_000
