"""The release: complete, opaque, reproducible, and blind to what the mask removed."""

import csv
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from processes import PRELOAD, free_port, spawn
from tiny import SMALL_FACEMAE, cfg_options, small_recipe, write_faces
from torch.utils.data import get_worker_info

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.datasets import FaceMask, FaceRecordDataset, open_faces, resumable
from facemae_mm.datasets.landmarks import COLUMNS
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.datasets.resumable import PartialFolder, sha256_file
from facemae_mm.engine import ReconstructionExportHook, reconstruction_export_hook
from facemae_mm.launch import init_distributed
from facemae_mm.release.check import check_release
from facemae_mm.release.chunk_files import ChunkFiles
from facemae_mm.release.manifest import read_manifest

SMALL = {key: value for key, value in SMALL_FACEMAE.items() if not key.startswith('train_')}


def recipe(repository, faces, release, work, **options):
    Config.pretty_text = property(repr)  # formatting a recipe for its log takes longer than the export
    own = {
        'deploy_faces': str(faces),
        'release_dir': str(release),
        'mask_secret': str(work / 'secret'),
        'test_cfg.chunk_size': 3,
        'test_dataloader.batch_size': 6,
        'test_dataloader.num_workers': 0,
        'load_from': str(work / 'model.pth'),
    }
    cfg = small_recipe(repository, 'export_casia', **SMALL | own | options)
    cfg.work_dir = str(work)
    cfg.experiment_name = f'export {release} {time.time_ns()}'
    cfg.log_level = 'WARNING'
    return cfg


@pytest.fixture(autouse=True)
def quick_logs(monkeypatch):
    """Puts back what `recipe` changes."""
    monkeypatch.setattr(Config, 'pretty_text', Config.pretty_text)


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


def test_release_is_complete_and_says_what_it_is(repository, work, monkeypatch):
    monkeypatch.setattr(socket, 'gethostname', lambda: 'a-machine')
    release = export(repository, work, 'release')
    assert not (work / 'release.partial').exists()
    manifest = json.loads((release / 'manifest.json').read_text())
    assert (manifest['images'], manifest['identities']) == (16, 4)
    assert manifest['images_by_identity'] == [4] * 4 and manifest['originals'] == 'not checked'
    assert manifest['model_sha256'] == sha256_file(work / 'model.pth') and manifest['phi_sha256'] == 'abc'
    commitment = FaceMask(fresh=False, secret=str(work / 'secret')).commitment
    assert manifest['mask']['commitment'] == commitment and manifest['mask']['stored_size'] == 112
    faces = sorted(release.glob('*/*.png'))
    assert len(faces) == 16 and all(cv2.imread(str(face)).shape == (112, 112, 3) for face in faces)
    everything = b''.join(value for name, value in content(release).items())
    for private in (b'person_', str(work).encode(), (work / 'secret').read_bytes(), b'a-machine'):
        assert private not in everything
    assert 'a-machine' in (work / 'release.private/export.log').read_text()
    assert time.strftime('%Y-') not in (release / 'manifest.json').read_text() + (release / 'README.md').read_text()
    assert 'all 16 faces of 4 identities are as the manifest' in check_release(release)
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


def invert_removed(work, source, target):
    """The set with every removed pixel changed."""
    shutil.copytree(work / source, work / target)
    mask = FaceMask(fresh=False, secret=str(work / 'secret'))
    for path in (work / target).glob('*/*.png'):
        img = cv2.imread(str(path))
        key = path.relative_to(work / target).with_suffix('').as_posix()
        removed = mask(dict(img=img, img_key=key))['mask'].reshape(14, 14).repeat(8, 0).repeat(8, 1) == 1
        assert removed.mean() == 0.75
        img[removed] = 255 - img[removed]
        cv2.imwrite(str(path), img)


def test_changing_every_removed_pixel_leaves_the_release_byte_identical(repository, work):
    first = content(export(repository, work, 'first'))
    invert_removed(work, 'faces', 'changed')
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
    with pytest.raises(ValueError, match=r'head\.norm_pix must be False'):
        export(repository, work, 'release', **{'model.head.norm_pix': True})
    cfg = recipe(repository, work / 'faces', work / 'release', work)
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='FaceMask', seed=0)
    with pytest.raises(ValueError, match='needs one FaceMask with fresh=False'):
        Runner.from_cfg(cfg).test()
    cfg = recipe(repository, work / 'faces', work / 'release', work)
    cfg.test_cfg = dict()
    with pytest.raises(ValueError, match=r"Set test_cfg = dict\(type='ChunkTestLoop'\)"):
        Runner.from_cfg(cfg).test()
    with pytest.raises(ValueError, match='an export measures nothing'):
        cfg = recipe(repository, work / 'faces', work / 'release', work)
        cfg.test_evaluator = [dict(type='DumpResults', out_file_path=str(work / 'out.pkl'))]
        Runner.from_cfg(cfg).test()
    with pytest.raises(ValueError, match='precision'):
        export(repository, work, 'release', **{'test_cfg.fp16': True})
    cfg = recipe(repository, work / 'faces', work / 'release', work)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset])
    with pytest.raises(ValueError, match='the test dataset is a ConcatDataset'):
        Runner.from_cfg(cfg).test()
    with pytest.raises(ValueError, match='phi compares with originals'):
        export(repository, work, 'release', **{'custom_hooks.0.phi': 'dlib'})
    for name, value in (('image_format', 'gif'), ('layout', 'tar'), ('on_error', 'ignore'), ('jpeg_quality', 0)):
        with pytest.raises(ValueError, match=value if isinstance(value, str) else 'quality=0'):
            export(repository, work, 'release', **{name: value})
    assert not list(work.glob('release*'))


def test_a_complete_release_is_left_alone_and_another_is_refused_with_the_difference(repository, work, monkeypatch):
    release = export(repository, work, 'release')
    before = {path: path.stat().st_mtime_ns for path in release.rglob('*')}
    monkeypatch.setattr(FaceRecordDataset, '__getitem__', lambda *_: pytest.fail('a face was read again'))
    export(repository, work, 'release', **{'test_dataloader.batch_size': 3})  # it does not decide about the bytes
    other = {
        'mask_ratio': (0.5, 'mask.ratio: 0.75 then, 0.5 now'),
        'release_size': (224, 'image.size: 112 then, 224 now'),
        'test_cfg.chunk_size': (4, 'compute.chunk_size: 3 then, 4 now'),
        'load_from': (None, r'model_sha256: \w{64} then, None now'),
        'mask_secret': (str(work / 'another'), r'mask.commitment: \w{64} then, \w{64} now'),
        'samples': (2, 'samples: 0 then, 2 now'),
    }
    for name, (value, message) in other.items():
        with pytest.raises(FileExistsError, match=f'release was made with other settings.*{message}'):
            export(repository, work, 'release', **{name: value})
    assert {path: path.stat().st_mtime_ns for path in release.rglob('*')} == before
    release.rename(work / 'published')
    with pytest.raises(FileExistsError, match='links.csv belongs to what is not at .*release any more'):
        export(repository, work, 'release')
    (work / 'published').rename(release)
    export(repository, work, 'release')
    shutil.rmtree(work / 'release.private')
    with pytest.raises(FileExistsError, match='release exists, and .*settings.json does not'):
        export(repository, work, 'release')


def test_what_a_manifest_does_not_show_is_held_against_that_of_then(repository, work):
    def landmarks(shift):
        rows = [','.join(COLUMNS)]
        for path in sorted((work / 'faces').glob('*/*.png')):
            points = (ARCFACE_TEMPLATE + shift).ravel().tolist()
            rows.append(','.join([path.relative_to(work / 'faces').as_posix(), *map(str, points)]))
        (work / 'faces/landmarks5.csv').write_text('\n'.join(rows) + '\n')

    def resized(interpolation, **options):
        cfg = recipe(repository, work / 'faces', work / 'release', work, mask_regions='eyes', **options)
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=112, interpolation=interpolation))
        Runner.from_cfg(cfg).test()

    landmarks(0)
    resized('nearest')
    (work / 'secret').rename(work / 'moved')
    resized('nearest', mask_secret=str(work / 'moved'))  # the same secret at another place
    with pytest.raises(FileExistsError, match=r'config\.pipeline\.1\.interpolation: nearest then, bicubic now'):
        resized('bicubic', mask_secret=str(work / 'moved'))
    landmarks(3)
    with pytest.raises(FileExistsError, match=r'with other settings: landmarks_sha256: \w{64} then, \w{64} now\. '):
        resized('nearest', mask_secret=str(work / 'moved'))
    manifest = (work / 'release/manifest.json').read_text()
    assert 'nearest' not in manifest and 'landmarks_sha256' not in manifest


def test_random_weights_do_not_go_on_by_others(repository, work):
    cfg = recipe(repository, work / 'faces', work / 'release', work, load_from=None)
    for seed in (0, 0):
        cfg.randomness = dict(seed=seed)
        Runner.from_cfg(cfg).test()
    cfg.randomness = dict(seed=1)
    with pytest.raises(FileExistsError, match=r'with other settings: weights_sha256: \w{64} then, \w{64} now\. '):
        Runner.from_cfg(cfg).test()


def test_a_masked_dataset_with_another_mask_than_a_manifest_can_say_is_refused_at_once(repository, work):
    mask_faces(
        open_faces(work / 'faces'), work / 'masked', FaceMask(fresh=False, secret=str(work / 'secret')), workers=0
    )
    path = work / 'masked/facemasked.json'
    info = json.loads(path.read_text())
    del info['mask']['region_only']
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="mask: 'region_only' is a required property.*the masked dataset again"):
        export(repository, work, 'release', faces='masked')
    assert not list(work.glob('release*'))


def test_a_release_that_was_begun_otherwise_is_refused(repository, work):
    with pytest.raises(FileExistsError, match='holds something else'):
        (work / 'release.partial').mkdir()
        (work / 'release.partial' / 'note').touch()
        export(repository, work, 'release')
    shutil.rmtree(work / 'release.partial')
    whole = content(export(repository, work, 'again'))
    last = links(work, 'again').decode().splitlines()[-1].split(',')[2]
    face = work / f'faces/{last}.png'
    face.rename(work / 'aside')
    face.write_bytes(b'no picture')
    with pytest.raises(ValueError, match=f'{last} .* on_error=skip'):
        export(repository, work, 'release')
    while not list((work / 'release.partial').glob('chunks/*/*.npz')):
        time.sleep(0.01)  # chunks before it are written still
    (work / 'aside').rename(face)
    with pytest.raises(FileExistsError, match='release.partial was begun with other settings.*png then, jpeg now'):
        export(repository, work, 'release', image_format='jpeg')
    assert content(export(repository, work, 'release')) == whole


# Formats


def test_records_hold_the_faces_of_folders(repository, work):
    folders = open_faces(export(repository, work, 'folders'))
    release = export(repository, work, 'records', layout='records')
    assert {path.name for path in release.iterdir()} == {
        'train.rec',
        'train.idx',
        'property',
        'manifest.json',
        'README.md',
    }
    assert (release / 'property').read_text() == '4,112,112\n'
    records = open_faces(release)
    assert [records.read(i) for i in range(16)] == [folders.read(i) for i in range(16)]
    assert records.labels.tolist() == folders.labels.tolist() and list(records.keys) == [str(i + 1) for i in range(16)]
    with (work / 'records.private/links.csv').open(newline='') as file:
        assert [line['released_path'] for line in csv.DictReader(file)] == list(records.keys)
    check_release(release)


@pytest.mark.parametrize('layout', ['folders', 'records'])
def test_shards_by_size_are_sets_by_themselves_and_one_together(repository, work, layout):
    whole = open_faces(export(repository, work, 'whole'))
    bytes_a_person = sum(len(whole.read(i)) for i in range(4))
    release = export(repository, work, 'shards', layout=layout, shard_size=bytes_a_person * 1.2)
    manifest, _ = read_manifest(release)
    assert [(shard['path'], shard['first_label'], shard['identities']) for shard in manifest['shards']] == [
        ('shard_00000', 0, 2),
        ('shard_00001', 2, 2),
    ]
    together = open_faces(release)
    assert [together.read(i) for i in range(16)] == [whole.read(i) for i in range(16)]
    assert together.labels.tolist() == whole.labels.tolist()
    assert [int(name) for name in together.identities] == [0, 1, 2, 3]
    with (work / 'shards.private/links.csv').open(newline='') as file:
        paths = [line['released_path'].removesuffix('.png') for line in csv.DictReader(file)]
    assert paths == list(together.keys)
    for shard in range(2):
        path = release / f'shard_0000{shard}'
        alone = open_faces(path if layout == 'folders' else path / 'train.rec')
        assert [alone.read(i) for i in range(8)] == [whole.read(8 * shard + i) for i in range(8)]
        assert [int(name) for name in alone.identities] == [2 * shard, 2 * shard + 1]
    check_release(release)
    data = FaceRecordDataset(str(release))
    assert len(data) == 16 and len(data.identities) == 4


def test_records_whose_header_cannot_count_them_are_refused(repository, work, monkeypatch):
    monkeypatch.setattr(reconstruction_export_hook, 'MOST_RECORDS', 16)
    with pytest.raises(ValueError, match='a train.rec of 16 images .* Set shard_size'):
        export(repository, work, 'release', layout='records')
    assert not list(work.glob('release*'))
    check_release(export(repository, work, 'release', layout='records', shard_size=1))


def test_jpeg_of_224_with_samples(repository, work):
    release = export(repository, work, 'release', image_format='jpeg', jpeg_quality=80, release_size=224, samples=3)
    manifest, _ = read_manifest(release)
    assert manifest['image'] == dict(format='jpeg', quality=80, size=224)
    faces = sorted(release.glob('*/*.jpg'))
    assert len(faces) == 16 and cv2.imread(str(faces[0])).shape == (224, 224, 3)
    sheet = cv2.imread(str(release / 'samples.png'))
    assert sheet.shape == (448, 448, 3) and (sheet[:224, :224] == cv2.imread(str(faces[0]))).all()
    card = (release / 'README.md').read_text()
    assert 'JPEG of quality 80' in card and '![released faces](samples.png)' in card
    check_release(release)


# Exactly once


def run_export(repository, work, name, die_at=None):
    """One export in a process of its own; where `die_at` is given, it is killed at that touch of the file system."""
    if die_at is not None:
        touches = iter(range(1, die_at))

        def watch(event, args):
            writes = event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir')) and str(args[0]).startswith(
                str(work / name)
            ):
                if next(touches, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
    torch.set_num_threads(1)
    export(repository, work, name)


def start(*args):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=run_export, args=args)
    process.start()
    return process


def finish(*args):
    process = start(*args)
    process.join()
    return process.exitcode


@pytest.fixture
def many(work):
    """Faces for twenty chunks."""
    shutil.rmtree(work / 'faces')
    write_faces(work / 'faces', identities=12, images=5)
    return work


def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(repository, many):
    work, partial = many, many / 'release.partial'
    process = start(repository, work, 'whole')
    while not (work / 'whole.partial').exists():
        time.sleep(0.01)
    began = time.time()
    process.join()
    length = time.time() - began
    whole = content(work / 'whole')
    assert process.exitcode == 0 and len(whole) == 60 + 3

    rng, kills, resumed = random.Random(0), 0, 0
    while kills < 20:
        chunks = len(list(partial.glob('chunks/*/*.npz')))
        process = start(repository, work, 'release')
        while not partial.exists() and process.is_alive():
            time.sleep(0.01)
        process.join(rng.uniform(0, length))
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert content(work / 'release') == whole and not partial.exists()
            shutil.rmtree(work / 'release')
            shutil.rmtree(work / 'release.private')
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        resumed += chunks > 0
        assert partial.exists() or (work / 'release').exists()
        if (work / 'release').exists():  # killed after the renaming
            assert content(work / 'release') == whole
    assert resumed > 3
    assert finish(repository, work, 'release') == 0
    assert content(work / 'release') == whole and not partial.exists()
    assert links(work, 'release') == links(work, 'whole')


def links(work, name):
    return (work / f'{name}.private/links.csv').read_bytes()


def kill_at_touches(repository, work, step):
    """Kills runs one after the other, each at a later touch of the file system than it would have come to again."""
    export(repository, work, 'whole')
    whole, touches, kills = content(work / 'whole'), 1, 0
    while finish(repository, work, 'release', touches) != 0:
        kills += 1
        assert not (work / 'release').exists() or content(work / 'release') == whole
        touches += step
    assert content(work / 'release') == whole and links(work, 'release') == links(work, 'whole')
    assert not (work / 'release.partial').exists()
    return kills


def test_killed_between_two_touches_of_the_disk_it_ends_with_the_same_bytes(repository, work):
    assert kill_at_touches(repository, work, 9) >= 5


@pytest.mark.slow
def test_killed_at_every_touch_of_the_disk_it_ends_with_the_same_bytes(repository, work):
    assert kill_at_touches(repository, work, 1) >= 30


def test_a_damaged_chunk_is_named(repository, work):
    first = export(repository, work, 'first')
    assert finish(repository, work, 'release', 25) == -signal.SIGKILL
    chunk = min((work / 'release.partial/chunks').glob('*/*.npz'))
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f'{chunk.name} is damaged.*Delete it'):
        export(repository, work, 'release')
    chunk.unlink()
    assert content(export(repository, work, 'release')) == content(first)


def stop_before_merging(monkeypatch, repository, work, name, **options):
    """An export that ends when all chunks are there."""
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionExportHook, '_assemble', lambda *_: pytest.fail('stopped'))
        with pytest.raises(pytest.fail.Exception, match='stopped'):
            export(repository, work, name, **options)
    return sorted((work / f'{name}.partial/chunks').glob('*/*.npz'))


def test_a_chunk_of_another_export_is_named(repository, work, monkeypatch):
    """A process that its launcher did not end writes on while another export was begun in the same place."""
    first = content(export(repository, work, 'first'))
    chunk = stop_before_merging(monkeypatch, repository, work, 'other', mask_ratio=0.5)[2]
    there = stop_before_merging(monkeypatch, repository, work, 'release')[2]
    shutil.copy(chunk, there)
    with pytest.raises(ValueError, match=f'{there.name} was written by a process of another export'):
        export(repository, work, 'release')
    there.unlink()
    assert content(export(repository, work, 'release')) == first


def test_a_lost_chunk_is_said_without_another_remedy(repository, work, monkeypatch):
    chunk = stop_before_merging(monkeypatch, repository, work, 'release')[2]
    chunk.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ChunkFiles, 'written', lambda self, chunks: np.ones(chunks, bool))  # lost after it was seen
        with pytest.raises(ValueError, match=r'^Chunk 2 is missing in .*The same command makes it and goes on\.$'):
            export(repository, work, 'release')
    check_release(export(repository, work, 'release'))


def test_faces_left_out_before_are_not_left_out_without_a_word(repository, work, monkeypatch):
    first = content(export(repository, work, 'first'))
    whole = (work / 'faces/person_1/2.png').read_bytes()
    (work / 'faces/person_1/2.png').write_bytes(b'no picture')
    stop_before_merging(monkeypatch, repository, work, 'release', on_error='skip')
    (work / 'faces/person_1/2.png').write_bytes(whole)
    with pytest.raises(
        ValueError, match=r'person_1/2 .*left out before, with on_error=skip.*delete .*\.npz'
    ) as refused:
        export(repository, work, 'release')
    next(path for path in work.glob('release.partial/chunks/*/*.npz') if str(path) in str(refused.value)).unlink()
    assert content(export(repository, work, 'release')) == first


def test_only_the_owner_can_look_into_what_is_begun(repository, work, monkeypatch):
    stop_before_merging(monkeypatch, repository, work, 'release')
    for path in (work / 'release.partial').iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((work / 'release.private/settings.json').stat().st_mode) == 0o600


def test_a_run_that_ends_while_another_begins_is_seen(tmp_path, monkeypatch):
    other = PartialFolder(tmp_path / 'release', dict(a=1), accept_complete=True)
    lock = resumable.lock_folder

    def late(path):
        other.finish()
        return lock(path)

    monkeypatch.setattr(resumable, 'lock_folder', late)
    found = PartialFolder(tmp_path / 'release', dict(a=1), accept_complete=True)
    assert found.complete and not found.path.exists()


def test_a_full_disk_is_said_and_what_is_finished_is_kept(repository, work):
    first = content(export(repository, work, 'first'))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'while writing .*release.partial.*the same command goes on'):
            export(repository, work, 'release')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (work / 'release').exists()
    assert content(export(repository, work, 'release')) == first
    sheet = export(repository, work, 'sheet', samples=16) / 'samples.png'
    resource.setrlimit(resource.RLIMIT_FSIZE, (sheet.stat().st_size - 1, limits[1]))  # chunks are smaller
    try:
        with pytest.raises(OSError, match='the same command goes on'):
            export(repository, work, 'cut', samples=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (work / 'cut').exists()


def test_faces_that_cannot_be_read_are_left_out_and_counted(repository, work):
    source = open_faces(export(repository, work, 'whole'))
    with (work / 'whole.private/links.csv').open(newline='') as file:
        placed = [line['source_key'] for line in csv.DictReader(file)]
    lost = [placed[1], *placed[4:8]]  # one face of the first person, the second person
    for key in lost:
        (work / f'faces/{key}.png').write_bytes(b'no picture')
    release = export(repository, work, 'release', on_error='skip')
    manifest, _ = read_manifest(release)
    assert (manifest['images'], manifest['identities'], manifest['errors_skipped']) == (11, 3, 5)
    assert manifest['images_by_identity'] == [3, 4, 4]
    found = open_faces(release)
    kept = [i for i in range(16) if placed[i] not in lost]
    assert found.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    for i, j in enumerate(kept):
        one, other = (
            cv2.imdecode(np.frombuffer(s.read(k), np.uint8), 1).astype(int) for s, k in ((found, i), (source, j))
        )
        assert np.abs(one - other).max() <= 1  # elsewhere in the chunk
    with (work / 'release.private/skipped.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['source_key'] for row in rows] == lost and all('no image' in row['note'] for row in rows)
    assert '5 source faces could not be read' in (release / 'README.md').read_text()
    check_release(release)
    for path in (work / 'faces').glob('*/*.png'):
        path.write_bytes(b'no picture')
    with pytest.raises(ValueError, match='None of 16 faces could be read'):
        export(repository, work, 'nothing', on_error='skip')


def test_two_runs_at_once_are_refused(repository, many):
    process = start(repository, many, 'release')
    while not (many / 'release.partial').exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # or it may end before the other one begins
    try:
        with pytest.raises(FileExistsError, match='Another process is at work on .*release.private'):
            export(repository, many, 'release')
    finally:
        os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and (many / 'release').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_failing_disk_ends_the_run_also_where_faces_may_be_left_out(repository, work, monkeypatch, workers):
    read = FaceRecordDataset.__getitem__

    def fail(self, item):
        if item == 7:
            raise OSError(errno.EIO, 'Input/output error')
        return read(self, item)

    options = {'test_dataloader.num_workers': workers, 'on_error': 'skip'}
    monkeypatch.setattr(FaceRecordDataset, '__getitem__', fail)
    with pytest.raises(OSError, match='Input/output error'):
        export(repository, work, 'release', **options)
    monkeypatch.setattr(FaceRecordDataset, '__getitem__', read)
    assert read_manifest(export(repository, work, 'release', **options))[0]['errors_skipped'] == 0


def test_a_killed_worker_is_said(repository, work, monkeypatch):
    read = FaceRecordDataset.__getitem__

    def die(self, item):
        if item == 7 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, item)

    first = content(export(repository, work, 'first'))
    monkeypatch.setattr(FaceRecordDataset, '__getitem__', die)
    with pytest.raises(ChildProcessError, match='ended by itself.*the same command goes on'):
        export(repository, work, 'release', **{'test_dataloader.num_workers': 1})
    assert content(export(repository, work, 'release')) == first


# Reproducible


def test_bytes_do_not_depend_on_batch_size_and_workers(repository, work):
    whole = content(export(repository, work, 'whole'))
    for number, (batch, workers) in enumerate([(1, 0), (3, 2), (16, 1)]):
        options = {'test_dataloader.batch_size': batch, 'test_dataloader.num_workers': workers}
        assert content(export(repository, work, f'release {number}', **options)) == whole


def test_what_a_pipeline_draws_does_not_depend_on_workers(repository, work):
    releases = []
    for workers in (0, 2):
        name = f'release {workers}'
        cfg = recipe(repository, work / 'faces', work / name, work, **{'test_dataloader.num_workers': workers})
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
        Runner.from_cfg(cfg).test()
        releases.append(content(work / name))
    assert releases[0] == releases[1] != content(export(repository, work, 'plain'))


def export_by_processes(repository, work, name, options=None):
    cfg = recipe(repository, work / 'faces', work / name, work, **options or {})
    cfg.launcher = 'pytorch'
    init_distributed(cfg, 'pytorch')
    Runner.from_cfg(cfg).test()


@pytest.mark.parametrize('processes', [2, 4])
def test_bytes_do_not_depend_on_the_number_of_processes(repository, work, processes):
    whole = content(export(repository, work, 'whole'))
    spawn(export_by_processes, processes, repository, work, 'release')
    assert content(work / 'release') == whole and links(work, 'release') == links(work, 'whole')


def export_by_its_own_secret(repository, work):
    export_by_processes(repository, work, 'release', dict(mask_secret=str(work / f'secret_{os.environ["RANK"]}')))


def test_processes_that_see_different_things_are_refused(repository, work):
    with pytest.raises(
        Exception, match=r'Process 1 of this export sees .* mask\.commitment: \w{64} there, \w{64} here'
    ):
        spawn(export_by_its_own_secret, 2, repository, work)
    assert not list(work.glob('release*'))


def export_refused_by_one(repository, work):
    export_by_processes(repository, work, 'release', {'model.head.norm_pix': os.environ['RANK'] == '1'})


def test_what_another_process_refuses_is_said_by_the_first(repository, work):
    with pytest.raises(Exception, match=r'Process 0 terminated[\s\S]*head\.norm_pix must be False'):
        spawn(export_refused_by_one, 2, repository, work)


def test_other_processes_go_on_where_one_was_killed(repository, many):
    whole = content(export(repository, many, 'whole'))
    assert finish(repository, many, 'release', 60) == -signal.SIGKILL
    done = len(list((many / 'release.partial/chunks').glob('*/*.npz')))
    assert 5 < done < 20
    spawn(export_by_processes, 2, repository, many, 'release')
    assert content(many / 'release') == whole
    log = (many / 'release.private/export.log').read_text()
    assert f'goes on: {20 - done} of 20 chunks of 3 faces to do, 2 processes' in log


# Guards


def test_pasted_pixels_are_loud(repository, work, capfd):
    release = export(repository, work, 'release', **{'model.paste_visible': True})
    printed = ''.join(capfd.readouterr())
    assert 'this release holds the real pixels of every visible patch' in printed and 'holds real pixels' in printed
    assert read_manifest(release)[0]['paste_visible'] is True
    assert '**The visible patches of the real faces were pasted back' in (release / 'README.md').read_text()
    text = (work / 'release.private' / 'export.log').read_text()
    assert (
        'begins: 6 of 6 chunks' in text and stat.S_IMODE((work / 'release.private/export.log').stat().st_mode) == 0o600
    )


def command(repository, work, *flags, **options):
    """tools/test.py as a user starts it."""
    options = SMALL | {'test_cfg.chunk_size': 3, 'test_dataloader.num_workers': 1, 'mask_secret': 'secret'} | options
    return [
        sys.executable,
        str(repository / 'tools/test.py'),
        str(repository / 'configs/export_casia.py'),
        'model.pth',
        *flags,
        '--cfg-options',
        *cfg_options(options),
    ]


def run(repository, work, *flags, **options):
    env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
    done = subprocess.run(
        command(repository, work, *flags, **options), cwd=work, env=env, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_the_whole_command_is_blind_to_removed_pixels(repository, work):
    code, text = run(repository, work, deploy_faces='faces', release_dir='first')
    assert code == 0 and '16 faces of 4 identities' in text, text[-3000:]
    invert_removed(work, 'faces', 'changed')
    code, text = run(repository, work, deploy_faces='changed', release_dir='second')
    assert code == 0, text[-3000:]
    assert content(work / 'second') == content(work / 'first')
    code, text = run(repository, work, deploy_faces='faces', release_dir='first')
    assert code == 0 and 'is complete' in text and 'nothing to do' in text
    code, text = run(repository, work, deploy_faces='faces', release_dir='first', mask_ratio=0.9)
    assert code == 2 and 'mask.ratio: 0.75 then, 0.9 now' in text and 'Traceback' not in text


@pytest.fixture
def originals(work):
    """Options that compare with the originals under a narrow random φ."""
    torch.manual_seed(0)
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), work / 'phi.pth')
    return {'custom_hooks.0.originals': str(work / 'faces'), 'custom_hooks.0.phi': str(work / 'phi.pth')}


def test_originals_say_how_close_the_faces_are(repository, work, originals):
    plain = content(export(repository, work, 'plain'))
    release = export(repository, work, 'release', **originals)
    faces = {name: data for name, data in content(release).items() if name.endswith('.png')}
    assert faces == {name: data for name, data in plain.items() if name.endswith('.png')}
    found = read_manifest(release)[0]['originals']
    assert found['phi_sha256'] == sha256_file(work / 'phi.pth')

    with (work / 'release.private/links.csv').open(newline='') as file:
        rows = [
            (release / row['released_path'], work / f'faces/{row["source_key"]}.png') for row in csv.DictReader(file)
        ]
    psnr = []
    for one, other in rows:
        error = cv2.imread(str(one)).astype(float) - cv2.imread(str(other))
        psnr.append(10 * np.log10(255**2 / (error**2).mean()))
    own = found['psnr']['own']
    assert own['images'] == 16
    expected = [min(psnr), np.quantile(psnr, 0.01), np.median(psnr), np.quantile(psnr, 0.99), max(psnr)]
    got = [own[name] for name in ('minimum', 'quantile_01', 'median', 'quantile_99', 'maximum')]
    assert got == pytest.approx(expected, abs=2e-3)
    assert -1 <= found['phi_similarity']['own']['minimum'] <= found['phi_similarity']['own']['maximum'] <= 1
    assert 8 <= found['psnr']['other']['images'] <= 16
    assert f'φ: `{found["phi_sha256"]}`' in (release / 'README.md').read_text()

    spawn(export_by_processes, 2, repository, work, 'parallel', originals)
    assert content(work / 'parallel') == content(release)
    write_faces(work / 'copy')
    shutil.rmtree(work / 'faces/person_0')
    with pytest.raises(ValueError, match="holds no 'person_0/"):
        export(repository, work, 'lost', faces='copy', **originals)


def test_originals_of_a_masked_dataset_need_its_secret(repository, work, originals):
    first = content(export(repository, work, 'first', **originals))
    command = [sys.executable, str(repository / 'tools/mask_faces.py'), 'faces', 'masked', '--secret', 'secret']
    subprocess.run(command, cwd=work, env=os.environ | dict(PYTHONPATH=str(repository)), timeout=120, check=True)
    assert content(export(repository, work, 'second', faces='masked', **originals)) == first
    with pytest.raises(ValueError, match='masked with another secret'):
        export(repository, work, 'third', faces='masked', mask_secret=str(work / 'another'), **originals)


# Several processes by the command


def test_a_vanished_process_ends_the_command_which_then_goes_on(repository, many):
    work = many
    options = SMALL | {'test_cfg.chunk_size': 3, 'test_dataloader.num_workers': 0, 'mask_secret': 'secret'}
    options |= dict(deploy_faces='faces', release_dir='release')
    whole = content(export(repository, work, 'whole'))
    env = os.environ | dict(PYTHON=sys.executable, PORT=str(free_port()), OMP_NUM_THREADS='1')
    arguments = [
        'bash',
        str(repository / 'tools/dist_test.sh'),
        str(repository / 'configs/export_casia.py'),
        'model.pth',
        '2',
    ]
    arguments += ['--cfg-options', *cfg_options(options)]
    process = subprocess.Popen(
        arguments, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list(work.glob('release.partial/chunks/*/*.npz')) and process.poll() is None:
        time.sleep(0.01)
    port = f'\0MASTER_PORT={env["PORT"]}\0'.encode()
    ranks = [pid for pid in running() if b'\0RANK=1\0' in environment(pid) and port in environment(pid)]
    os.kill(ranks[0], signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, 2) and 'the same command' in text, text[-3000:]
    assert not (work / 'release').exists() and (work / 'release.partial').exists()
    done = subprocess.run(arguments, cwd=work, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(work / 'release') == whole


def running():
    return [int(pid) for pid in os.listdir('/proc') if pid.isdigit()]


def environment(pid):
    try:
        with open(f'/proc/{pid}/environ', 'rb') as file:
            return b'\0' + file.read()
    except OSError:
        return b''
