"""γ: masks by key, at the stored size, nothing behind them."""

import hashlib
import hmac
import os
import stat

import numpy as np
import pytest

from facemae_mm.datasets.face_mask import FaceMask, load_mask_secret, patch_mask


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
    (tmp_path / 'short').write_bytes(b'abc')
    with pytest.raises(ValueError, match='holds 3 bytes, not 32'):
        FaceMask(fresh=False, secret=str(tmp_path / 'short'))
