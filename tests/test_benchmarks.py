"""The benchmarks run, and print what reads them expects; how fast anything is, is not tested."""

import importlib
import os
import re
import subprocess
import sys

import cv2
import pytest

from facemae_mm.datasets.resumable import sha256_file
from facemae_mm.precision import native_bfloat16
from facemae_mm.release.check import check_release
from facemae_mm.release.manifest import read_manifest


def train_step(repository, *options):
    command = [sys.executable, str(repository / 'benchmarks/train_step.py'), *options]
    env = os.environ | dict(PYTHONPATH=str(repository))
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, dict(re.findall(r'^ratio (\w+) ([\d.]+)$', done.stdout, re.MULTILINE))


def test_both_sides_of_train_step_learn_alike(repository):
    text, ratios = train_step(repository, '--curves-only', '--steps', '24')
    assert list(ratios) == ['loss_deviation'] and float(ratios['loss_deviation']) < 0.01
    losses = re.findall(r'(Ours|Peer): loss ([\d.]+) at first, ([\d.]+) over', text)
    assert [name for name, *_ in losses] == ['Ours', 'Peer']
    rounding = 5e-3 if native_bfloat16('cpu') else 0  # of ours alone
    assert float(losses[0][1]) == pytest.approx(float(losses[1][1]), rel=rounding)
    assert all(float(last) < float(first) for _, first, last in losses)


@pytest.mark.slow
def test_train_step_prints_its_ratios(repository):
    text, ratios = train_step(repository, '--batch', '2', '--depth', '18', '--steps', '24')
    assert list(ratios) == ['step_time', 'peak_share', 'step_memory', 'loss_deviation']
    assert all(float(value) > 0 for name, value in ratios.items() if name != 'loss_deviation')
    assert 0 < float(ratios['peak_share']) < 1 and 'arithmetic: ours' in text


def test_records_prints_its_ratios(repository, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != 'FACEMAE_MXNET_PYTHON'}
    done = subprocess.run(
        [sys.executable, str(repository / 'benchmarks/records.py'), '--images', '30', '--rounds', '1'],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env=env | dict(PYTHONPATH=str(repository)),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith('ratio ')]
    names = ['read_rate_vs_mxnet', 'read_rate_vs_imagefolder', 'write_rate_vs_encode', 'write_rate_vs_encode_jpeg']
    assert [line[1] for line in lines] == names and lines[0][2] == 'skipped'
    assert all(re.fullmatch(r'\d+\.\d{3}', line[2]) and float(line[2]) > 0 for line in lines[1:])
    assert done.stdout.rstrip().endswith(' '.join(lines[-1]))
    assert len(re.findall(r'ratio \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)', done.stdout)) == 3
    assert len(re.findall(r'peak memory: ours [\d,]+ MiB, ImageFolder [\d,]+ MiB', done.stdout)) == 1


@pytest.mark.slow
def test_head_prints_its_ratios(repository):
    options = ['--classes', '300', '--batch', '16', '--sharded-classes', '3000', '--rounds', '3', '--heads-only']
    done = subprocess.run(
        [sys.executable, str(repository / 'benchmarks/head.py'), *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | dict(PYTHONPATH=str(repository)),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith('ratio ')]
    assert [name for _, name, _ in lines] == ['dense_time', 'dense_memory', 'sharded_time', 'sharded_memory']
    assert all(float(value) > 0 for *_, value in lines)
    assert 'three products alone' in done.stdout and 'with sparse SGD' in done.stdout


@pytest.mark.slow
def test_export_prints_its_ratios(repository, tmp_path):
    options = ['--images', '8', '--peer-images', '8', '--small-images', '64', '--memory-images', '40', '--rounds', '3']
    done = subprocess.run(
        [sys.executable, str(repository / 'benchmarks/export.py'), *options],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(repository), TMPDIR=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith('ratio ')]
    assert [name for _, name, _ in lines] == ['rate_vs_forward', 'rate_vs_loop', 'memory_growth']
    assert all(float(value) > 0 for *_, value in lines)
    assert done.stdout.rstrip().endswith(' '.join(lines[-1])) and not done.stderr
    assert len(re.findall(r'ratio \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)', done.stdout)) == 3
    assert 'GFLOP a face' in done.stdout and '2,625,000 chunk files of 16 faces' in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_side_of_the_export_benchmark_does_its_whole_work(repository, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(repository / 'benchmarks')
    benchmark = importlib.import_module('export')
    open_recipe = benchmark.open_recipe
    monkeypatch.setattr(
        benchmark, 'open_recipe', lambda name, _, **values: open_recipe(name, benchmark.LEAST, **values)
    )
    faces = benchmark.write_folders(tmp_path / 'faces', benchmark.synthetic_faces(20))
    weights = benchmark.save_weights(tmp_path / 'model.pth', 'export_casia')

    export = benchmark.Export('export_casia', faces, weights, tmp_path)
    assert export() > 0 and export() > 0  # the second takes nothing from the first
    assert 'all 20 faces of 3 identities are as the manifest' in check_release(export.release)
    assert read_manifest(export.release)[0]['model_sha256'] == sha256_file(weights)
    assert [path.name for path in tmp_path.glob('release_?')] == ['release_2'] and export.merging > 0

    forward, rows = benchmark.Forward('export_casia', faces, weights, 24, 8), []
    reconstruct = forward.model.reconstruct
    forward.model.reconstruct = lambda *args: rows.append(reconstruct(*args).shape)
    assert forward() > 0 and rows == [(8, 196, 768)] * 3

    assert benchmark.Loop(faces, weights, tmp_path, 8, 20)() > 0
    written = [cv2.imread(str(tmp_path / 'loop' / f'{i // 8:06d}' / f'{i % 8}.png')) for i in range(20)]
    released = [cv2.imread(str(path)) for path in sorted(export.release.glob('*/*.png'))]
    assert all(face.shape == (112, 112, 3) and face.std() > 1 for face in written + released)
