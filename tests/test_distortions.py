"""Distorted faces: what is left of them, that nothing else is, and that every tool takes them as it takes a release."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS, TRANSFORMS
from test_embedders import randomised
from tiny import write_faces

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.config import load_config
from facemae_mm.datasets import FaceDistortion, FaceMask, FaceRecordDataset, LoadFace, open_faces
from facemae_mm.datasets.face_distortion import KINDS, add_noise, blur, pixelate
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.release.distort import distort_faces
from facemae_mm.release.plan import ReleasePlan

PHI = dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16)
HEADER = 'path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy'


@pytest.fixture
def face():
    return np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / 'faces')


def distorted(img, kind, strength=None, seed=0, key='a/0', **more):
    return FaceDistortion(kind, strength, seed)(dict(img=img.copy(), img_key=key, **more))['img']


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def links_of(out):
    return list(csv.DictReader(open(out.with_name(f'{out.name}.private') / 'links.csv')))


@pytest.fixture
def distort(repository, monkeypatch, capsys):
    """Runs tools/distort_faces.py in this process; gives exit code and output."""
    spec = importlib.util.spec_from_file_location('distort_faces', repository / 'tools/distort_faces.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['distort_faces.py', *map(str, arguments), '--workers', '0'])
        code = 0
        try:
            module.main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


# Pixels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('sigma', [1.0, 2.5])
def test_blur_is_a_gaussian_rounded(face, sigma):
    small = face[:24, :20]
    radius = round(4 * sigma)
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(small.astype(float), ((radius, radius), (radius, radius), (0, 0)), 'reflect')
    expected = np.zeros(small.shape)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            expected += weights[dy] * weights[dx] * padded[dy : dy + 24, dx : dx + 20]
    assert np.abs(blur(small, sigma) - expected).max() <= 0.501
    assert np.array_equal(distorted(small, 'blur', sigma), blur(small, sigma))


def test_noise_has_the_strength_that_was_asked_for():
    grey = np.full((112, 112, 3), 128, np.uint8)
    noise = distorted(grey, 'noise', 24.0).astype(float) - 128  # more than five of them to either end
    pixels = noise.size
    assert abs(noise.mean()) < 4 * 24 / pixels**0.5
    assert abs(noise.std() / (24**2 + 1 / 12) ** 0.5 - 1) < 4 / (2 * pixels) ** 0.5
    fourth = (noise**4).mean() / noise.var() ** 2
    assert abs(fourth - 3) < 4 * (24 / pixels) ** 0.5  # a Gaussian's
    neighbours = [(noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise[..., 0], noise[..., 1])]
    for a, b in neighbours:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


def test_noise_follows_seed_and_key_alone_and_is_clipped(face):
    first = distorted(face, 'noise', 40)
    distorted(face, 'noise', 40, key='another')  # draws in between
    np.random.default_rng().random(7)
    assert np.array_equal(first, distorted(face, 'noise', 40))
    others = [distorted(face, 'noise', 40, key='a/1'), distorted(face, 'noise', 40, seed=1)]
    for other in others:
        assert (other != first).mean() > 0.9
    ends = add_noise(np.stack([np.zeros((50, 50), np.uint8), np.full((50, 50), 255, np.uint8)] * 3, -1)[..., :3], 20, 0)
    assert abs((ends == 0).mean((0, 1))[0] - 0.5) < 0.1 and abs((ends == 255).mean((0, 1))[1] - 0.5) < 0.1


@pytest.mark.parametrize('side', [1, 7, 8, 16, 112])
def test_pixelated_blocks_are_their_mean(face, side):
    seen = distorted(face, 'pixelate', side)
    assert seen.dtype == np.uint8 and seen.shape == face.shape
    for y in range(0, 112, side):
        for x in range(0, 112, side):
            for channel in range(3):
                block = face[y : y + side, x : x + side, channel].astype(np.int64)
                mean = round(int(block.sum()) / block.size)  # halves to even, as the statement says
                assert (seen[y : y + side, x : x + side, channel] == mean).all()


def test_a_half_goes_to_the_even_level():
    pair = np.zeros((2, 2, 3), np.uint8)
    pair[:, 1] = [1, 3, 5]
    assert pixelate(pair, 2)[0, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize('side', [5, 20, 28])
def test_parts_are_the_squares_and_nothing_else(face, side):
    points = np.array([[38.2, 51.5], [73.6, 50.9], [56, 71], [-3.4, 92.0], [109.7, 111.0]], np.float32)
    seen = distorted(face, 'parts', side, landmarks=points)
    for y in range(112):
        for x in range(112):
            # Pixel x covers x ± ½; a square of odd or even side lies as near to its point as whole pixels allow.
            inside = any(
                abs(x - (np.rint(px - (side - 1) / 2) + (side - 1) / 2)) < side / 2
                and abs(y - (np.rint(py - (side - 1) / 2) + (side - 1) / 2)) < side / 2
                for px, py in points[[0, 1, 3, 4]].astype(float)
            )
            assert (seen[y, x] == (face[y, x] if inside else 128)).all()
    middle = np.abs(np.rint(points - (side - 1) / 2) + (side - 1) / 2 - points)
    assert middle.max() <= 0.5


def test_parts_follow_the_template_where_landmarks_are_unknown(face):
    template = distorted(face, 'parts', landmarks=ARCFACE_TEMPLATE)
    assert np.array_equal(template, distorted(face, 'parts'))
    assert np.array_equal(template, distorted(face, 'parts', landmarks=None))
    shifted = distorted(face, 'parts', landmarks=ARCFACE_TEMPLATE + [0, 9])
    assert not np.array_equal(template, shifted)
    white = np.full_like(face, 255)
    assert (distorted(white, 'parts') == 255).all(-1).mean() == 0.25  # as many pixels as 75 % masking leaves
    large = distorted(np.full((224, 224, 3), 255, np.uint8), 'parts', 56)
    assert np.array_equal(large[::2, ::2], distorted(white, 'parts'))


def test_masked_faces_are_those_of_the_masked_dataset(faces, tmp_path):
    mask_faces(open_faces(faces), tmp_path / 'masked', FaceMask(fresh=False, seed=3), workers=0)
    distort_faces(open_faces(faces), tmp_path / 'out', FaceDistortion('masked', seed=3), workers=0)
    masked, out = FaceRecordDataset(tmp_path / 'masked', [LoadFace()]), open_faces(tmp_path / 'out')
    assert len(masked) == len(out) == 16
    for number, sample in enumerate(masked[i] for i in range(16)):  # one order, by the seed
        img = LoadFace()(dict(img_bytes=out.read(number)))['img']
        assert np.array_equal(img, np.rint(sample['img'])) and (sample['img'] != img).mean() >= 0.74
        assert out.labels[number] == sample['gt_label']


@pytest.mark.parametrize('kind', list(KINDS))
def test_defaults_change_a_face_and_a_config_composes_them(face, kind):
    transform = TRANSFORMS.build(dict(type='FaceDistortion', kind=kind))
    seen = transform(dict(img=face.copy(), img_key='a/0'))['img']
    assert seen.dtype == np.uint8 and seen.shape == face.shape and (seen != face).mean() > 0.7
    assert transform.strength == KINDS[kind][1]


# Sets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', list(KINDS))
def test_a_face_does_not_depend_on_workers_order_or_the_others(faces, tmp_path, kind):
    (faces / 'landmarks5.csv').write_text(f'{HEADER}\nperson_1/2.png,30,40,60,42,50,60,33,80,64,84\n')
    for workers in (0, 2):
        distort_faces(open_faces(faces), tmp_path / f'out_{workers}', FaceDistortion(kind, seed=5), workers=workers)
    whole = content(tmp_path / 'out_0')
    assert whole == content(tmp_path / 'out_2')
    links = links_of(tmp_path / 'out_0')
    assert links == links_of(tmp_path / 'out_2')
    shutil.make_archive(tmp_path / 'zipped', 'zip', faces)
    shutil.copy(faces / 'landmarks5.csv', tmp_path / 'zipped.landmarks5.csv')
    distort_faces(open_faces(tmp_path / 'zipped.zip'), tmp_path / 'of_zip', FaceDistortion(kind, seed=5), workers=0)
    assert content(tmp_path / 'of_zip') == whole
    for person in ('person_0', 'person_3'):
        shutil.rmtree(faces / person)
    (faces / 'person_2/1.png').unlink()
    distort_faces(open_faces(faces), tmp_path / 'fewer', FaceDistortion(kind, seed=5), workers=0)
    before = {row['source_key']: whole[row['released_path']] for row in links}
    fewer = links_of(tmp_path / 'fewer')
    assert len(fewer) == 7
    for row in fewer:
        assert (tmp_path / 'fewer' / row['released_path']).read_bytes() == before[row['source_key']]


def test_names_and_order_are_those_of_a_release_of_the_same_seed(faces, tmp_path):
    distort_faces(open_faces(faces), tmp_path / 'out', FaceDistortion('blur', seed=7), workers=0)
    plan = ReleasePlan.of(FaceRecordDataset(faces), FaceMask(16, 0.5, fresh=False, seed=7))
    names = list(plan.names(range(16)))
    rows = links_of(tmp_path / 'out')
    assert [(row['source_key'], row['source_label']) for row in rows] == names
    assert [int(row['released_label']) for row in rows] == plan.labels.tolist()
    assert rows[5]['released_path'] == '000001/000001.png'
    assert [person for _, person in names] != sorted(person for _, person in names)


@pytest.mark.parametrize('kind', ['masked', 'parts'])
def test_what_was_removed_changes_no_byte(faces, tmp_path, kind):
    distort_faces(open_faces(faces), tmp_path / 'out', FaceDistortion(kind), workers=0)
    rng = np.random.default_rng(2)
    for row in links_of(tmp_path / 'out'):
        path = faces / f'{row["source_key"]}.png'
        kept = cv2.imread(str(tmp_path / 'out' / row['released_path']))
        face = cv2.imread(str(path))
        removed = (kept == 128).all(-1) & (face != kept).any(-1)
        assert removed.mean() > 0.7
        face[removed] = rng.integers(0, 256, (removed.sum(), 3))
        cv2.imwrite(str(path), face)
    distort_faces(open_faces(faces), tmp_path / 'again', FaceDistortion(kind), workers=0)
    assert content(tmp_path / 'out') == content(tmp_path / 'again')


def test_the_set_says_what_it_is_and_links_are_the_owners(faces, tmp_path):
    (faces / 'landmarks5.csv').write_text(f'{HEADER}\nperson_1/2.png,30,40,60,42,50,60,33,80,64,84\n')
    said = distort_faces(open_faces(faces), tmp_path / 'out', FaceDistortion('parts', 20, seed=4), workers=0)
    assert '16 faces of 4 identities' in said and 'side of a part, pixels: 20' in said
    info = json.loads((tmp_path / 'out/distortion.json').read_text())
    assert info['distortion'] == dict(kind='parts', strength=20, meaning='side of a part, pixels', seed=4)
    assert (info['images'], info['identities'], info['size'], info['own_landmarks']) == (16, 4, 112, 1)
    assert 'Real faces' in info['what']
    private = tmp_path / 'out.private'
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / 'links.csv').stat().st_mode) == 0o600
    checked = subprocess.run(['sha256sum', '--check', '--quiet', 'SHA256SUMS'], cwd=tmp_path / 'out')
    assert checked.returncode == 0
    names = b''.join(data for name, data in content(tmp_path / 'out').items() if not name.endswith('.png'))
    assert b'person' not in names and not (tmp_path / 'out.partial').exists()


def test_a_killed_command_leaves_no_set_and_starts_over(repository, distort, tmp_path):
    faces = write_faces(tmp_path / 'faces', 40, 10)
    distort_faces(open_faces(faces), tmp_path / 'whole', FaceDistortion('noise'), workers=0)
    command = [sys.executable, str(repository / 'tools/distort_faces.py'), str(faces), str(tmp_path / 'out')]
    command += ['--kind', 'noise', '--workers', '0']
    with subprocess.Popen(
        command, env=os.environ | dict(PYTHONPATH=str(repository)), stderr=subprocess.DEVNULL
    ) as tool:
        while not list((tmp_path / 'out.partial').glob('release/*/000003.png')):
            assert tool.poll() is None, 'it was ready before it could be killed'
            time.sleep(0.01)
        tool.send_signal(signal.SIGKILL)
    assert not (tmp_path / 'out').exists() and (tmp_path / 'out.partial').exists()
    code, text = distort(faces, tmp_path / 'out', '--kind', 'noise', '--strength', 9)
    assert code == 2 and 'strength: 64.0 then, 9.0 now' in text
    code, text = distort(faces, tmp_path / 'out', '--kind', 'noise')
    assert code == 0, text
    assert content(tmp_path / 'out') == content(tmp_path / 'whole')
    assert links_of(tmp_path / 'out') == links_of(tmp_path / 'whole')
    code, text = distort(faces, tmp_path / 'out', '--kind', 'noise')
    assert code == 2 and 'exists already' in text


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind, strength, says',
    [
        ('swirl', None, "kind 'swirl' is none of masked, blur, noise, pixelate, parts"),
        ('masked', 1.0, r'mask_ratio 1.0 is not in \[0, 1\)'),
        ('blur', 0, r'blur of 0 \(standard deviation, pixels\) is not above 0'),
        ('blur', float('nan'), 'blur of nan'),
        ('noise', -3.0, 'noise of -3.0'),
        ('noise', float('inf'), 'noise of inf'),
        ('pixelate', 7.5, 'pixelate of 7.5 .side of a block, pixels. is no whole number'),
        ('pixelate', float('inf'), 'pixelate of inf'),
        ('parts', 0, 'parts of 0'),
        ('parts', float('nan'), 'parts of nan'),
    ],
)
def test_strengths_out_of_range(kind, strength, says):
    with pytest.raises(ValueError, match=says):
        FaceDistortion(kind, strength)


def test_faces_that_do_not_fit(face):
    with pytest.raises(ValueError, match=r"size \(112, 112\) of 'a/0' is not divided by blocks of 9.*such as 7, 8"):
        distorted(face, 'pixelate', 9)
    with pytest.raises(ValueError, match="'a/0' was flipped before.*flip behind"):
        distorted(face, 'parts', flip=True)
    with pytest.raises(ValueError, match="'a/0' has its patches removed already. Give whole faces"):
        distorted(face, 'blur', mask=np.ones(196, np.uint8))


def test_sets_that_do_not_fit(distort, faces, tmp_path):
    mask_faces(open_faces(faces), tmp_path / 'masked', FaceMask(fresh=False, seed=0), workers=0)
    code, text = distort(tmp_path / 'masked', tmp_path / 'out', '--kind', 'blur')
    assert code == 2 and 'is a masked dataset. Give a folder of identity folders' in text
    code, text = distort(faces / 'person_0', tmp_path / 'out', '--kind', 'blur')
    assert code == 2 and 'knows no identities' in text
    assert not list(tmp_path.glob('out*'))  # what is refused leaves nothing behind
    (faces / 'person_1/2.png').write_bytes(b'')
    code, text = distort(faces, tmp_path / 'out', '--kind', 'blur')
    assert code == 2 and 'person_1/2 is empty (0 bytes)' in text
    assert not (tmp_path / 'out').exists() and 'Traceback' not in text


# What reads it -------------------------------------------------------------------------------------------------------


def test_an_audit_and_a_recogniser_read_it(repository, distort, audit, tmp_path):
    faces = write_faces(tmp_path / 'faces', 8, 4)
    code, text = distort(faces, tmp_path / 'out', '--kind', 'pixelate', '--strength', '16')
    assert code == 0, text
    torch.manual_seed(0)
    torch.save(randomised(MODELS.build(PHI)).state_dict(), tmp_path / 'phi.pth')
    (tmp_path / 'attackers.py').write_text(
        "custom_imports = dict(imports=['facemae_mm.audit.attackers'], allow_failed_imports=False)\n"
        f"attackers = dict(plain=dict(type='EmbedderAttacker', embedder=dict(checkpoint='{tmp_path / 'phi.pth'}')))\n"
    )
    flags = ['--attackers', tmp_path / 'attackers.py', '--out', tmp_path / 'audit', '--draws', 2]
    code, text = audit(faces, tmp_path / 'out', '--links', tmp_path / 'out.private/links.csv', *flags)
    assert code == 0, text
    report = json.loads((tmp_path / 'audit/report.json').read_text())
    assert report['matching']['drawn_identities'] == 8
    last = report['attackers']['plain']['leakage']['original_released']['points'][-1]
    assert last['identities'] == 8 and last['with']['1'][0] >= last['without']['1'][0]

    options = dict(recognition_faces=str(tmp_path / 'out'), num_classes=8, **{'train_dataloader.batch_size': 8})
    cfg = load_config(repository / 'configs/demo_arcface.py', options)
    dataset = FaceRecordDataset(**{k: v for k, v in cfg.train_dataloader.dataset.items() if k != 'type'})
    assert len(dataset) == 32 and len(dataset.identities) == 8
    img = dataset[0]['inputs']
    assert img.shape == (3, 112, 112) and len(np.unique(img[0].numpy())) <= 49


def test_real_faces_lose_more_as_the_strength_grows(distort, shared, tmp_path):
    """The command on 20 people of LFW."""
    people = sorted(path for path in (shared / 'faces/lfw112').iterdir() if path.is_dir())[:20]
    for person in people:
        shutil.copytree(person, tmp_path / 'faces' / person.name)
    sets = {}
    for kind, strength in (('blur', 2), ('blur', 6), ('pixelate', 8), ('pixelate', 16), ('noise', 32), ('noise', 96)):
        out = tmp_path / f'{kind}_{strength}'
        code, text = distort(tmp_path / 'faces', out, '--kind', kind, '--strength', strength)
        assert code == 0, text
        error = []
        for row in links_of(out):
            real = cv2.imread(str(tmp_path / 'faces' / f'{row["source_key"]}.jpg')).astype(float)
            error.append(((cv2.imread(str(out / row['released_path'])) - real) ** 2).mean())
        sets[kind, strength] = np.mean(error)
    for kind, less, more in (('blur', 2, 6), ('pixelate', 8, 16), ('noise', 32, 96)):
        assert sets[kind, less] < sets[kind, more]
    assert sets['noise', 96] < 96**2  # clipping takes some of it
