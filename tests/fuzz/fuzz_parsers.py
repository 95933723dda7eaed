"""Fuzzes all that reads files from outside: mutated files must be read, or refused with an error that names them.

Each target runs in a process of its own, by atheris (coverage-guided). The first byte of an input says which of a
target's files the others take the place of; or they choose how files are built that are valid but for a few fields,
since mutated bytes seldom pass the checks that come first. What is refused is a ValueError, an UnpicklingError or an
OSError that names the file. Any other error, growth by 2 GiB, 10 seconds for one input, and a crash are findings: the
input is kept in --findings, --replay runs it again, and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=['facemae_mm']):
    from targets import TARGETS

#: Inputs of each target by default: 1,200,000 in all.
RUNS = dict(
    rec=240_000,
    idx=100_000,
    bin=240_000,
    pairs=150_000,
    ijb=50_000,
    zip=120_000,
    masked=100_000,
    release=20_000,
    tables=60_000,
    image=120_000,
)

REFUSALS = (ValueError, OSError, pickle.UnpicklingError)
MEMORY = 2 << 20  # KiB


def fuzz(target: str, runs: int, seed: int, findings: Path, folder: Path) -> None:
    """Fuzzes one target in this process, which ends with it, and counts into `folder/counts.json`."""
    corpus, work = folder / 'corpus', folder / 'work'
    corpus.mkdir()
    work.mkdir()
    seeds, test = TARGETS[target](work)
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    counts = Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + MEMORY

    def test_one(data: bytes) -> None:
        nonlocal memory
        counts['inputs'] += 1
        if counts['inputs'] % 1000 == 0 or counts['inputs'] >= runs:  # libFuzzer ends without a word to Python
            (folder / 'counts.json').write_text(json.dumps(counts))
        try:
            try:
                test(data)
                counts['read'] += 1
            except REFUSALS as error:
                if 'fuzzed' not in str(error):
                    raise AssertionError('the error names no file') from error
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if used > memory:
                memory = used + MEMORY
                raise MemoryError(f'{used} KiB in use')
        except Exception:
            path = findings / f'{target}-{hashlib.sha256(data).hexdigest()[:12]}'
            path.write_bytes(data)
            print(f'FINDING {path}\n{traceback.format_exc()}', flush=True)
            counts['findings'] += 1

    flags = [f'-runs={runs}', f'-seed={seed}', '-max_len=4096', '-timeout=10', '-rss_limit_mb=8192', '-verbosity=0']
    atheris.Setup([sys.argv[0], str(corpus), *flags, f'-artifact_prefix={findings}/{target}-'], test_one)
    atheris.Fuzz()


def main() -> None:
    """Fuzzes the targets, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=f'of {", ".join(TARGETS)} (default: all)')
    parser.add_argument('--runs', type=int, help='inputs of each (default: 1,200,000 in all)')
    parser.add_argument('--seed', type=int, default=1, help='(default: %(default)s)')
    parser.add_argument('--findings', type=Path, default=Path('work_dirs/fuzz'), help='(default: %(default)s)')
    parser.add_argument('--replay', type=Path, metavar='INPUT', help='run a TARGET on one finding')
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)  # this process fuzzes one target
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f'no target {", ".join(sorted(unknown))}; there are {", ".join(TARGETS)}')
    if args.folder:
        fuzz(args.targets[0], args.runs, args.seed, args.findings, args.folder)
        return
    if args.replay:
        with tempfile.TemporaryDirectory(prefix='fuzz-') as folder:
            TARGETS[args.targets[0]](Path(folder))[1](args.replay.read_bytes())
        return
    args.findings.mkdir(parents=True, exist_ok=True)
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    total = Counter()
    for target in args.targets or TARGETS:
        log, start = args.findings / f'{target}.log', time.monotonic()
        flags = ['--runs', str(args.runs or RUNS[target]), '--seed', str(args.seed), '--findings', str(args.findings)]
        with tempfile.TemporaryDirectory(prefix='fuzz-', dir=memory) as folder, log.open('w') as file:
            command = [sys.executable, __file__, target, *flags, '--folder', folder]
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
            report = Path(folder, 'counts.json')
            counts = Counter(json.loads(report.read_text()) if report.exists() else {})
        counts['findings'] += bool(code)  # a crash, or too slow
        total += counts
        print(
            f'{target:7} {counts["inputs"]:9,} inputs: {counts["read"]:7,} read, '
            f'{counts["inputs"] - counts["read"] - counts["findings"]:9,} refused, {counts["findings"]} findings'
            f'{f" (see {log})" * bool(counts["findings"])}, {time.monotonic() - start:.0f} s',
            flush=True,
        )
    print(f'{total["inputs"]:,} inputs, {total["read"]:,} read, {total["findings"]} findings')
    sys.exit(bool(total['findings']))


if __name__ == '__main__':
    main()
