"""The metric part of IJB-C at its real size: lists written in the official format, random embeddings, no images.

469,375 images of 23,124 templates, 15,658,489 pairs, galleries of 1,772 and 1,759 subjects, 19,593 probes. Each side
runs in a process of its own, from the lists to the numbers. `--peer` names InsightFace's own evaluation, the file
recognition/_evaluation_/ijb/ijb_evals.py, which needs pandas, scikit-learn, scikit-image and tabulate beside this
project; the same embeddings go through both, and the largest difference of their numbers is printed. The peer loads
its embeddings whole, as it does for its users; ours are mapped from the file.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, TEMPLATES, GALLERIES, PAIRS, GENUINE = 469_375, 23_124, (1772, 1759), 15_658_489, 19_557
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def write_set(folder: Path, scale: float) -> None:
    """Lists and embeddings; people differ by less than images do, so that no rate is 0 or 1."""
    rng = np.random.default_rng(0)
    images, templates, pairs = (int(n * scale) for n in (IMAGES, TEMPLATES, PAIRS))
    enrolled = [int(n * scale) for n in GALLERIES]
    subjects = np.concatenate([np.arange(sum(enrolled)), rng.integers(0, sum(enrolled), templates - sum(enrolled))])
    ids = np.sort(rng.choice(8 * templates, templates, replace=False)) + 1
    of = np.sort(np.concatenate([np.arange(templates), rng.integers(0, templates, images - templates)]))
    media = 8 * of + rng.integers(0, 8, images)
    points = rng.normal(0, 3, (images, 10)) + [46, 62, 88, 60, 69, 78, 52, 100, 86, 99]
    scores = rng.choice([0.1, 0.8, 0.999], images)

    meta = folder / 'IJBC' / 'meta'
    meta.mkdir(parents=True)
    with (meta / 'ijbc_name_5pts_score.txt').open('w') as file:
        rows = zip(points.tolist(), scores.tolist())
        file.writelines(
            f'{i}.jpg {" ".join(f"{v:.3f}" for v in row)} {score:.3f}\n' for i, (row, score) in enumerate(rows, 1)
        )
    with (meta / 'ijbc_face_tid_mid.txt').open('w') as file:
        rows = zip(ids[of].tolist(), media.tolist())
        file.writelines(f'{i}.jpg {template} {medium}\n' for i, (template, medium) in enumerate(rows, 1))
    probes = np.arange(sum(enrolled), templates)
    genuine = min(int(GENUINE * scale), len(probes))
    first = np.concatenate([subjects[probes[:genuine]], rng.integers(0, sum(enrolled), pairs - genuine)])
    second = np.concatenate([probes[:genuine], rng.choice(probes, pairs - genuine)])
    alike = (subjects[second] == first) & (np.arange(pairs) >= genuine)
    first[alike] = (first[alike] + 1) % sum(enrolled)
    with (meta / 'ijbc_template_pair_label.txt').open('w') as file:
        rows = zip(ids[first].tolist(), ids[second].tolist())
        file.writelines(f'{a} {b} {int(i < genuine)}\n' for i, (a, b) in enumerate(rows))
    parts = np.split(np.arange(templates), np.cumsum(enrolled))
    for name, members in zip(('gallery_G1', 'gallery_G2', 'probe_mixed'), parts):
        lines = [f'{ids[i]},{subjects[i] + 1}\n' for i in members]
        (meta / f'ijbc_1N_{name}.csv').write_text('TEMPLATE_ID,SUBJECT_ID\n' + ''.join(lines))

    people = rng.normal(size=(sum(enrolled), 512)).astype(np.float32)
    embeddings = np.lib.format.open_memmap(folder / 'embeddings.npy', 'w+', np.float32, (images, 512))
    for start in range(0, images, 8192):
        block = subjects[of[start : start + 8192]]
        noise = 11 * rng.standard_normal((len(block), 512), np.float32)
        embeddings[start : start + 8192] = rng.uniform(5, 25, (len(block), 1)) * (people[block] + noise)


def ours(folder: Path) -> dict[str, float]:
    """This project's numbers."""
    from facemae_mm.evaluation import IJBMetric

    return IJBMetric(folder / 'IJBC').calculate(np.load(folder / 'embeddings.npy', mmap_mode='r'))


def peers(folder: Path, file: str) -> dict[str, float]:
    """InsightFace's, by the names of ours."""
    import matplotlib

    matplotlib.use('Agg')
    spec = importlib.util.spec_from_file_location('ijb_evals', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    embeddings = np.load(folder / 'embeddings.npy')
    np.savez(folder / 'peer.npz', embs=embeddings, embs_f=np.zeros_like(embeddings))  # f(x) and f(flip x)
    del embeddings
    test = module.IJB_test(None, str(folder), 'IJBC', restore_embs=str(folder / 'peer.npz'))
    table, _ = module.plot_roc_and_calculate_tpr([test.run_model_test_single()], names=['peer'], label=test.label)
    numbers = dict(zip([f'tar@far={far:.0e}'.replace('e-0', 'e-') for far in FARS], map(float, table.iloc[0])))
    asked, found, *_ = test.run_model_test_1N()
    for fpir in (1e-2, 1e-1):
        numbers[f'mean/tpir@fpir={fpir:.0e}'.replace('e-0', 'e-')] = float(
            found[np.abs(np.log(asked) - np.log(fpir)).argmin()]
        )
    return numbers | dict(auc=float(table.iloc[0]['AUC']))


def measured(side: str, folder: Path, peer: str | None) -> dict:
    """Numbers, seconds and peak MiB of one side in a process of its own."""
    command = [sys.executable, __file__, '--side', side, '--folder', folder, *(['--peer', peer] if peer else [])]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scale', type=float, default=1.0, help='of all counts (default: 1, the size of IJB-C)')
    parser.add_argument('--peer', metavar='FILE', help="InsightFace's ijb_evals.py")
    parser.add_argument('--side', choices=['ours', 'peer'], help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        started = time.perf_counter()
        numbers = ours(args.folder) if args.side == 'ours' else peers(args.folder, args.peer)
        seconds = time.perf_counter() - started
        peak = int(re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024
        print(json.dumps(dict(numbers=numbers, seconds=seconds, mib=peak)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, args.scale)
        result = measured('ours', folder, None)
        for key, value in result['numbers'].items():
            if not key.endswith(('_lo', '_hi')):
                print(f'{key:22} {value:.6g}')
        print(f'ours: {result["seconds"]:.0f} s, peak {result["mib"]:,.0f} MiB (the mapped embeddings among them)')
        if args.peer:
            peer = measured('peer', folder, args.peer)
            both = result['numbers'].keys() & peer['numbers'].keys()  # ours leaves out what a set cannot measure
            off = max(abs(result['numbers'][key] - peer['numbers'][key]) for key in both)
            print(f'peer: {peer["seconds"]:.0f} s, peak {peer["mib"]:,.0f} MiB')
            print(f'largest difference of {len(both)} numbers: {off:.2g}')
            print(f'ratio ijb_time {result["seconds"] / peer["seconds"]:.3f}')
            print(f'ratio ijb_memory {result["mib"] / peer["mib"]:.3f}')


if __name__ == '__main__':
    main()
