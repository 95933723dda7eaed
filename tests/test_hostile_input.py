"""Hostile archives and images, and disks that fill up: an error that names file and remedy, and nothing half-written.

What other files hold: damaged records and indices in test_face_sources.py, pickles in test_verification_bin.py, half
images in test_load_face.py. What tests/fuzz finds comes here.
"""

import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from mmpretrain.structures import DataSample
from tiny import write_faces

from facemae_mm.datasets import FaceMask, FaceRecordDataset, LoadFace, open_faces
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.datasets.preparation import FacePreparer, prepare_faces
from facemae_mm.datasets.recordio import RecordWriter, read_index
from facemae_mm.datasets.resumable import PartialFolder
from facemae_mm.engine import ReconstructionShowHook


def write_zip(path, **attributes):
    """A .zip of two faces, and an entry with these attributes."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('a/1.jpg', 'b/1.jpg'):
            archive.writestr(name, b'image')
        entry = zipfile.ZipInfo(attributes.pop('name', 'b/2.jpg'))
        archive.writestr(entry, attributes.pop('data', b'image'))
        for name, value in attributes.items():
            setattr(archive.filelist[-1], name, value)
    return path


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize(
    ('attributes', 'message'),
    [
        (dict(name='../../b/2.jpg'), r"entry '\.\./\.\./b/2\.jpg' leads out of the archive"),
        (dict(name='/b/2.jpg'), r"entry '/b/2\.jpg' leads out of the archive"),
        (dict(name='a/../../2.jpg'), 'leads out of the archive'),
        (dict(name='C:/b/2.jpg'), 'leads out of the archive'),
        (dict(name='b\\..\\2.jpg'), 'is no plain path'),
        (dict(external_attr=(stat.S_IFLNK | 0o777) << 16), r"entry 'b/2\.jpg' is a link"),
        (dict(flag_bits=1), 'is encrypted'),
        (dict(file_size=1 << 31), 'unpacks to 2147483648 bytes, more than 256 MiB'),
        (dict(name='b/1.png'), r'b/1'),  # one key twice
        (dict(name='a/1.jpg'), r'holds a/1\.jpg and a/1\.jpg, which share the key a/1\. Rename or remove'),
        (dict(compress_type=zipfile.ZIP_BZIP2), 'is compressed by method 12, neither stored nor deflated. Pack the'),
        (dict(compress_type=zipfile.ZIP_LZMA), 'is compressed by method 14'),
        (dict(name='b/\x07.jpg'), 'no readable Unicode. Rename it'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_archives_are_refused_by_entry(tmp_path, attributes, message):
    path = write_zip(tmp_path / 'faces.zip', **attributes)
    with pytest.raises(ValueError, match=rf'faces\.zip.*{message}'):
        open_faces(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_bomb_that_lies_about_its_size_does_not_unpack(tmp_path):
    """300 MiB of zeros in an entry that says 5 bytes: no more than these are unpacked."""
    path = tmp_path / 'faces.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/1.jpg', bytes(300 << 20))
        archive.filelist[0].file_size = 5
    source = open_faces(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r'faces\.zip: entry a/1\.jpg cannot be unpacked'):
        source.read(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_an_entry_without_a_name_is_passed_over(tmp_path):
    path = write_zip(tmp_path / 'faces.zip', name='b/2.jpg')
    path.write_bytes(path.read_bytes().replace(b'b/2.jpg', b'\0/2.jpg'))  # zipfile ends names at NUL
    assert list(open_faces(path).keys) == ['a/1', 'b/1']


def test_a_bomb_that_has_no_bound_does_not_unpack(tmp_path):
    """zipfile unpacks bzip2 to its end, however few bytes are asked for."""
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w', zipfile.ZIP_BZIP2) as archive:
        archive.writestr('a/1.jpg', bytes(100 << 20))
        archive.filelist[0].file_size = 5
    with pytest.raises(ValueError, match=r"faces\.zip: entry 'a/1\.jpg' is compressed by method 12"):
        open_faces(tmp_path / 'faces.zip')


def test_a_damaged_archive(tmp_path):
    path = write_zip(tmp_path / 'faces.zip')
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match=r'faces\.zip is a damaged \.zip: .* Copy it again'):
        open_faces(path)
    path.write_bytes(data.replace(b'image', b'imagE'))
    with pytest.raises(ValueError, match=r'entry a/1\.jpg cannot be unpacked: Bad CRC-32'):
        open_faces(path).read(0)


def test_names_that_are_no_unicode(tmp_path):
    (tmp_path / 'faces/a').mkdir(parents=True)
    (tmp_path / 'faces/a/1.jpg').write_bytes(b'image')
    os.close(os.open(os.fsencode(tmp_path / 'faces/a') + b'/\xff\xfe.jpg', os.O_CREAT | os.O_WRONLY))
    with pytest.raises(ValueError, match=r"faces.*'a/\\udcff\\udcfe\.jpg', which is no readable Unicode. Rename it"):
        open_faces(tmp_path / 'faces')


def jpeg(sampling=0x22, side=32, scans=1, progressive=False):
    """A JPEG of 32 × 32 that says another side and sampling of its luma, its last scan repeated."""
    pixels = cv2.resize(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (32, 32))
    data = bytearray(cv2.imencode('.jpg', pixels, (cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)))[1].tobytes())
    frame = data.index(b'\xff\xc2' if progressive else b'\xff\xc0')
    data[frame + 5 : frame + 9] = struct.pack('>HH', side, side)
    data[frame + 11] = sampling
    last = data.rindex(b'\xff\xda')
    return bytes(data[:-2] + data[last:-2] * (scans - 1) + data[-2:])


@pytest.mark.parametrize('sampling', [0x22, 0x31, 0x13, 0x14, 0x42])
def test_a_jpeg_of_900_megapixels_is_refused_whatever_its_subsampling(sampling, monkeypatch):
    """TurboJPEG has no name for most of these and refuses the header; OpenCV takes them."""
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError, match=r'^bob/1 has more than 64 megapixels.*Remove it'):
        LoadFace()(dict(img_bytes=jpeg(sampling, side=30_000), img_key='bob/1'))


def test_a_jpeg_of_many_scans_is_refused():
    """11 bytes of a scan cost a pass over all pixels: at 64 megapixels, 1 MB took a quarter of an hour."""
    for scans in (1, 50):
        assert LoadFace()(dict(img_bytes=jpeg(progressive=True, scans=scans)))['img_shape'] == (32, 32)
    with pytest.raises(ValueError, match=r'^bob/1 has more than 100 scans, which no face needs. Remove it'):
        LoadFace()(dict(img_bytes=jpeg(progressive=True, scans=100), img_key='bob/1'))


def tiff(tags, order='<', big=False):
    """A TIFF of nothing but a directory of so many tags, each of which claims the whole file."""
    count, offset = ('Q', 'Q') if big else ('H', 'I')
    magic = (b'II' if order == '<' else b'MM') + struct.pack(order + 'H', 43 if big else 42)
    head = magic + (struct.pack(order + 'HHQ', 8, 0, 16) if big else struct.pack(order + 'I', 8))
    entry = struct.pack(order + 'HH' + 2 * offset, 40000, 7, 1 << 20, 0)
    return head + struct.pack(order + count, tags) + entry * tags + bytes(16)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('big', [False, True])
def test_a_tiff_of_many_tags_is_refused(order, big, monkeypatch):
    """libtiff takes memory for each: 4,096 tags of a file of 1 MB took 3.6 GB."""
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError, match=r'^bob/1 has more than 100 TIFF tags, which no face needs. Remove it'):
        LoadFace()(dict(img_bytes=tiff(4096, order, big), img_key='bob/1'))


def test_a_record_file_cut_off_anywhere(tmp_path):
    path = tmp_path / 'train.rec'
    with RecordWriter(path) as writer:
        for i in range(6):
            writer.write(i // 2, b'image' * (i + 1))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r'train\.(rec|idx)\b.*(Copy|copy|Give)'):
            source = open_faces(path)
            [source.read(i) for i in range(len(source))]


def limit_file_size():
    """No file may grow beyond 60 KiB: writing then fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60 << 10, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    'tool', [['mask_faces.py', '--seed', '1'], ['prepare_faces.py', '--aligned', '--format', 'rec']], ids=lambda t: t[0]
)
def test_a_full_disk_leaves_nothing_under_the_final_name_and_the_run_goes_on(repository, tmp_path, tool):
    faces = write_faces(tmp_path / 'faces', identities=6, images=4)

    def run(out, **options):
        command = [sys.executable, str(repository / 'tools' / tool[0]), str(faces), str(tmp_path / out), *tool[1:]]
        env = os.environ | dict(PYTHONPATH=str(repository))
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, **options)

    failed = run('out', preexec_fn=limit_file_size)
    assert failed.returncode == 2, failed.stderr
    assert (
        'File too large (while writing' in failed.stderr
        and 'free some space' in failed.stderr
        and 'Traceback' not in failed.stderr
    )
    assert not (tmp_path / 'out').exists() and (tmp_path / 'out.partial').exists()
    done = run('out')
    assert done.returncode == 0, done.stderr
    assert '24 faces of 6 identities' in done.stdout
    run('whole')
    for folder in (tmp_path / 'out', tmp_path / 'out.private'):
        whole = tmp_path / folder.name.replace('out', 'whole')
        for path in folder.iterdir():
            assert path.read_bytes() == (whole / path.name).read_bytes()
        assert len(list(folder.iterdir())) == len(list(whole.iterdir())) > 1


def test_a_record_writer_on_a_full_disk(repository, tmp_path):
    """In a process of its own, whose files may not grow beyond 60 KiB."""
    write = """
import runpy, sys
RecordWriter = runpy.run_path(sys.argv[1])['RecordWriter']
with RecordWriter(sys.argv[2], resume=True) as writer:
    print(writer.count)
    for i in range(writer.count, 3000):
        writer.write(i // 10, bytes([i % 256]) * int(sys.argv[3]))
"""
    module = repository / 'facemae_mm/datasets/recordio.py'

    def run(name, size, **options):
        command = [sys.executable, '-c', write, module, tmp_path / name / 'train.rec', str(size)]
        (tmp_path / name).mkdir(exist_ok=True)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)

    for size in (100, 1000):  # the buffer of 1 MiB is handed over when closing, or before
        name = f'out{size}'
        failed = run(name, size, preexec_fn=limit_file_size)
        assert failed.returncode == 1 and 'File too large' in failed.stderr.splitlines()[-1]
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == {'train.rec.partial', 'train.idx.partial'}
        done = run(name, size)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == ((60 << 10) - 40) // (32 + size)  # every whole record behind the header
        run('whole', size)
        for file in ('train.rec', 'train.idx', 'property'):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / 'whole' / file).read_bytes()
            (tmp_path / 'whole' / file).unlink()


@pytest.mark.parametrize('content', [None, 'release'])
def test_a_set_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, content):
    done = []
    folder = PartialFolder(tmp_path / 'out', {})
    inner = folder.path / (content or '')
    inner.mkdir(exist_ok=True)
    (inner / 'face').write_bytes(b'face')
    monkeypatch.setattr(os, 'sync', lambda: done.append((inner / 'face').exists() and not folder.out.exists()))
    folder.finish(inner if content else None)
    assert done == [True] and (folder.out / 'face').read_bytes() == b'face'


def test_pictures_of_a_test_stay_in_their_folder(tmp_path):
    keys = ['bob/1', '../pwned', f'{tmp_path}/pwned', 'a/../../pwned', '..', '.', '', 'a\\b', 'a\0b', 'x/\udcff', 'ü/é']
    samples = [DataSample(img_key=key, reconstruction=torch.zeros(3, 8, 8)) for key in keys]
    inputs = torch.zeros(len(keys), 3, 8, 8)
    ReconstructionShowHook(str(tmp_path / 'in/out')).after_test_iter(None, 0, dict(inputs=inputs), samples)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    assert len(found) == len(keys) and all(name.startswith('in/out/') for name in found)
    assert {'in/out/bob/1.png', 'in/out/ü/é.png', 'in/out/..%2Fpwned.png'} <= found


def test_training_goes_on_without_what_cannot_be_read(tmp_path):
    faces = write_faces(tmp_path / 'faces')
    (faces / 'person_1/2.png').write_bytes(b'')
    np.random.seed(0)  # which face stands in
    with pytest.warns(UserWarning, match=r'person_1/2 is empty .* Further ones are counted only'):
        dataset = FaceRecordDataset(faces, [dict(type='LoadFace')], on_error='skip')
        samples = [dataset[i] for i in range(16)]
    assert dataset.num_skipped == 1 and all(sample['img'].shape == (112, 112, 3) for sample in samples)
    with pytest.raises(ValueError, match='person_1/2 is empty'):
        [FaceRecordDataset(faces, [dict(type='LoadFace')])[i] for i in range(16)]


def test_a_full_disk_at_the_last_step(tmp_path, monkeypatch):
    """The tables at the end fail: everything is there, and only they are written again."""
    faces = write_faces(tmp_path / 'faces')
    preparer = FacePreparer(open_faces(faces), None)
    with monkeypatch.context() as patch:
        patch.setattr(
            'facemae_mm.datasets.preparation._write_tables', lambda *_: (_ for _ in ()).throw(OSError(28, 'full'))
        )
        with pytest.raises(OSError, match='full'):
            prepare_faces(preparer, tmp_path / 'out', records=True, workers=0)
    assert not (tmp_path / 'out').exists()
    preparer._keep = None  # no face is made again
    assert prepare_faces(preparer, tmp_path / 'out', records=True, workers=0)['faces'] == 16
    assert len(open_faces(tmp_path / 'out/train.rec')) == 16


def test_masking_leaves_out_and_counts_records_that_cannot_be_read(tmp_path):
    """Half an image, and a record without one."""
    faces = sorted(write_faces(tmp_path / 'faces').glob('*/*.png'))
    with RecordWriter(tmp_path / 'train.rec') as writer:
        for i, path in enumerate(faces):
            writer.write(i // 4, path.read_bytes()[: 3000 if i == 5 else None])
    rec, (_, last) = tmp_path / 'train.rec', read_index(tmp_path / 'train.idx')
    data = bytearray(rec.read_bytes())
    data[last[9] + 8 : last[9] + 12] = struct.pack('<I', (1 << 32) - 1)  # array labels to the end
    data[last[9] + 32 : last[9] + 36] = struct.pack('<f', 2)
    rec.write_bytes(data)
    mask = FaceMask(fresh=False, seed=0)
    with pytest.raises(ValueError, match=r'(train\.rec:6 .*damaged|record 9 at byte .*no image).*--on-error skip'):
        mask_faces(open_faces(rec), tmp_path / 'masked', mask, workers=0)
    said = mask_faces(open_faces(rec), tmp_path / 'masked', mask, workers=0, on_error='skip')
    assert '14 faces of 4 identities' in said and '2 faces that could not be read were left out' in said
    skipped = (tmp_path / 'masked.private/skipped.csv').read_text()
    assert 'record 9 at byte' in skipped and 'train.rec:6' in skipped
    assert len(open_faces(tmp_path / 'masked')) == 14
