"""γ: masks by key, at the stored size, nothing behind them."""

import hashlib
import hmac
import os
import shutil
import stat

import numpy as np
import pytest
from tiny import write_faces
from torch.utils.data import DataLoader

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.datasets import FaceRecordDataset, open_faces
from facemae_mm.datasets.face_mask import REGIONS, FaceMask, load_mask_secret, patch_mask
from facemae_mm.datasets.preparation import FacePreparer, prepare_faces


def sample(key='a/1', epoch=0, size=112, seed=0):
    img = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return dict(img=img, img_key=key, epoch=epoch)


@pytest.mark.parametrize(('ratio', 'kept'), [(0.75, 49), (0.3, 137), (0.9, 19), (0.0, 196)])
def test_keeps_as_many_patches_as_facebooks_mae(ratio, kept):
    mask = patch_mask(b'x', 'k', 196, ratio)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert (mask == 0).sum() == kept  # int(196 * (1 - ratio))


def test_follows_a_literal_reading_of_the_scheme():
    digest = hmac.new(b'secret', b'facemae-mask-v1\0bob/3\x007', hashlib.sha256).digest()
    key = [int.from_bytes(digest[:8], 'little'), int.from_bytes(digest[8:16], 'little')]
    noise = np.random.Philox(key=np.array(key, np.uint64)).random_raw(16).tolist()
    kept = sorted(range(16), key=lambda i: noise[i])[:4]
    expected = [0 if i in kept else 1 for i in range(16)]
    assert patch_mask(b'secret', 'bob/3', 16, 0.75, epoch=7).tolist() == expected


def test_golden_mask():
    # Made by this scheme's first version (2026-11); a change would silently change every release's masks.
    assert ''.join(map(str, patch_mask(b'seed 0', 's1/1', 16, 0.75))) == '1111011001011111'


def test_every_patch_is_removed_equally_often():
    share = np.mean([patch_mask(b's', str(i), 49, 0.75) for i in range(4000)], 0)
    assert np.abs(share - 37 / 49).max() < 0.035  # 5 sigma of a binomial share is 0.034


def test_training_masks_change_with_epoch_and_leave_the_target_whole():
    transform = FaceMask(seed=0)
    first, second = transform(sample(epoch=0)), transform(sample(epoch=1))
    assert (first['mask'] != second['mask']).any()
    assert (first['img'] == sample()['img']).all()
    assert (transform(sample(epoch=0))['mask'] == first['mask']).all()


def test_deployment_mask_ignores_the_epoch_and_blanks_what_it_removes(tmp_path):
    transform = FaceMask(fresh=False, secret=str(tmp_path / 'secret'))
    result, later = transform(sample(epoch=0)), transform(sample(epoch=5))
    assert (result['mask'] == later['mask']).all()
    original = sample()['img']
    for index, removed in enumerate(result['mask']):
        row, column = divmod(index, 14)
        window = np.s_[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        expected = 127.5 if removed else original[window]
        assert (result['img'][window] == expected).all()


def test_secret_is_drawn_once_for_its_owner_alone(tmp_path):
    path = tmp_path / 'private' / 'secret'
    secret = load_mask_secret(path)
    assert len(secret) == 32 and load_mask_secret(path) == secret
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(path.parent) == ['secret']
    other = FaceMask(fresh=False, secret=str(tmp_path / 'other'))
    transform = FaceMask(fresh=False, secret=str(path))
    assert transform.commitment != other.commitment
    assert transform.commitment == hmac.new(secret, b'facemae-mask-v1', hashlib.sha256).hexdigest()
    assert secret.hex() not in repr(transform)


def test_bad_settings_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match='not a square that patch_size 16 divides'):
        FaceMask(patch_size=16, seed=0)(sample(size=100))
    with pytest.raises(ValueError, match='either a seed or a secret'):
        FaceMask()
    with pytest.raises(ValueError, match='fresh=False'):
        FaceMask(secret=str(tmp_path / 's'))
    with pytest.raises(ValueError, match=r'not in \[0, 1\)'):
        FaceMask(seed=0, mask_ratio=75)
    with pytest.raises(ValueError, match='patch_size 0 is less than a pixel'):
        FaceMask(seed=0, patch_size=0)
    (tmp_path / 'short').write_bytes(b'abc')
    with pytest.raises(ValueError, match='holds 3 bytes, not 32'):
        FaceMask(fresh=False, secret=str(tmp_path / 'short'))


def patches_inside(centre, half_along, half_across, along, size=112, patch=8):
    """Patches of which one of nine points (corners, edges' middles, centre) lies in an ellipse, one by one."""
    touched = set()
    for row in range(size // patch):
        for column in range(size // patch):
            for i in (0, 0.5, 1):
                for j in (0, 0.5, 1):
                    x, y = (column + i) * patch - 0.5 - centre[0], (row + j) * patch - 0.5 - centre[1]
                    u, v = x * along[0] + y * along[1], -x * along[1] + y * along[0]
                    if (u / half_along) ** 2 + (v / half_across) ** 2 <= 1:
                        touched.add(row * (size // patch) + column)
    return touched


def eyes_and_mouth(points):
    distance = float(np.hypot(*(points[1] - points[0])))
    along = (points[1] - points[0]) / distance
    mouth = (points[3] + points[4]) / 2
    eyes = [patches_inside(points[i], 0.42 * distance, 0.30 * distance, along) for i in (0, 1)]
    return eyes[0] | eyes[1] | patches_inside(mouth, 0.60 * distance, 0.32 * distance, along)


TURNED = (ARCFACE_TEMPLATE - 56) @ np.array([[0.9, 0.3], [-0.3, 0.9]]) + (58, 53)


@pytest.mark.parametrize('landmarks', [None, TURNED], ids=['template', 'landmarks'])
def test_regions_are_removed_and_filled_up_to_the_ratio(landmarks):
    inside = eyes_and_mouth(ARCFACE_TEMPLATE if landmarks is None else landmarks)
    assert 40 < len(inside) < 60
    mask = FaceMask(fresh=False, seed=0, regions=['mouth', 'eyes'])
    masks = np.array([mask.draw(str(i), 112, landmarks) for i in range(500)])
    assert (masks.sum(1) == 147).all()
    assert {int(i) for i in np.flatnonzero(masks.all(0))} == inside  # always, and nothing else always
    share = masks[:, [i for i in range(196) if i not in inside]].mean(0)
    assert np.abs(share - (147 - len(inside)) / (196 - len(inside))).max() < 0.1  # 5 sigma


def test_the_region_alone_has_one_number_of_patches_whatever_the_landmarks():
    mask = FaceMask(fresh=False, seed=0, regions='eyes', region_only=True)
    along = (ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]) / np.hypot(*(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]))
    distance = np.hypot(*(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]))
    eyes = [patches_inside(ARCFACE_TEMPLATE[i], 0.42 * distance, 0.30 * distance, along) for i in (0, 1)]
    assert set(np.flatnonzero(mask.draw('a', 112)).tolist()) == eyes[0] | eyes[1]
    larger = (TURNED - 56) * 1.3 + 56
    assert mask.draw('a', 112, larger).sum() == mask.draw('b', 112).sum() == len(eyes[0] | eyes[1])


def test_the_nose_in_faces_of_another_size():
    distance = float(np.hypot(*(TURNED[1] - TURNED[0])))
    nose = patches_inside(TURNED[2], 0.30 * distance, 0.30 * distance, (TURNED[1] - TURNED[0]) / distance)
    mask = FaceMask(seed=0, regions='nose', mask_ratio=0.1)
    masks = np.array([mask.draw(str(i), 112, TURNED, epoch=3) for i in range(400)])
    assert set(np.flatnonzero(masks.all(0)).tolist()) == nose and (masks.sum(1) == 20).all()
    # Pixel centres lie at integers, so that enlarging twofold takes x to 2x + 1/2.
    twofold = FaceMask(patch_size=16, seed=0, regions='nose', mask_ratio=0.1)
    assert np.array_equal(twofold.draw('7', 224, 2 * TURNED + 0.5, epoch=3), masks[7])
    distance = float(4 * np.hypot(*(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0])))
    along = (ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]) * 4 / distance
    nose = patches_inside(4 * ARCFACE_TEMPLATE[2] + 1.5, 0.30 * distance, 0.30 * distance, along, size=448, patch=4)
    fine = FaceMask(patch_size=4, seed=0, regions='nose', region_only=True)
    assert set(np.flatnonzero(fine.draw('7', 448)).tolist()) == nose and len(nose) > 300


def test_the_manifest_says_which_share_a_region_alone_removes():
    alone = FaceMask(fresh=False, seed=0, regions='eyes', region_only=True)
    described = alone.describe(112)
    assert described['ratio'] == alone.draw('a', 112).sum() / 196 < 0.3
    assert (described['regions'], described['region_only']) == (['eyes'], True)
    assert FaceMask(fresh=False, seed=0, regions='eyes').describe(112)['ratio'] == 0.75


def test_landmarks_follow_a_flip():
    mask = FaceMask(seed=0, regions=['eyes', 'mouth'], region_only=True)
    plain = mask(sample() | dict(landmarks=TURNED))['mask'].reshape(14, 14)
    flipped = mask(sample() | dict(landmarks=TURNED, flip=True))['mask'].reshape(14, 14)
    assert (flipped == plain[:, ::-1]).all() and (flipped != plain).any()


def test_regions_larger_than_the_ratio_are_refused():
    with pytest.raises(ValueError, match=r"'a/1': its regions are \d+ of 196 patches, more than the 40 .*Raise mask"):
        FaceMask(seed=0, regions=list(REGIONS), mask_ratio=0.2)(sample())
    with pytest.raises(ValueError, match='Choose regions among eyes, nose, mouth'):
        FaceMask(seed=0, regions=['ears'])


@pytest.mark.parametrize(
    'options',
    [dict(fresh=False), dict(seed=5), dict(seed=5, regions=['eyes', 'mouth'])],
    ids=['deployment', 'training', 'regions'],
)
def test_masks_are_the_same_for_a_folder_and_its_records_and_any_workers(tmp_path, options):
    """A folder, its .zip and the .rec made of it, read by 0 or 2 workers in any batch and order."""
    folder = write_faces(tmp_path / 'faces', identities=3, images=3)
    shutil.make_archive(str(tmp_path / 'zipped'), 'zip', folder)
    table = ['path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy']
    for number, key in enumerate(open_faces(folder).keys[1:]):  # of the first face none are known
        table.append(f'{key}.png,' + ','.join(f'{value:.2f}' for value in (TURNED + 2 * number).flat))
    for place in (folder / 'landmarks5.csv', tmp_path / 'zipped.landmarks5.csv'):
        place.write_text('\n'.join(table) + '\n')
    prepare_faces(FacePreparer(open_faces(folder), None), tmp_path / 'packed', records=True, workers=0)
    options = options if 'seed' in options else dict(options, secret=str(tmp_path / 'secret'))
    pipeline = [dict(type='LoadFace'), dict(type='FaceMask', **options)]

    def masks(source, workers, batch_size, rank=0, world_size=1):
        dataset = FaceRecordDataset(tmp_path / source, pipeline)
        dataset.set_epoch(2)
        sampler = list(range(len(dataset)))[rank::world_size]
        loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=list)
        return {s['img_key']: (s['mask'].tobytes(), s['img'].tobytes()) for batch in loader for s in batch}

    expected = masks('faces', 0, 1)
    assert len(expected) == 9 and len({mask for mask, _ in expected.values()}) == 9
    assert masks('packed/train.rec', 2, 4) == masks('zipped.zip', 2, 2) == expected
    assert masks('faces', 2, 2, 0, 2) | masks('packed/train.rec', 0, 3, 1, 2) == expected
    if 'regions' in options:
        for number, key in enumerate(sorted(expected)):
            inside = eyes_and_mouth(ARCFACE_TEMPLATE if number == 0 else np.round(TURNED + 2 * (number - 1), 2))
            assert inside <= set(np.flatnonzero(np.frombuffer(expected[key][0], np.uint8)).tolist())
