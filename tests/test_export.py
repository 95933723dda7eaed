"""The release: complete, opaque, and blind to what the mask removed."""

import csv
import json
import shutil
import stat

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm.datasets import FaceMask
from facemae_mm.datasets.resumable import sha256_file


def recipe(repository, faces, release, work, **options):
    small = {key: value for key, value in SMALL_FACEMAE.items() if not key.startswith('train_')}
    cfg = small_recipe(
        repository,
        'export_casia',
        deploy_faces=str(faces),
        release_dir=str(release),
        mask_secret=str(work / 'secret'),
        **small,
        **{'test_dataloader.batch_size': 5, 'test_dataloader.num_workers': 0, 'load_from': str(work / 'model.pth')},
        **options,
    )
    cfg.work_dir = str(work)
    cfg.experiment_name = f'export {release}'
    cfg.log_level = 'WARNING'
    return cfg


@pytest.fixture
def work(tmp_path, repository):
    """A folder with four identities' faces and random weights of the reconstructor."""
    write_faces(tmp_path / 'faces')
    model = Runner.build_model(Runner.__new__(Runner), recipe(repository, 'x', 'y', tmp_path).model)
    torch.manual_seed(0)
    model.init_weights()
    torch.save(
        dict(state_dict=model.state_dict(), message_hub=dict(runtime_info=dict(phi_sha256='abc'))),
        tmp_path / 'model.pth',
    )
    return tmp_path


def export(repository, work, name, faces='faces', **options):
    Runner.from_cfg(recipe(repository, work / faces, work / name, work, **options)).test()
    return work / name


def content(release):
    return {path.relative_to(release).as_posix(): path.read_bytes() for path in release.rglob('*') if path.is_file()}


def test_release_is_complete_and_says_what_it_is(repository, work):
    release = export(repository, work, 'release')
    assert not (work / 'release.partial').exists()
    manifest = json.loads((release / 'manifest.json').read_text())
    assert (manifest['images'], manifest['identities']) == (16, 4)
    assert manifest['images_by_identity'] == {f'{i:06d}': 4 for i in range(4)}
    assert manifest['model_sha256'] == sha256_file(work / 'model.pth') and manifest['phi_sha256'] == 'abc'
    commitment = FaceMask(fresh=False, secret=str(work / 'secret')).commitment
    assert manifest['mask']['commitment'] == commitment and manifest['mask']['stored_size'] == 112
    faces = sorted(release.glob('*/*.png'))
    assert len(faces) == 16 and all(cv2.imread(str(face)).shape == (112, 112, 3) for face in faces)
    everything = b''.join(value for name, value in content(release).items())
    for private in (b'person_', str(work).encode(), (work / 'secret').read_bytes(), b'2026'):
        assert private not in everything
    assert '16 images of 4 identities' in (release / 'README.md').read_text()


def test_links_are_the_owners_alone_and_true(repository, work):
    export(repository, work, 'release')
    path = work / 'release.private' / 'links.csv'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with path.open(newline='') as file:
        links = list(csv.DictReader(file))
    assert len({line['released_path'] for line in links}) == len({line['source_key'] for line in links}) == 16
    labels = {line['source_label']: line['released_label'] for line in links}
    assert sorted(labels.values()) == ['0', '1', '2', '3']
    for line in links:
        assert line['source_key'].split('/')[0] == line['source_label']
        assert line['released_path'].startswith(f'{int(labels[line["source_label"]]):06d}/')


def test_changing_every_removed_pixel_leaves_the_release_byte_identical(repository, work):
    first = content(export(repository, work, 'first'))
    shutil.copytree(work / 'faces', work / 'changed')
    mask = FaceMask(fresh=False, secret=str(work / 'secret'))
    for path in (work / 'changed').glob('*/*.png'):
        img = cv2.imread(str(path))
        key = path.relative_to(work / 'changed').with_suffix('').as_posix()
        removed = mask(dict(img=img, img_key=key))['mask'].reshape(14, 14).repeat(8, 0).repeat(8, 1) == 1
        assert removed.mean() == 0.75
        img[removed] = 255 - img[removed]
        cv2.imwrite(str(path), img)
    assert content(export(repository, work, 'second', faces='changed')) == first
    for path in (work / 'changed').glob('*/*.png'):
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    assert content(export(repository, work, 'third', faces='changed')) != first


def test_each_face_is_the_reconstruction_of_its_own_source(repository, work):
    release = export(repository, work, 'release')
    with (work / 'release.private' / 'links.csv').open(newline='') as file:
        links = {line['source_key']: line['released_path'] for line in csv.DictReader(file)}
    runner = Runner.from_cfg(recipe(repository, work / 'faces', work / 'unused', work))
    runner.load_or_resume()
    dataset = runner.test_dataloader.dataset
    for index in (0, 7, 15):
        item = dataset[index]
        batch = dict(inputs=item['inputs'][None], data_samples=[item['data_samples']])
        with torch.no_grad():
            sample = runner.model.eval().test_step(batch)[0]
        expected = sample.reconstruction.permute(1, 2, 0).flip(-1).numpy()
        written = cv2.imread(str(release / links[sample.img_key]))
        assert np.abs(written.astype(int) - expected.astype(int)).max() <= 1  # another batch size


def test_what_would_spoil_a_release_is_refused(repository, work):
    release = export(repository, work, 'release')
    before = content(release)
    with pytest.raises(FileExistsError, match='exists and is complete'):
        export(repository, work, 'release')
    assert content(release) == before
    with pytest.raises(ValueError, match=r'head\.norm_pix must be False'):
        export(repository, work, 'normalised', **{'model.head.norm_pix': True})
    assert not (work / 'normalised').exists()
    with pytest.raises(ValueError, match='needs one FaceMask with fresh=False'):
        cfg = recipe(repository, work / 'faces', work / 'fresh', work)
        cfg.test_dataloader.dataset.pipeline[1] = dict(type='FaceMask', seed=0)
        Runner.from_cfg(cfg).test()
