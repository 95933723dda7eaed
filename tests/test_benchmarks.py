"""The benchmarks run, and print what reads them expects; how fast anything is, is not tested."""

import os
import re
import subprocess
import sys


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
