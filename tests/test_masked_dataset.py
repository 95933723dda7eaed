"""The masked dataset: what FaceMask leaves, and nothing else."""

import csv
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from test_export import content, export, work  # noqa: F401
from tiny import write_faces

from facemae_mm.datasets import FaceMask, FaceRecordDataset, open_faces
from facemae_mm.datasets.masked_dataset import decode_masked, encode_masked
from facemae_mm.datasets.masking import _Masker, mask_faces, opaque_order
from facemae_mm.release.plan import ReleasePlan

PIPELINE = [dict(type='LoadFace', size=112)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(source, mask=None):
    """img and mask of each face, by the pseudonym of its key."""
    dataset = FaceRecordDataset(source, [*PIPELINE, mask] if mask else PIPELINE)
    name = mask.image_pseudonym if mask else str
    return {name(s['img_key']): (s['img'], s['mask'].tolist()) for s in map(dataset.__getitem__, range(len(dataset)))}


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / 'faces')


@pytest.fixture
def mask(tmp_path):
    return FaceMask(fresh=False, secret=str(tmp_path / 'mask.secret'))


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(mask_ratio=0.5, patch_size=16),
        dict(regions=['eyes', 'mouth']),
        dict(regions='nose', region_only=True),
    ],
    ids=str,
)
def test_faces_are_bit_for_bit_those_of_the_transform(tmp_path, faces, options):
    mask = FaceMask(fresh=False, secret=str(tmp_path / 'mask.secret'), **options)
    shift = np.arange(16) / 2
    rows = [
        f'{key},' + ','.join(str(38.5 + 3 * i + shift[n]) for i in range(10))
        for n, key in enumerate(open_faces(faces).keys)
    ]
    (faces / 'landmarks5.csv').write_text('path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy\n' + '\n'.join(rows) + '\n')
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=2)
    on_the_fly, stored = samples(faces, mask), samples(tmp_path / 'masked')
    assert on_the_fly.keys() == stored.keys() and len(stored) == 16
    for key, (img, drawn) in on_the_fly.items():
        assert stored[key][0].dtype == img.dtype == np.float32
        assert np.array_equal(stored[key][0], img) and stored[key][1] == drawn
    (removed,) = {sum(drawn) for _, drawn in stored.values()}
    ratio = open_faces(tmp_path / 'masked').info['mask']['ratio']
    assert removed == len(drawn) * ratio if mask.region_only else len(drawn) - removed == int(len(drawn) * (1 - ratio))
    again = FaceRecordDataset(tmp_path / 'masked', [*PIPELINE, mask])  # as the export's pipeline has it
    assert np.array_equal(again[3]['img'], stored[again[3]['img_key']][0])


def test_a_reader_written_from_the_page(repository, tmp_path, faces):
    """The code of docs/masked_dataset.md, which uses nothing of this package, on records of one part and of two."""

    class Split(FaceMask):
        def draw(self, img_key, *args, **options):
            drawn = super().draw(img_key, *args, **options)
            if img_key.endswith('/2'):  # the mask's first bytes are the magic of records, which cuts the record there
                drawn[:32] = np.unpackbits(np.frombuffer(b'\x0a\x23\xd7\xce', np.uint8))
                drawn[32:] = np.arange(164) >= 33
            return drawn

    mask = Split(fresh=False, secret=str(tmp_path / 'mask.secret'))
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    (code,) = re.findall(
        '```python\n(.*?)```', (repository / 'docs/masked_dataset.md').read_text(encoding='utf-8'), re.S
    )
    assert 'facemae_mm' not in code
    page = {}
    exec(compile(code, 'masked_dataset.md', 'exec'), page)
    read = list(page['read_masked'](tmp_path / 'masked'))
    expected = samples(faces, mask)
    source = open_faces(tmp_path / 'masked')
    assert [key for key, *_ in read] == list(source.keys) and {key for key, *_ in read} == set(expected)
    assert [label for _, label, *_ in read] == source.labels.tolist()
    for key, _, face, drawn in read:
        assert np.array_equal(face[..., ::-1], expected[key][0]) and drawn.tolist() == expected[key][1]
    cut = b'\x0a\x23\xd7\xce' + (32).to_bytes(3, 'little') + b'\x20'  # 24 bytes of labels, 8 of header: flag 1
    assert (tmp_path / 'masked/faces.rec').read_bytes().count(cut) == 4


def test_real_faces_are_stored_in_a_third_of_their_png(tmp_path, shared):
    """600 faces of LFW as MXNet packed them."""
    source = open_faces(shared / 'formats/lfw60_mxnet/train.rec')
    mask = FaceMask(fresh=False, seed=1)
    mask_faces(source, tmp_path / 'masked', mask)
    stored = sum(path.stat().st_size for path in (tmp_path / 'masked').iterdir())
    faces = [cv2.imdecode(np.frombuffer(source.read(i), np.uint8), cv2.IMREAD_COLOR) for i in range(len(source))]
    png = sum(len(cv2.imencode('.png', face)[1]) for face in faces)
    assert len(faces) == 600 and stored <= 0.35 * png
    masked = open_faces(tmp_path / 'masked')
    assert len(masked) == 600 and len(masked.identities) == 60
    assert sorted(np.bincount(masked.labels)) == sorted(np.bincount(source.labels))
    place = {key: i for i, key in enumerate(masked.keys)}
    for key, face in zip(source.keys, faces):
        img, drawn = decode_masked(masked.read(place[mask.image_pseudonym(key)]), key)
        removed = drawn.reshape(14, 14).repeat(8, 0).repeat(8, 1) == 1
        assert np.array_equal(img[~removed], face[~removed]) and (img[removed] == 127.5).all()
        assert np.array_equal(drawn, mask.draw(key, 112))


def test_what_is_behind_the_mask_changes_no_byte(tmp_path, faces, mask):
    mask_faces(open_faces(faces), tmp_path / 'first', mask, workers=0)
    for key, path in ((path.relative_to(faces).with_suffix('').as_posix(), path) for path in faces.glob('*/*.png')):
        img = cv2.imread(str(path))
        removed = mask.draw(key, 112).reshape(14, 14).repeat(8, 0).repeat(8, 1) == 1
        img[removed] = np.random.default_rng(0).integers(0, 256, img[removed].shape)
        cv2.imwrite(str(path), img)
    mask_faces(open_faces(faces), tmp_path / 'second', mask, workers=2)
    assert files(tmp_path / 'second') == files(tmp_path / 'first')
    img[~removed] ^= 1
    cv2.imwrite(str(path), img)
    mask_faces(open_faces(faces), tmp_path / 'third', mask, workers=0)
    assert files(tmp_path / 'third') != files(tmp_path / 'first')


def test_names_and_order_of_the_source_stay_with_the_owner(tmp_path, faces, mask):
    mask_faces(open_faces(faces), tmp_path / 'masked', mask)
    secret = (tmp_path / 'mask.secret').read_bytes()
    masked = open_faces(tmp_path / 'masked')
    names = {hmac.new(secret, key.encode(), hashlib.sha256).hexdigest(): key for key in open_faces(faces).keys}
    assert set(masked.keys) == set(names) and masked.identities == [f'{i:06d}' for i in range(4)]
    order = [names[key] for key in masked.keys]
    assert order != sorted(order)
    assert [key.split('/')[0] for key in order] == [key.split('/')[0] for key in order[::4] for _ in range(4)]
    everything = b''.join(name.encode() + data for name, data in files(tmp_path / 'masked').items())
    for word in (b'person_', secret, secret.hex().encode(), str(tmp_path).encode()):
        assert word not in everything
    private = tmp_path / 'masked.private'
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {path.name for path in private.iterdir()} == {'keys.csv', 'settings.json'}
    assert stat.S_IMODE((private / 'keys.csv').stat().st_mode) == 0o600
    with (private / 'keys.csv').open(newline='') as file:
        assert {row['key']: row['source_key'] for row in csv.DictReader(file)} == names
    info = json.loads((tmp_path / 'masked/facemasked.json').read_text())
    assert (info['images'], info['identities'], info['skipped']) == (16, 4, 0)
    assert info['mask']['commitment'] == hmac.new(secret, b'facemae-mask-v1', hashlib.sha256).hexdigest()
    assert info['sha256']['keys.bin'] == hashlib.sha256((tmp_path / 'masked/keys.bin').read_bytes()).hexdigest()


def test_the_release_is_the_same_without_the_originals(repository, work):  # noqa: F811
    """Byte by byte: from the originals, and, these gone, from what left their owner."""
    first = content(export(repository, work, 'first'))
    mask = FaceMask(fresh=False, secret=str(work / 'secret'))
    mask_faces(open_faces(work / 'faces'), work / 'masked', mask)
    shutil.rmtree(work / 'faces')
    (work / 'secret').unlink()
    assert content(export(repository, work, 'second', faces='masked')) == first
    assert len(first) == 19 and not (work / 'secret').exists()
    other = FaceRecordDataset(work / 'masked', [*PIPELINE, FaceMask(fresh=False, seed=0, mask_ratio=0.5)])
    with pytest.raises(ValueError, match=r'patch_size=8 and mask_ratio=0.5 would remove 98 of 196'):
        other[0]


def test_its_release_has_its_order(faces, tmp_path, mask):
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    masked = FaceRecordDataset(tmp_path / 'masked', subset=dict(identities=['000001', '000003']))
    plan = ReleasePlan.of(masked, mask)
    assert plan.order.tolist() == list(range(8)) and plan.labels.tolist() == [0] * 4 + [1] * 4
    original = ReleasePlan.of(FaceRecordDataset(faces), mask)
    keys = [mask.image_pseudonym(key) for key, _ in original.names(range(len(original)))]
    assert [key for key, _ in plan.names(range(8))] == keys[4:8] + keys[12:16]
    assert original.labels.tolist() == sorted(list(range(4)) * 4)


class Dying(_Masker):
    def __call__(self, image):
        if image == self.source.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


def mask_until_killed(source, out, mask, place, monkeypatch):
    """Masks in another process, which is killed at so many faces."""
    source.die_at = opaque_order(mask, source.keys, source.labels, source.identities)[0][place]
    child = os.fork()
    if not child:
        monkeypatch.setattr('facemae_mm.datasets.masking._Masker', Dying)
        mask_faces(source, out, mask, workers=0)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize('place', [0, 9, 15])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, faces, mask, monkeypatch, place):
    mask_faces(open_faces(faces), tmp_path / 'whole', mask, workers=0)
    source = open_faces(faces)
    mask_until_killed(source, tmp_path / 'masked', mask, place, monkeypatch)
    assert not (tmp_path / 'masked').exists()
    with pytest.raises((ValueError, FileNotFoundError)):
        open_faces(tmp_path / 'masked.partial')
    with pytest.raises(FileExistsError, match=r'begun with other settings: mask: .* Delete it to start anew'):
        mask_faces(source, tmp_path / 'masked', FaceMask(fresh=False, seed=3), workers=0)
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=2)
    for kind in ('', '.private'):
        assert files(tmp_path / f'masked{kind}') == files(tmp_path / f'whole{kind}')
    assert not (tmp_path / 'masked.partial').exists()


@pytest.mark.parametrize('step', range(10))
def test_killed_at_each_step_of_the_end(tmp_path, faces, mask, monkeypatch, step):
    """Before the n-th file is written as a whole, or gets another name."""
    mask_faces(open_faces(faces), tmp_path / 'whole', mask, workers=0)
    child = os.fork()
    if not child:
        steps = iter(range(100))

        def dying(function):
            def call(*args, **options):
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return call

        for owner, name in ((Path, 'write_text'), (Path, 'write_bytes'), (os, 'replace'), (os, 'rename')):
            monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
        mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
        os._exit(next(steps))
    status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL if step < 9 else os.WEXITSTATUS(status) == 9  # nothing comes after
    if step < 9:
        assert not (tmp_path / 'masked').exists()
        mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    for kind in ('', '.private'):
        assert files(tmp_path / f'masked{kind}') == files(tmp_path / f'whole{kind}')
    assert not (tmp_path / 'masked.partial').exists()


def test_other_faces_under_the_same_names_are_not_mixed(tmp_path, faces, mask, monkeypatch):
    mask_until_killed(open_faces(faces), tmp_path / 'masked', mask, 9, monkeypatch)
    write_faces(tmp_path / 'others', seed=5)
    with pytest.raises(FileExistsError, match=r'begun with other settings: faces_sha256'):
        mask_faces(open_faces(tmp_path / 'others'), tmp_path / 'masked', mask, workers=0)
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)


def test_the_keys_of_a_set_that_was_moved_away_are_not_replaced(tmp_path, faces, mask):
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    (tmp_path / 'masked').rename(tmp_path / 'delivered')
    keys = (tmp_path / 'masked.private/keys.csv').read_bytes()
    write_faces(tmp_path / 'others', seed=5)
    with pytest.raises(FileExistsError, match=r'keys.csv belongs to what is not at .*masked any more'):
        mask_faces(open_faces(tmp_path / 'others'), tmp_path / 'masked', mask, workers=0)
    assert (tmp_path / 'masked.private/keys.csv').read_bytes() == keys and not (tmp_path / 'masked.partial').exists()


def test_a_killed_run_goes_on_after_a_person_of_whom_no_face_can_be_read(tmp_path, faces, monkeypatch):
    mask = FaceMask(fresh=False, seed=2)
    lost = sorted((f'person_{i}' for i in range(4)), key=mask.identity_pseudonym)[1]
    for path in (faces / lost).iterdir():
        path.write_bytes(b'')
    mask_faces(open_faces(faces), tmp_path / 'whole', mask, workers=0, on_error='skip')
    source = open_faces(faces)
    source.die_at = opaque_order(mask, source.keys, source.labels, source.identities)[0][-1]
    child = os.fork()
    if not child:
        monkeypatch.setattr('facemae_mm.datasets.masking._Masker', Dying)
        mask_faces(source, tmp_path / 'masked', mask, workers=0, on_error='skip')
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0, on_error='skip')
    masked = open_faces(tmp_path / 'masked')
    assert masked.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and masked.info['skipped'] == 4
    for kind in ('', '.private'):
        assert files(tmp_path / f'masked{kind}') == files(tmp_path / f'whole{kind}')


@pytest.mark.parametrize(('lost', 'told'), [(1, True), (7000, True), (None, False)])
def test_records_cut_off_are_written_again(tmp_path, faces, monkeypatch, lost, told):
    """As after a power cut; where that lost what came before a face that was left out, the work is refused."""
    mask = FaceMask(fresh=False, seed=2)
    (faces / 'person_1/2.png').write_bytes(b'')
    mask_faces(open_faces(faces), tmp_path / 'whole', mask, workers=0, on_error='skip')
    source = open_faces(faces)
    source.die_at = opaque_order(mask, source.keys, source.labels, source.identities)[0][-1]
    child = os.fork()
    if not child:
        monkeypatch.setattr('facemae_mm.datasets.masking._Masker', Dying)
        mask_faces(source, tmp_path / 'masked', mask, workers=0, on_error='skip')
        os._exit(1)
    os.waitpid(child, 0)
    assert len((tmp_path / 'masked.private/skipped.csv').read_text().splitlines()) == 2
    records = tmp_path / 'masked.partial/faces.rec.partial'
    os.truncate(records, records.stat().st_size - lost if lost else 40)
    if not told:
        with pytest.raises(
            ValueError, match=r'damaged: 14 faces written, 1 left out, of 16\. Delete it and start again'
        ):
            mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0, on_error='skip')
        assert not (tmp_path / 'masked').exists()
        shutil.rmtree(tmp_path / 'masked.partial')
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0, on_error='skip')
    assert files(tmp_path / 'masked') == files(tmp_path / 'whole')
    assert files(tmp_path / 'masked.private') == files(tmp_path / 'whole.private')


@pytest.mark.parametrize(
    ('options', 'size', 'message'),
    [
        (dict(patch_size=5), 112, 'Faces of 112 pixels in patches of 5'),
        (dict(), 100, 'patches must divide faces'),
        (dict(mask_ratio=0.996), 112, 'leaves 0 visible'),
        (dict(patch_size=2), 512, 'at most 255 along a side'),
        (dict(patch_size=256, mask_ratio=0), 256, 'of at most 255 pixels'),
        (dict(patch_size=64), 8192, 'at most 4096 pixels'),
    ],
    ids=str,
)
def test_patches_that_the_format_does_not_hold(tmp_path, faces, options, size, message):
    with pytest.raises(ValueError, match=f'{message}.*Change patch size, size or ratio'):
        mask_faces(open_faces(faces), tmp_path / 'masked', FaceMask(fresh=False, seed=0, **options), size, 0)
    assert [path.name for path in tmp_path.iterdir()] == ['faces']


def test_a_strip_too_wide_for_webp():
    with pytest.raises(ValueError, match=r'\(4, 16384, 3\) could not be compressed\. Use larger patches'):
        encode_masked(np.zeros((256, 256, 3), np.uint8), np.zeros(4096, np.uint8), 4)
    img = np.random.default_rng(0).integers(0, 256, (252, 252, 3), np.uint8)
    mask = np.zeros(3969, np.uint8)  # 15,876 pixels
    assert np.array_equal(decode_masked(encode_masked(img, mask, 4), 'x')[0], img)


def test_a_face_of_four_thousand_megapixels_is_refused_before_it_is_made(monkeypatch):
    strip = cv2.imencode('.webp', np.zeros((255, 255, 3), np.uint8), (cv2.IMWRITE_WEBP_QUALITY, 101))[1].tobytes()
    mask = np.packbits(np.arange(255 * 255) > 0).tobytes()
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError, match='^x is a damaged masked face: it has sides of 65025 pixels, more than 4096'):
        decode_masked(b'FaMk' + bytes([1, 255, 255, 0]) + mask + strip, 'x')


def test_what_a_masked_face_serves_for(tmp_path, faces, mask):
    """A recogniser trains on it as it is, flipped too; FaceMAE does not."""
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    stored = samples(tmp_path / 'masked')
    flip = dict(type='RandomFlip', prob=1.0, direction='horizontal')
    dataset = FaceRecordDataset(tmp_path / 'masked', [*PIPELINE, flip, dict(type='PackInputs')])
    inputs = dataset[5]['inputs']
    assert np.array_equal(inputs.numpy().transpose(1, 2, 0)[:, ::-1], stored[dataset.source.keys[5]][0])
    assert dataset[5]['data_samples'].gt_label.item() == dataset.source.labels[5]
    for transforms in ([FaceMask(seed=0)], [TRANSFORMS.build(flip), mask]):
        with pytest.raises(ValueError, match='holds no original to train on, nor one to flip.*Set fresh=False'):
            FaceRecordDataset(tmp_path / 'masked', [*PIPELINE, *transforms])[0]
    with pytest.raises(ValueError, match='would remove 588 of 784'):
        FaceRecordDataset(tmp_path / 'masked', [*PIPELINE, FaceMask(fresh=False, seed=0, patch_size=4)])[0]


def run_tool(repository, *arguments):
    command = [sys.executable, str(repository / 'tools/mask_faces.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | dict(PYTHONPATH='.'))


def test_the_tool_skips_and_counts_what_cannot_be_read(repository, tmp_path, faces):
    (faces / 'person_1/2.png').write_bytes(b'')
    stopped = run_tool(repository, faces, tmp_path / 'masked')
    assert stopped.returncode == 2 and 'person_1/2 is empty (0 bytes)' in stopped.stderr
    assert '--on-error skip' in stopped.stderr and not (tmp_path / 'masked').exists()
    done = run_tool(repository, faces, tmp_path / 'masked', '--on-error', 'skip')
    assert done.returncode == 0 and '15 faces of 4 identities' in done.stdout and '1 faces that could' in done.stdout
    assert json.loads((tmp_path / 'masked/facemasked.json').read_text())['skipped'] == 1
    private = tmp_path / 'masked.private'
    assert (private / 'skipped.csv').read_text().startswith('source_key,note\nperson_1/2,')
    for name in ('keys.csv', 'mask_secret', 'skipped.csv'):
        assert stat.S_IMODE((private / name).stat().st_mode) == 0o600
    with pytest.raises(ValueError, match='is a masked dataset already'):
        mask_faces(open_faces(tmp_path / 'masked'), tmp_path / 'twice', FaceMask(fresh=False, seed=0))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(version=2), 'has version 2; this program reads 1. Install the FaceMAE-MM that wrote it'),
        (dict(format='other'), "does not say 'format': 'facemae-masked'"),
        (dict(images=15), r'images and identities are \(15, 4\) in facemasked.json, \(16, 4\)'),
        (dict(images=None), 'lacks the numbers'),
    ],
    ids=str,
)
def test_another_version_and_files_that_do_not_fit(tmp_path, faces, mask, change, message):
    mask_faces(open_faces(faces), tmp_path / 'masked', mask, workers=0)
    file = tmp_path / 'masked/facemasked.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        open_faces(tmp_path / 'masked')


def test_the_layout_is_the_one_described():
    """docs/masked_dataset.md, read literally: header, mask bits, patches side by side."""
    img = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    mask = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1], np.uint8)
    data = encode_masked(img, mask, 8)
    assert data[:8] == b'FaMk' + bytes([1, 8, 3, 0]) and data[8:10] == bytes([0b10111001, 0b10000000])
    strip = cv2.imdecode(np.frombuffer(data[10:], np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape == (8, 24, 3)
    for column, (top, left) in enumerate([(0, 8), (8, 16), (16, 0)]):
        assert np.array_equal(strip[:, 8 * column : 8 * column + 8], img[top : top + 8, left : left + 8])
    face, drawn = decode_masked(data, 'x')
    assert (
        drawn.tolist() == mask.tolist()
        and (face[:8, :8] == 127.5).all()
        and np.array_equal(face[:8, 8:16], strip[:, :8])
    )
    for damaged in (
        data[:7],
        data[:9],
        data[:-9],
        b'FaMk\x02' + data[5:],
        data[:5] + b'\0' + data[6:],
        data + b'x' * 9,
    ):
        try:
            assert np.array_equal(decode_masked(damaged, 'x')[0], face)  # bytes after the end
        except ValueError as error:
            assert str(error).startswith('x')
