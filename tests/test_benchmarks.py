"""The benchmarks run, and print what reads them expects; how fast anything is, is not tested."""

import os
import re
import subprocess
import sys

import pytest


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
    assert [name for name, *_ in losses] == ['Ours', 'Peer'] and losses[0][1] == losses[1][1]
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
