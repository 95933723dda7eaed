"""Photographs to aligned faces, and aligned faces from one format into another."""

import csv
import importlib.util
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiny import write_faces

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.datasets.face_detection import FaceDetector
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.datasets.landmarks import read_landmarks
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.preparation import FacePreparer, image_traits, prepare_faces, strip_jpeg
from facemae_mm.datasets.recordio import RecordWriter

SECRET = 'Rosalind Franklin, 51.5N 0.12W'


class BrightFaces(FaceDetector):
    """A face at the template in every image that is not black, two where it is white."""

    ATTEMPTS = ((0.0, 0),)

    def _load(self):
        return True

    def _detect(self, view):
        number = 0 if not view.any() else 2 if view.min() == 255 else 1
        return [(np.array([10.0, 10, 100, 100]) + 5 * i, ARCFACE_TEMPLATE + 5 * i, 0.9 - i / 10) for i in range(number)]


class Dying(FacePreparer):
    """Ends its process, as `kill -9` does, at the n-th image."""

    die_at = 0

    def __call__(self, image):
        if image == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


class Fragile(BrightFaces):
    """Fails at white images, as OpenCV, memory or a missing model does."""

    error: Exception = cv2.error('too thin')

    def _detect(self, view):
        if view.min() == 255:
            raise self.error
        return super()._detect(view)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def segment(marker: int, content: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack('>BBH', 0xFF, marker, 2 + len(content)) + content


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, SECRET
    return tags.tobytes()


def picture(seed: int = 0, height: int = 120, width: int = 150) -> np.ndarray:
    """Smooth colours, no two corners alike, (H, W, 3) uint8."""
    values = np.random.default_rng(seed).integers(20, 230, (4, 5, 3)).astype(np.float32)
    return np.clip(cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC), 1, 254).astype(np.uint8)


def write_photographs(folder: Path) -> Path:
    """What users have: rotated, grey, with alpha, black (no face), white (two faces)."""
    for name in ('Ada', 'Emmy', 'Rosalind'):
        (folder / name).mkdir(parents=True)
    Image.fromarray(picture(1)).save(folder / 'Ada/plain.jpg', exif=exif(), comment=SECRET.encode())
    turned = np.rot90(picture(2), 1)
    Image.fromarray(turned).save(folder / 'Ada/turned.png', exif=exif(6))
    Image.fromarray(picture(3)[..., 0]).save(folder / 'Ada/grey.png')
    Image.fromarray(np.dstack([picture(4), np.full((120, 150), 9, np.uint8)])).save(folder / 'Rosalind/alpha.webp')
    Image.fromarray(np.full((120, 150, 3), 255, np.uint8)).save(folder / 'Rosalind/two.png')
    Image.fromarray(np.zeros((120, 150, 3), np.uint8)).save(folder / 'Emmy/black.png')
    return folder


def prepare(source: Path, out: Path, detector: FaceDetector | None = None, preparer=FacePreparer, **options) -> dict:
    names = ('records', 'keep_names', 'workers')
    flags = {name: options.pop(name) for name in names if name in options}
    return prepare_faces(preparer(open_faces(source), detector, **options), out, **dict(workers=0) | flags)


@pytest.mark.parametrize('options', [{}, dict(progressive=True), dict(mode='CMYK'), dict(mode='L')], ids=str)
def test_metadata_leaves_a_jpeg_and_the_picture_stays(options):
    image = Image.fromarray(picture()).convert(options.pop('mode', 'RGB'))
    plain, tagged = io.BytesIO(), io.BytesIO()
    image.save(plain, 'JPEG', quality=90, **options)
    image.save(tagged, 'JPEG', quality=90, exif=exif(), comment=SECRET.encode(), xmp=SECRET.encode(), **options)
    stripped = strip_jpeg(tagged.getvalue() + b'a second picture, as phones append one: ' + SECRET.encode())
    assert tagged.getvalue().count(SECRET.encode()) >= 2 and SECRET.encode() not in stripped
    assert stripped == plain.getvalue()


def test_thumbnails_and_unknown_segments_leave_a_jpeg():
    secret = SECRET.encode().ljust(30, b'.')
    plain = cv2.imencode('.jpg', picture())[1].tobytes()
    assert plain[2:6] == b'\xff\xe0\0\x10' and plain[18:20] == b'\0\0'  # JFIF, without a thumbnail
    thumbnail = segment(0xE0, plain[6:18] + b'\2\5' + secret)  # of 2 × 5 RGB pixels
    extension = segment(0xE0, b'JFXX\0\x13' + b'\2\5' + secret)
    others = [segment(0xE0, secret), segment(0xE0, b'JFIF\0' + secret[:5]), segment(0xEE, secret)]
    others += [segment(0xEE, b'Adobe' + secret[:6]), segment(0xDC, secret)]  # cut off; a DNL, which decoders pass over
    tagged = plain[:2] + thumbnail + extension + b''.join(others) + plain[20:]
    assert np.array_equal(decode_face(tagged, 'tagged'), decode_face(plain, 'plain'))
    assert strip_jpeg(tagged) == plain


def test_what_adobe_says_of_colours_stays_in_a_jpeg():
    """And nothing more; decoders take a longer segment as well."""
    file = io.BytesIO()
    Image.fromarray(picture()).convert('CMYK').save(file, 'JPEG', quality=90)
    plain = file.getvalue()
    place = plain.index(b'\xff\xee\0\x0eAdobe')
    tagged = plain[:place] + segment(0xEE, plain[place + 4 : place + 16] + SECRET.encode()) + plain[place + 16 :]
    assert np.array_equal(decode_face(tagged, 'tagged'), decode_face(plain, 'plain'))
    assert strip_jpeg(tagged) == strip_jpeg(plain) == plain


@pytest.mark.parametrize('cut', [2, 30, 200, -2])
def test_cut_jpeg_is_not_stripped_but_refused(cut):
    data = cv2.imencode('.jpg', picture())[1].tobytes()
    with pytest.raises(ValueError, match='do not add up'):
        strip_jpeg(data[:cut])


def test_traits():
    def traits(image, **options):
        file = io.BytesIO()
        image.save(file, options.pop('format', 'PNG'), **options)
        return image_traits(file.getvalue())

    colour = Image.fromarray(picture())
    assert traits(colour) == () == traits(colour, format='JPEG', exif=exif(1))
    assert traits(colour, format='JPEG', exif=exif(8)) == ('rotated',)
    assert traits(colour.convert('L')) == ('grey',) and traits(colour.convert('LA')) == ('grey', 'alpha')
    assert traits(colour.convert('P'), transparency=3) == ('alpha',) and image_traits(b'no image') == ()


def test_traits_are_told_without_decoding(monkeypatch):
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, 'PNG')
    late = file.getvalue()[:-12] + png_chunk(b'eXIf', exif(6)[6:]) + file.getvalue()[-12:]
    assert decode_face(late, 'late').shape == (150, 120, 3)  # OpenCV turns it
    header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 8001, 8000, 8, 0, 0, 0, 0))
    bomb = b'\x89PNG\r\n\x1a\n' + header + png_chunk(b'IDAT', zlib.compress(bytes(1000))) + png_chunk(b'IEND', b'')
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', lambda self: pytest.fail('it was decoded'))
    assert image_traits(late) == ('rotated',) and image_traits(file.getvalue()) == ()
    assert image_traits(bomb) == ()  # what is refused has none


def test_traits_are_told_of_the_formats_that_are_read():
    file = io.BytesIO()
    Image.fromarray(picture()[..., 0]).save(file, 'GIF', transparency=3)
    assert image_traits(file.getvalue()) == ()


def test_photographs_of_every_kind(tmp_path):
    report = prepare(write_photographs(tmp_path / 'photos'), tmp_path / 'out', BrightFaces())
    counts = dict(images=6, faces=5, no_face=1, unreadable=0, several_faces=1, identities=2, identities_without_face=1)
    assert counts | dict(rotated=1, grey=1, alpha=1, found_with_border={'0.0': 5}) == {
        key: report[key] for key in [*counts, 'rotated', 'grey', 'alpha', 'found_with_border']
    }
    assert json.loads((tmp_path / 'out/report.json').read_text()) == report
    faces = open_faces(tmp_path / 'out')
    assert faces.identities == ['000000', '000001'] and faces.labels.tolist() == [0, 0, 0, 1, 1]  # without a gap
    assert list(faces.keys) == ['Ada/grey', 'Ada/plain', 'Ada/turned', 'Rosalind/alpha', 'Rosalind/two']
    turned = decode_face(faces.read(2), 'turned')
    assert np.abs(turned.astype(int) - picture(2)[:112, :112, ::-1]).max() <= 1  # upright, at the template
    grey = decode_face(faces.read(0), 'grey')
    assert np.array_equal(grey, np.repeat(picture(3)[:112, :112, :1], 3, -1))
    points = read_landmarks(faces)
    assert np.allclose(points[:4], ARCFACE_TEMPLATE, atol=0.02) and np.isfinite(points).all()


def test_nothing_of_the_source_travels(tmp_path):
    photos = write_photographs(tmp_path / 'photos')
    for name, options in dict(folder={}, rec=dict(records=True), jpeg=dict(jpeg=90)).items():
        prepare(photos, tmp_path / name, BrightFaces(), **options)
    # Aligned already: the JPEG is stored as it is, but for its metadata.
    (tmp_path / 'aligned/Ada').mkdir(parents=True)
    image = Image.fromarray(picture(1, 112, 112))
    image.save(tmp_path / 'aligned/Ada/plain.jpg', exif=exif(), comment=SECRET.encode())
    image.save(tmp_path / 'aligned/Ada/turned.jpg', exif=exif(3))
    image.save(tmp_path / 'aligned/Ada/other.webp', exif=exif(), lossless=True)
    prepare(tmp_path / 'aligned', tmp_path / 'converted')
    for name in ('folder', 'rec', 'jpeg', 'converted'):
        content = files(tmp_path / name)
        everything = b''.join(path.encode() + data for path, data in content.items())
        assert len(content) > 3
        for word in (b'Rosalind', b'Ada', b'Exif', b'51.5N', b'plain', b'turned', str(tmp_path).encode()):
            assert word not in everything, (name, word)
        private = tmp_path / f'{name}.private'
        assert private.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in private.iterdir()} == {'keys.csv', 'report.csv', 'settings.json'}
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in private.iterdir())
    upright = decode_face(open_faces(tmp_path / 'converted').read(2), 'turned')
    assert np.array_equal(upright, decode_face((tmp_path / 'aligned/Ada/turned.jpg').read_bytes(), 'turned'))
    prepare(tmp_path / 'aligned', tmp_path / 'kept', keep_names=True, keep_metadata=True)
    assert (tmp_path / 'kept/Ada/plain.jpg').read_bytes() == (tmp_path / 'aligned/Ada/plain.jpg').read_bytes()


def test_nothing_of_other_formats_travels(tmp_path):
    """They are encoded anew, whatever they hold."""
    folder = tmp_path / 'aligned/Ada'
    folder.mkdir(parents=True)
    image, secret = Image.fromarray(picture(1, 112, 112)), SECRET.encode()
    file = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text('Comment', SECRET)
    image.save(file, 'PNG', pnginfo=text, exif=exif())
    png = file.getvalue()
    chunks = [png_chunk(kind, secret) for kind in (b'prVt', b'zzZz', b'tIME')]
    (folder / '1.png').write_bytes(png[:33] + b''.join(chunks) + png[33:-12] + chunks[0] + png[-12:] + secret)
    image.save(folder / '2.tif', description=SECRET)
    image.save(folder / '3.webp', exif=exif(), xmp=secret, lossless=True)
    (folder / '4.ppm').write_bytes(b'P6\n# %s\n112 112\n255\n' % secret + picture(1, 112, 112).tobytes())
    for i, path in enumerate(sorted(folder.iterdir())):
        assert secret in path.read_bytes(), i
    prepare(folder.parent, tmp_path / 'out')
    kept = files(tmp_path / 'out')
    assert len(kept) == 5 and not any(secret[:8] in data for data in kept.values())
    for i in range(4):
        assert np.array_equal(decode_face(kept[f'000000/{i:06d}.png'], ''), picture(1, 112, 112)[..., ::-1])


def test_a_phones_jpeg_of_two_pictures_keeps_its_extension(tmp_path):
    (tmp_path / 'aligned/Ada').mkdir(parents=True)
    image = Image.fromarray(picture(1, 112, 112))
    image.save(tmp_path / 'aligned/Ada/1.jpg', 'MPO', save_all=True, append_images=[image])
    prepare(tmp_path / 'aligned', tmp_path / 'out', keep_metadata=True, keep_names=True)
    assert open_faces(tmp_path / 'out').read(0) == (tmp_path / 'aligned/Ada/1.jpg').read_bytes()


def test_report_says_what_became_of_each_image(tmp_path):
    prepare(write_photographs(tmp_path / 'photos'), tmp_path / 'out', BrightFaces(), jpeg=95)
    with (tmp_path / 'out.private/report.csv').open(newline='') as file:
        rows = {row['source_key']: row for row in csv.DictReader(file)}
    assert rows['Emmy/black'] | dict(outcome='no face', faces='0', path='') == rows['Emmy/black']
    assert rows['Rosalind/two'] | dict(outcome='face', faces='2', path='000001/000001.jpg') == rows['Rosalind/two']
    assert rows['Ada/turned']['traits'] == 'rotated' and rows['Rosalind/two']['score'] == '0.8000'  # nearer the middle


@pytest.fixture
def aligned(tmp_path) -> Path:
    """Aligned JPEG faces with landmarks, of which one identity comes by itself between others in the alphabet."""
    folder = write_faces(tmp_path / 'aligned', identities=3, images=4)
    rows = ['path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy']
    for number, path in enumerate(sorted(folder.rglob('*.png'))):
        path.with_suffix('.jpg').write_bytes(cv2.imencode('.jpg', cv2.imread(str(path)))[1].tobytes())
        path.unlink()
        points = ','.join(f'{value:.2f}' for value in (ARCFACE_TEMPLATE + number / 4).flat)
        rows.append(f'{path.relative_to(folder).with_suffix(".jpg").as_posix()},{points}')
    (folder / 'landmarks5.csv').write_text('\n'.join(rows) + '\n')
    return folder


def test_folder_to_records_and_back(tmp_path, aligned):
    prepare(aligned, tmp_path / 'packed', records=True, keep_names=True)
    packed, original = open_faces(tmp_path / 'packed/train.rec'), open_faces(aligned)
    assert list(packed.keys) == list(original.keys) and packed.labels.tolist() == original.labels.tolist()
    assert [packed.read(i) for i in range(12)] == [original.read(i) for i in range(12)]
    assert np.array_equal(read_landmarks(packed), read_landmarks(original))
    assert (tmp_path / 'packed/property').read_text() == '3,112,112\n'
    prepare(tmp_path / 'packed/train.rec', tmp_path / 'back', keep_names=True)
    back = files(tmp_path / 'back')
    del back['report.json']
    assert back == files(aligned)

    (tmp_path / 'packed/keys.csv').unlink()  # then only record keys and labels are known
    prepare(tmp_path / 'packed/train.rec', tmp_path / 'numbered', keep_names=True)
    assert (tmp_path / 'numbered/0/1.jpg').read_bytes() == original.read(0)
    assert open_faces(tmp_path / 'numbered').keys[5] == '6'  # of the record, by keys.csv


def test_zip_gives_what_the_folder_gives(tmp_path, aligned):
    shutil.make_archive(str(tmp_path / 'faces'), 'zip', tmp_path, 'aligned')
    shutil.move(aligned / 'landmarks5.csv', tmp_path / 'faces.landmarks5.csv')
    shutil.copy(tmp_path / 'faces.landmarks5.csv', aligned / 'landmarks5.csv')
    prepare(tmp_path / 'faces.zip', tmp_path / 'from_zip')
    prepare(aligned, tmp_path / 'from_folder', workers=2)
    assert files(tmp_path / 'from_zip') == files(tmp_path / 'from_folder')
    assert 'landmarks5.csv' in files(tmp_path / 'from_zip')


@pytest.mark.parametrize('records', [False, True])
@pytest.mark.parametrize('fault', ['kill', 'row cut off', 'row lost'])
def test_killed_run_goes_on_to_the_same_bytes(tmp_path, aligned, records, fault):
    prepare(aligned, tmp_path / 'whole', records=records)
    child = os.fork()
    if not child:
        Dying.die_at = 7
        prepare(aligned, tmp_path / 'out', preparer=Dying, records=records)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / 'out').exists()
    log = tmp_path / 'out.private/report.csv'
    rows = log.read_bytes().splitlines(keepends=True)
    assert len(rows) == 1 + 7
    if fault != 'kill':  # the face was written, its row was not, or not whole
        log.write_bytes(b''.join(rows[:-1]) + (rows[-1][:9] if fault == 'row cut off' else b''))
    Dying.die_at = 2  # what is done is not done again
    prepare(aligned, tmp_path / 'out', preparer=Dying, records=records)
    assert files(tmp_path / 'out') == files(tmp_path / 'whole')
    assert files(tmp_path / 'out.private') == files(tmp_path / 'whole.private')
    assert not (tmp_path / 'out.partial').exists()


def test_records_lost_in_a_power_cut_are_told(tmp_path, aligned):
    Dying.die_at = 9
    child = os.fork()
    if not child:
        prepare(aligned, tmp_path / 'out', preparer=Dying, records=True)
        os._exit(1)
    os.waitpid(child, 0)
    records = tmp_path / 'out.partial/train.rec.partial'
    os.truncate(records, records.stat().st_size - 6000)
    with pytest.raises(ValueError, match=r'train\.rec\.partial is damaged: it holds \d of 9 images. Delete its folder'):
        prepare(aligned, tmp_path / 'out', records=True)
    assert not (tmp_path / 'out').exists()
    shutil.rmtree(tmp_path / 'out.partial')
    assert prepare(aligned, tmp_path / 'out', records=True)['faces'] == 12


@pytest.mark.parametrize('step', ['ranges written', 'property named', 'index named'])
def test_writer_goes_on_where_closing_was_interrupted(tmp_path, monkeypatch, step):
    def write(path, number, count):
        writer = RecordWriter(path, resume=True)
        assert writer.count == number
        for image in range(number, count):
            writer.write(image // 3, b'%d' % image * 9)
        return writer

    write(tmp_path / 'a/train.rec' if (tmp_path / 'a').mkdir() else tmp_path / 'a/train.rec', 0, 9).close()
    (tmp_path / 'b').mkdir()
    renames = {'ranges written': 0, 'property named': 1, 'index named': 2}[step]
    replace, done = Path.replace, []

    def interrupted(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    writer = write(tmp_path / 'b/train.rec', 0, 9)
    monkeypatch.setattr(Path, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    monkeypatch.setattr(Path, 'replace', replace)
    assert not (tmp_path / 'b/train.rec').exists()
    write(tmp_path / 'b/train.rec', 9, 9).close()
    assert files(tmp_path / 'b') == files(tmp_path / 'a')


def test_killed_worker_is_told_and_the_run_goes_on(tmp_path, aligned):
    Dying.die_at = 7
    with pytest.raises(RuntimeError, match='start again to go on, with fewer --workers'):
        prepare(aligned, tmp_path / 'out', preparer=Dying, workers=2)
    assert not (tmp_path / 'out').exists()
    prepare(aligned, tmp_path / 'out', workers=2)
    prepare(aligned, tmp_path / 'whole')
    assert files(tmp_path / 'out') == files(tmp_path / 'whole')


def test_unreadable_images(tmp_path, aligned):
    broken = sorted(aligned.rglob('*.jpg'))[5]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match='person_1/1.*damaged.*--on-error skip'):
        prepare(aligned, tmp_path / 'out')
    report = prepare(aligned, tmp_path / 'out', on_error='skip')  # goes on with the same folder
    assert (report['faces'], report['unreadable'], report['images']) == (11, 1, 12)
    assert len(open_faces(tmp_path / 'out')) == 11
    with (tmp_path / 'out.private/report.csv').open(newline='') as file:
        (row,) = (row for row in csv.DictReader(file) if row['outcome'] == 'unreadable')
    assert row['source_key'].startswith('person_1/') and 'damaged' in row['note']


def test_a_picture_in_which_the_detector_fails_is_unreadable(tmp_path):
    photos = write_photographs(tmp_path / 'photos')
    for number, error in enumerate((cv2.error('too thin'), MemoryError(), ValueError('not finite'))):
        detector = Fragile()
        detector.error = error
        with pytest.raises(ValueError, match=r'photos:Rosalind/two: no face can be .* in 150×120 .*--on-error skip'):
            prepare(photos, tmp_path / f'out{number}', detector)
        report = prepare(photos, tmp_path / f'out{number}', detector, on_error='skip')
        assert (report['faces'], report['unreadable'], report['no_face']) == (4, 1, 1)


def test_a_detector_without_its_model_is_no_pictures_fault(tmp_path):
    detector = Fragile()
    detector.error = FileNotFoundError('no keypoints')
    with pytest.raises(OSError, match='no keypoints'):
        prepare(write_photographs(tmp_path / 'photos'), tmp_path / 'out', detector, on_error='skip')


def test_a_strip_is_one_picture_without_a_face(tmp_path):
    photos = write_photographs(tmp_path / 'photos')
    Image.fromarray(np.zeros((3, 5000), np.uint8)).save(photos / 'Ada/strip.png')
    assert prepare(photos, tmp_path / 'out', BrightFaces())['no_face'] == 2


@pytest.mark.parametrize('key', ['{outside}/pwned', '../../pwned', 'a/../../../pwned'])
def test_names_of_a_foreign_table_lead_out_of_no_folder(tmp_path, key):
    (tmp_path / 'deep/er').mkdir(parents=True)
    faces = write_faces(tmp_path / 'deep/er/set', identities=1, images=1)
    (faces / 'keys.csv').write_text(f'key,source_key\nperson_0/0,{key.format(outside=tmp_path / "outside")}\n')
    before = files(tmp_path)
    for options in (dict(keep_names=True), dict(keep_names=True, records=True), {}):
        with pytest.raises(ValueError, match=r'keys\.csv, line 2: source_key .* is no plain path below a folder'):
            prepare(faces, tmp_path / 'deep/er/out', **options)
    assert files(tmp_path) == before and not (tmp_path / 'deep/er/out.partial').exists()


def test_two_faces_of_one_name_are_refused(tmp_path):
    faces = write_faces(tmp_path / 'set', identities=2, images=2)
    rows = ['key,source_key', 'person_0/0,x/1', 'person_0/1,x/2', 'person_1/0,x/1', 'person_1/1,x/3']
    (faces / 'keys.csv').write_text('\n'.join(rows) + '\n')
    with pytest.raises(ValueError, match=r'images, x/1 and x/1, would both be x/1,.*keys\.csv.*leave out --keep-names'):
        prepare(faces, tmp_path / 'out', keep_names=True)
    assert not list(tmp_path.glob('out*'))
    other = [rows[0], 'person_0/0,person_1/5', rows[2], 'person_1/0,5', rows[4]]  # a bare name is of its identity
    (faces / 'keys.csv').write_text('\n'.join(other) + '\n')
    with pytest.raises(ValueError, match='images, person_1/5 and 5, would both be person_1/5'):
        prepare(faces, tmp_path / 'out', keep_names=True)
    (faces / 'keys.csv').write_text('\n'.join(rows) + '\n')
    assert prepare(faces, tmp_path / 'out')['faces'] == 4  # numbered, nothing is lost


def test_a_name_that_the_table_could_not_hold_is_refused_at_once(tmp_path):
    (tmp_path / 'set/Ada').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'set/Ada/a\\b.png'), picture(1, 112, 112))
    with pytest.raises(ValueError, match=r"image key 'Ada/a\\\\b' holds a backslash.*Rename"):
        prepare(tmp_path / 'set', tmp_path / 'out')
    assert not list(tmp_path.glob('out*'))


def test_refusals(tmp_path, aligned):
    with pytest.raises(ValueError, match='112×112 pixels, not 96×96'):
        prepare(aligned, tmp_path / 'small', size=96)
    broken = sorted(aligned.rglob('*.jpg'))[5]
    whole = broken.read_bytes()
    broken.write_bytes(b'')
    with pytest.raises(ValueError, match='is empty'):
        prepare(aligned, tmp_path / 'begun')
    broken.write_bytes(whole)
    changed = r'begun\.partial was begun with other settings: faces_sha256: .*; jpeg: None then, 90 now'
    with pytest.raises(FileExistsError, match=changed):
        prepare(aligned, tmp_path / 'begun', jpeg=90)
    (tmp_path / 'mine.partial').mkdir()
    (tmp_path / 'mine.partial/diary.txt').write_text('dear diary')
    with pytest.raises(FileExistsError, match='holds something else'):
        prepare(aligned, tmp_path / 'mine')
    assert (tmp_path / 'mine.partial/diary.txt').exists()
    with pytest.raises(FileExistsError, match='exists already'):
        prepare(aligned, aligned)
    black = tmp_path / 'black/a'
    black.mkdir(parents=True)
    cv2.imwrite(str(black / '1.png'), np.zeros((99, 99, 3), np.uint8))
    with pytest.raises(ValueError, match='no face in any of 1 images. Try another detector'):
        prepare(black.parent, tmp_path / 'none', BrightFaces())
    with pytest.raises(ValueError, match='knows no identities, which a .rec needs'):
        prepare(black, tmp_path / 'flat', records=True)


def test_flat_folders_stay_flat(tmp_path):
    (tmp_path / 'flat').mkdir()
    for name in ('x', 'y'):
        cv2.imwrite(str(tmp_path / f'flat/{name}.png'), picture(1, 112, 112))
    prepare(tmp_path / 'flat', tmp_path / 'numbered')
    prepare(tmp_path / 'flat', tmp_path / 'named', keep_names=True)
    assert set(files(tmp_path / 'numbered')) == {'000000.png', '000001.png', 'report.json'}
    assert set(files(tmp_path / 'named')) == {'x.png', 'y.png', 'report.json'}


def run_tool(repository, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(repository / 'tools/prepare_faces.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | dict(PYTHONPATH='.'))


def test_a_sheet_that_cannot_be_written_is_refused_before_the_work(repository, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('prepare_faces', repository / 'tools/prepare_faces.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ('sheet.png', 'a.b/sheet.JPG', 'sheet.jpeg'):
        monkeypatch.setattr(sys, 'argv', ['x', 'photos', 'out', '--sheet', name])
        assert module.parse_args().sheet == name
    for name in ('sheet.pdf', 'sheet', 'png', 'folder.png/sheet'):
        monkeypatch.setattr(sys, 'argv', ['x', 'photos', 'out', '--sheet', name])
        with pytest.raises(SystemExit) as ended:
            module.parse_args()
        assert ended.value.code == 2
        assert f'--sheet {name} must be a picture: end its name in .png, .jpg, .jpeg' in capsys.readouterr().err


def test_tool_on_real_photographs(repository, shared, tmp_path):
    """77 photographs of LFW by the mini pack: every one's face found, the sheet drawn."""
    pack = ('--pack', 'mini', '--pack-root', shared / 'insightface_pack')
    photos = shared / 'faces/lfw_raw'
    out = tmp_path / 'faces'
    done = run_tool(repository, photos, out, *pack, '--format', 'rec', '--jpeg', 95, '--sheet', tmp_path / 'sheet.png')
    assert done.returncode == 0, done.stderr
    assert 'faces: 77 faces of 34 identities from 77 images' in done.stdout
    faces = open_faces(out / 'train.rec')
    assert len(faces) == 77 and faces.keys[0] in set(open_faces(photos).keys)
    errors = np.linalg.norm(read_landmarks(faces) - ARCFACE_TEMPLATE, axis=2).mean(1)
    assert np.median(errors) < 4 and cv2.imread(str(tmp_path / 'sheet.png')).shape[1] == 12 * 112

    again = run_tool(repository, photos, out, *pack)
    assert again.returncode == 2 and 'exists already' in again.stderr
    lost = run_tool(repository, photos, tmp_path / 'other', '--pack', 'absent', '--pack-root', tmp_path)
    assert lost.returncode == 2 and "pack 'absent' cannot be loaded" in lost.stderr
    assert not list(tmp_path.glob('other*'))
