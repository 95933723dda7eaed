"""tools/make_verification_bin.py: the .bin that it writes, and what it refuses."""

import os
import pickle
import pickletools
import resource
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from test_tools import tool
from test_verification_pairs import expected_cfp, write_protocol
from tiny import write_faces

from facemae_mm.datasets import VerificationPairs, open_faces

PAIRS = 'key1,key2,same\nperson_0/0,person_0/1,1\nperson_0/0,person_1/0,0\nperson_1/0,person_1/0,1\n'


@pytest.fixture
def module(repository):
    return tool(repository, 'make_verification_bin')


@pytest.fixture
def run(module, monkeypatch, capsys):
    """Runs the tool; gives exit code, stdout and stderr."""

    def run_tool(*args):
        monkeypatch.setattr('sys.argv', ['make_verification_bin.py', *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run_tool


@pytest.fixture
def faces(tmp_path):
    (tmp_path / 'pairs.csv').write_text(PAIRS)
    return write_faces(tmp_path / 'faces', identities=2, images=2)


def as_arcface_torch_reads(path):
    with open(path, 'rb') as file:
        return pickle.load(file, encoding='bytes')  # trusted: our own file


def test_lfw(shared, run, tmp_path):
    """Every twentieth pair of LFW: bytes and bools as they are, read back plainly and by our own reader."""
    lines = (shared / 'faces/lfw_pairs.txt').read_text().splitlines()[1::20]
    (tmp_path / 'pairs.txt').write_text('\n'.join(lines))
    folder, out = shared / 'faces/lfw112', tmp_path / 'new/lfw.bin'
    code, told, error = run(folder, tmp_path / 'pairs.txt', out)
    assert (code, error) == (0, '') and os.listdir(out.parent) == ['lfw.bin']
    paths = []
    for line in lines:
        name, n, *other, m = line.split('\t')
        other = other[0] if other else name
        paths += [folder / f'{name}/{name}_{int(n):04d}.jpg', folder / f'{other}/{other}_{int(m):04d}.jpg']
    stored = [path.read_bytes() for path in paths]
    images, same = as_arcface_torch_reads(out)
    assert type(images) is list and {*map(type, images)} == {bytes} and images == stored
    assert type(same) is list and {*map(type, same)} == {bool}
    assert same == [line.count('\t') == 2 for line in lines] == ([True] * 15 + [False] * 15) * 10
    size, once = out.stat().st_size, len(set(paths))
    assert told.splitlines()[-1] == (f'{out}: 300 pairs (150 same), 600 images ({once} different), {size:,} bytes')

    source = open_faces(out)
    assert [source.read(i) for i in range(600)] == stored and source.same.tolist() == same
    sets = dict(bin=dict(source=out), folder=dict(source=folder, pairs=tmp_path / 'pairs.txt'))
    dataset = VerificationPairs(sets)
    assert len(dataset) == 1200
    for i in range(600):
        ours, folders = dataset.get_data_info(i), dataset.get_data_info(600 + i)
        for field in ('img_bytes', 'pair_index', 'side', 'same'):
            assert ours[field] == folders[field]


def test_an_image_in_several_pairs_is_stored_once(run, faces, tmp_path):
    assert run(faces, tmp_path / 'pairs.csv', tmp_path / 'x.bin')[0] == 0
    content = (tmp_path / 'x.bin').read_bytes()
    opcodes = list(pickletools.genops(content))
    assert (opcodes[0][0].name, opcodes[0][1]) == ('PROTO', 4)
    stored = [value for opcode, value, _ in opcodes if isinstance(value, bytes)]
    a, b, c = ((faces / f'person_{name}.png').read_bytes() for name in ('0/0', '0/1', '1/0'))
    assert stored == [a, b, c]
    assert pickle.loads(content) == ([a, b, a, c, c, c], [True, False, True])


@pytest.mark.parametrize('protocol', ['FP', 'FF'])
def test_cfp(run, tmp_path, protocol):
    """Images as CFP has them, 001/frontal/01, after an alignment that wrote PNG."""
    keys, same = expected_cfp('profile' if protocol == 'FP' else 'frontal')
    rng = np.random.default_rng(0)
    stored = {}
    for key in dict.fromkeys(keys):
        stored[key] = cv2.imencode('.png', rng.integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
        path = tmp_path / f'faces/{key}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored[key])
    folder = write_protocol(tmp_path / 'Protocol')
    command = [tmp_path / 'faces', folder, tmp_path / 'cfp.bin', '--size', 64, '--protocol', protocol]
    assert run(*command)[::2] == (0, '')
    assert as_arcface_torch_reads(tmp_path / 'cfp.bin') == ([stored[key] for key in keys], same)
    sets = dict(x=dict(source=tmp_path / 'faces', pairs=folder, protocol=protocol))
    dataset = VerificationPairs(sets)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [info['img_key'] for info in infos] == keys
    assert [info['identity'] for info in infos] == [key[:3] for key in keys]


def test_agedb(run, faces, tmp_path):
    """A folder of images alone, and the same in a .zip, by lines of two paths."""
    images = sorted(faces.rglob('*.png'))
    flat = tmp_path / 'flat'
    flat.mkdir()
    for number, image in enumerate(images):
        (flat / f'{number}_Name_30_f.png').write_bytes(image.read_bytes())
    with ZipFile(tmp_path / 'flat.zip', 'w') as file:
        for image in flat.iterdir():
            file.write(image, image.name)
    (tmp_path / 'list.txt').write_text('0_Name_30_f.jpg 1_Name_30_f.jpg 1\n3_Name_30_f.jpg ./0_Name_30_f.jpg 0\n')
    expected = [images[i].read_bytes() for i in (0, 1, 3, 0)], [True, False]
    for source in (flat, tmp_path / 'flat.zip'):
        assert run(source, tmp_path / 'list.txt', tmp_path / 'x.bin', '--overwrite')[::2] == (0, '')
        assert as_arcface_torch_reads(tmp_path / 'x.bin') == expected


def test_a_bin_repacked_by_its_numbers(run, faces, tmp_path):
    assert run(faces, tmp_path / 'pairs.csv', tmp_path / 'x.bin')[0] == 0
    (tmp_path / 'numbers.csv').write_text('key1,key2,same\n3,0,0\n')
    assert run(tmp_path / 'x.bin', tmp_path / 'numbers.csv', tmp_path / 'y.bin')[0] == 0
    images, same = as_arcface_torch_reads(tmp_path / 'y.bin')
    assert images == [(faces / f'person_{name}.png').read_bytes() for name in ('1/0', '0/0')] and same == [False]


def test_what_is_refused(run, faces, tmp_path):
    """One line that says what to do, exit code 2, nothing written and nothing left."""
    pairs, out = tmp_path / 'pairs.csv', tmp_path / 'x.bin'
    before = sorted(os.listdir(tmp_path))
    (damaged := tmp_path / 'damaged.bin').write_bytes(b'\x80\x04cos\nsystem\n.')
    (foreign := tmp_path / 'foreign.csv').write_text(PAIRS + 'person_0/0,person_9/0,0\n')
    (plain := tmp_path / 'plain').write_text('')
    for command, message in [
        ((tmp_path / 'nowhere', pairs, out), 'nowhere does not exist. Give a'),
        ((faces, tmp_path / 'nopairs', out), 'nopairs does not exist. Give a list of pairs'),
        ((faces, foreign, out), 'lacks the image person_9/0 of pair 3'),
        ((faces, pairs, out, '--protocol', 'FF'), "pairs.csv is a file, but protocol='FF'"),
        ((faces, pairs, out, '--size', '128'), ':person_0/0 is 112×112 pixels, not 128×128. Align'),
        ((faces, pairs, plain), 'plain exists already. Name another file, or give --overwrite.'),
        ((faces, pairs, tmp_path, '--overwrite'), 'is no plain file'),
        ((faces, pairs, pairs, '--overwrite'), 'or is what was to be read. Name another file.'),
        ((faces, pairs, plain / 'x.bin'), 'plain/x.bin cannot be written: '),
        ((damaged, pairs, out), "it asks for 'os.system'"),
    ]:
        code, _, error = run(*command)
        assert code == 2 and error.count('\n') == 1 and error.startswith('make_verification_bin.py: ')
        assert message in error
    (faces / 'person_1/0.png').write_bytes(b'no image')
    code, _, error = run(faces, pairs, out)
    assert code == 2 and ':person_1/0 (8 bytes) is damaged' in error and error.count('\n') == 1
    assert sorted(os.listdir(tmp_path)) == sorted([*before, 'damaged.bin', 'foreign.csv', 'plain'])
    assert plain.read_text() == '' and pairs.read_text() == PAIRS


def test_a_full_disk_leaves_what_was_there(run, faces, tmp_path):
    out = tmp_path / 'x.bin'
    out.write_text('old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        code, _, error = run(faces, tmp_path / 'pairs.csv', out, '--overwrite')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and 'x.bin cannot be written: File too large. Free space' in error
    assert out.read_text() == 'old' and sorted(os.listdir(tmp_path)) == ['faces', 'pairs.csv', 'x.bin']
    assert run(faces, tmp_path / 'pairs.csv', out, '--overwrite')[0] == 0
    assert len(as_arcface_torch_reads(out)[0]) == 6


def test_an_interrupted_run_leaves_nothing(module, run, faces, tmp_path, monkeypatch):
    def write_half(content, file, protocol):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(module.pickle, 'dump', write_half)
    code, _, _ = run(faces, tmp_path / 'pairs.csv', tmp_path / 'x.bin')
    assert code == 'make_verification_bin.py: interrupted, nothing written'
    assert sorted(os.listdir(tmp_path)) == ['faces', 'pairs.csv']


def test_too_many_bytes(module, run, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MAX_BYTES', 10_000)
    code, _, error = run(faces, tmp_path / 'pairs.csv', tmp_path / 'x.bin')
    assert code == 2 and 'more than 10,000 bytes of images' in error


def test_help_teaches(run):
    code, told, _ = run('--help')
    assert code == 0
    for example in ('lfw112 pairs.txt lfw.bin', 'cfp-dataset/Protocol cfp_fp.bin --protocol FP', 'agedb_30.bin'):
        assert example in told
