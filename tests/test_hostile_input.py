"""Hostile archives, and disks that fill up: an error that names file and remedy, and nothing half-written."""

import os
import resource
import signal
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from tiny import write_faces

from facemae_mm.datasets import FaceRecordDataset, open_faces
from facemae_mm.datasets.preparation import FacePreparer, prepare_faces


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
    preparer.source.read = None  # nothing is read again
    assert prepare_faces(preparer, tmp_path / 'out', records=True, workers=0)['faces'] == 16
    assert len(open_faces(tmp_path / 'out/train.rec')) == 16
