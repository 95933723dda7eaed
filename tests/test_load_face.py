"""Decoding: three channels in BGR, upright, at the right size, and what is refused."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from facemae_mm.datasets import LoadFace


@pytest.fixture
def face():
    """A smooth picture (112, 112, 3), BGR, whose four quarters and channels differ."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_LINEAR)


def encode(img, extension, *flags):
    ok, data = cv2.imencode(f'.{extension}', img, flags)
    assert ok
    return data.tobytes()


def load(data, **options):
    return LoadFace(**options)(dict(img_bytes=data, img_path='set:bob/1'))


@pytest.mark.parametrize('extension', ['png', 'bmp', 'ppm', 'tif'])
def test_lossless_formats_return_their_pixels(face, extension):
    results = load(encode(face, extension), size=112)
    assert results['img'].dtype == np.uint8 and (results['img'] == face).all()
    assert results['img_shape'] == results['ori_shape'] == (112, 112)


@pytest.mark.parametrize('extension', ['jpg', 'webp'])
def test_lossy_formats_return_bgr(face, extension):
    loaded = load(encode(face, extension))['img'].astype(int)
    assert np.abs(loaded - face).mean() < 4 < np.abs(loaded - face[..., ::-1]).mean()


def test_channels_as_pil_sees_them(face):
    buffer = io.BytesIO()
    Image.fromarray(face[..., ::-1].copy()).save(buffer, 'PNG')  # RGB
    assert (load(buffer.getvalue())['img'] == face).all()


def test_grey_alpha_and_sixteen_bits_become_bgr(face):
    grey = face[..., 0]
    assert (load(encode(grey, 'pgm'))['img'] == grey[..., None].repeat(3, -1)).all()
    assert (load(encode(grey, 'png'))['img'] == grey[..., None].repeat(3, -1)).all()
    alpha = np.dstack([face, grey])
    assert (load(encode(alpha, 'png'))['img'] == face).all()
    assert (load(encode(face.astype(np.uint16) * 257, 'png'))['img'] == face).all()


@pytest.mark.parametrize('white', [1, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize('kind', ['P2', 'P3', 'P5', 'P6'])
def test_white_of_a_ppm_is_what_its_header_says(kind, white):
    values = np.linspace(0, white, 12).round().astype(int).reshape(3, 4)
    stored = values if kind in ('P2', 'P5') else values[..., None].repeat(3, -1)
    if kind in ('P2', 'P3'):
        body = b' '.join(b'%d' % value for value in stored.ravel())
    else:
        body = stored.astype('u1' if white < 256 else '>u2').tobytes()
    img = load(b'%s\n# 9 9 9\n4 3 # so wide\n%d\n%s' % (kind.encode(), white, body + b'\n'))['img']
    assert img.shape == (3, 4, 3) and img.dtype == np.uint8 and img[2, 3].tolist() == [255] * 3
    assert np.abs(img - (values * 255 / white)[..., None]).max() <= 1
    assert (img == (values >> 8 if white == 65535 else values)[..., None]).all() or white not in (255, 65535)


def test_values_above_white_are_white():
    img = load(b'P6 2 1 100\n' + bytes([0, 50, 100, 200, 255, 10]))['img']
    assert img.tolist() == [[[255, 128, 0], [26, 255, 255]]]


def test_a_pfm_has_no_white():
    """OpenCV would make a nearly black picture of its fractions."""
    with pytest.raises(ValueError, match=r'^set:bob/1 .* no image \(JPEG'):
        load(b'Pf\n4 2\n-1.0\n' + np.linspace(0, 1, 8, dtype='<f4').tobytes())


def test_exif_rotation_is_applied(face):
    upright = encode(face, 'jpg', cv2.IMWRITE_JPEG_QUALITY, 95)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    turned = np.rot90(face)[:, :100]
    Image.fromarray(turned[..., ::-1].copy()).save(buffer, 'JPEG', quality=95, exif=exif)
    loaded = load(buffer.getvalue())
    assert loaded['img_shape'] == (100, 112)
    expected = load(upright)['img'][:100].astype(int)
    assert np.abs(loaded['img'] - expected).mean() < 2


def test_img_that_is_there_already(face):
    grey = face[..., 0]
    for img in (grey, grey[..., None]):
        assert (LoadFace()(dict(img=img))['img'] == grey[..., None].repeat(3, -1)).all()
    assert (LoadFace()(dict(img=face))['img'] == face).all()
    results = LoadFace(size=112)(dict(img=np.dstack([face, grey])))
    assert (results['img'] == face).all() and results['img_shape'] == (112, 112)
    with pytest.raises(ValueError, match=r'set:x: img is float64 .*8-bit'):
        LoadFace()(dict(img=face / 255, img_path='set:x'))
    with pytest.raises(ValueError, match=r'\(112, 112, 2\)'):
        LoadFace()(dict(img=face[..., :2]))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@pytest.mark.parametrize('extension', ['jpg', 'png', 'bmp', 'ppm', 'tif', 'webp'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.97])
def test_half_written_images(face, extension, share):
    data = encode(face, extension)
    with pytest.raises(ValueError, match=r'^set:bob/1 .* damaged, cut off or no image.*remove it'):
        load(data[: int(len(data) * share)])


def test_a_jpeg_is_cut_off_without_its_end_marker(face, monkeypatch):
    # OpenCV before version 5 returned such an image, its rest grey; it has the word where simplejpeg gives up.
    whole = encode(face, 'jpg')
    expected = load(whole)['img']
    assert (load(whole + b'trailing')['img'] == expected).all()
    monkeypatch.setattr(cv2, 'imdecode', lambda data, flags: face)
    with pytest.raises(ValueError, match='cut off'):
        load(whole[:-2])


def test_jpegs_have_the_pixels_of_opencv(shared):
    for path in sorted((shared / 'faces/lfw_raw').glob('*/*.jpg'))[:40]:
        data = path.read_bytes()
        assert (load(data)['img'] == cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)).all()


def test_grey_and_cmyk_jpegs(face):
    grey = encode(face[..., 0], 'jpg')
    img = load(grey)['img']
    assert img.shape == (112, 112, 3) and (img[..., 0] == img[..., 2]).all()
    buffer = io.BytesIO()
    Image.fromarray(face[..., ::-1].copy()).convert('CMYK').save(buffer, 'JPEG', quality=95)
    assert np.abs(load(buffer.getvalue())['img'].astype(int) - face).mean() < 12


@pytest.mark.parametrize('exif', [b'', b'Exif\0\0'])
def test_a_jpeg_of_900_megapixels_is_refused_before_it_is_decoded(face, exif, monkeypatch):
    data = bytearray(encode(face, 'jpg'))
    frame = data.index(b'\xff\xc0')
    data[frame + 5 : frame + 9] = struct.pack('>HH', 30_000, 30_000)
    data[2:2] = b'\xff\xfe' + struct.pack('>H', 2 + len(exif)) + exif  # a comment; EXIF takes the other way
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError, match=r'^set:bob/1 has more than 64 megapixels.*Remove it'):
        load(bytes(data))


@pytest.mark.parametrize('data', [b'hello', b'\xff\xd8\xff\xe0', b'GIF89a' + b'\0' * 40])
def test_what_is_no_image(data):
    with pytest.raises(ValueError, match=r'^set:bob/1 \(\d+ bytes\) is damaged'):
        load(data)


def test_an_empty_file():
    with pytest.raises(ValueError, match=r'^set:bob/1 is empty \(0 bytes\).*remove it'):
        load(b'')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('side', [8001, 10_000, 30_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    def chunk(kind, data):
        crc = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + crc

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))
    bomb = b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000)))
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('the bomb was decoded'))
    with pytest.raises(ValueError, match=r'^set:bob/1 has more than 64 megapixels.*Remove it'):
        load(bomb + chunk(b'IEND', b''))


def test_another_size(face):
    with pytest.raises(ValueError, match=r'^set:bob/1 is 112×100 pixels, not 112×112\. Align'):
        load(encode(face[:100], 'png'), size=112)
    assert load(encode(face[:100], 'png'))['img_shape'] == (100, 112)
