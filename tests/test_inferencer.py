"""Reconstruction by hand."""

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm.datasets import FaceMask
from facemae_mm.inferencer import FaceMAEInferencer


@pytest.fixture
def inferencer(repository, tmp_path):
    """Random weights of a small FaceMAE; φ's file does not exist."""
    return build(repository, tmp_path)


def build(repository, folder, **options):
    small = {key: value for key, value in SMALL_FACEMAE.items() if key.startswith('model.')}
    cfg = small_recipe(repository, 'facemae_vitb_webface', **small | options)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    return FaceMAEInferencer(cfg, folder / 'model.pth', device='cpu')


def test_paths_arrays_and_folders(inferencer, tmp_path):
    faces = write_faces(tmp_path / 'faces', identities=1, images=3) / 'person_0'
    paths = sorted(map(str, faces.glob('*.png')))
    results = inferencer(paths, batch_size=2, show_dir=str(tmp_path / 'out'))
    assert len(results) == 3
    assert all(x['reconstruction'].shape == (112, 112, 3) and x['mask'].sum() == 147 for x in results)
    expected = FaceMask(fresh=False, seed=0)(dict(img=cv2.imread(paths[0]), img_key=paths[0]))['mask']
    assert (results[0]['mask'] == expected).all()
    assert (cv2.imread(str(tmp_path / 'out' / '000001.png')) == results[1]['reconstruction']).all()
    [by_array] = inferencer(cv2.imread(paths[0]))
    assert by_array['reconstruction'].dtype == np.uint8 and (by_array['mask'] != expected).any()


@pytest.mark.parametrize('to_rgb', [True, False])
def test_colours_are_those_of_the_face(repository, tmp_path, to_rgb):
    """Whatever order the preprocessor gives the network: visible patches, pasted, say which."""
    options = {'model.data_preprocessor.to_rgb': to_rgb, 'model.paste_visible': True}
    [found] = build(repository, tmp_path, **options)(np.full((112, 112, 3), (200, 50, 10), np.uint8))
    visible = found['mask'].reshape(14, 14).repeat(8, 0).repeat(8, 1) == 0
    assert (found['reconstruction'][visible] == (200, 50, 10)).all()


def test_wrong_sizes_and_files_are_named(inferencer, tmp_path):
    cv2.imwrite(str(tmp_path / 'odd.png'), np.zeros((100, 90, 3), np.uint8))
    with pytest.raises(ValueError, match='not a square that patch_size 8 divides'):
        inferencer(str(tmp_path / 'odd.png'))
    with pytest.raises(
        ValueError, match='masks of 64 patches do not fit|do not fit a network of 196|cannot be enlarged'
    ):
        inferencer(np.zeros((64, 64, 3), np.uint8))
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ValueError, match=r'broken\.jpg'):
        inferencer(str(tmp_path / 'broken.jpg'))
