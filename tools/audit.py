"""Measures how much a released set of faces leaks about the real one, as attackers would, and writes a report."""

import argparse
import os
import platform
import re
import shlex
import time
from datetime import date
from pathlib import Path
from pickle import UnpicklingError

import dist_run
import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dist import broadcast_object_list
from mmpretrain.registry import TASK_UTILS

import facemae_mm
from facemae_mm.audit.attackers import Attacker
from facemae_mm.audit.audit import Audit, Settings
from facemae_mm.audit.report import write_report
from facemae_mm.command_line import without_folders
from facemae_mm.config import load_config
from facemae_mm.datasets import LoadFace, open_faces
from facemae_mm.datasets.face_source import FaceSource
from facemae_mm.datasets.release_source import release_parts
from facemae_mm.datasets.resumable import keys_digest, lock_folder, write_private
from facemae_mm.evaluation.retrieval_curves import number_of_resamples
from facemae_mm.json_file import read_json
from facemae_mm.launch import process_numbers, refuse, start_processes
from facemae_mm.release.audit import add_measurements, read_utility
from facemae_mm.release.manifest import read_manifest

RECIPE = Path(__file__).resolve().parents[1] / 'configs' / 'audit.py'
K = 2  # of the headline, as in the paper
WAIT = 30 * 24 * 3600  # seconds that other processes wait while the first one learns and measures

EPILOG = """\
REAL and RELEASED are sets of faces of any kind (a folder of identity folders, a .zip of one, a train.rec, a masked
dataset, a release), aligned, 112 pixels or more. RELEASED may come from anybody: a synthetic set, say.

Who is who: by --links, else by equal folder names, else not at all. Then only membership and near duplicates are
measured, and the report says so. Without links it is never guessed which photo a face was made from.

in DIR:
  report.html      tables, curves and pictures in one file, which needs no network; faces are blurred
  report.json      all numbers; *.csv the tables
  private/         for you alone: the keys of the nearest photos, embeddings (biometric data), what attackers learnt.
                   The same command goes on from there; delete it when you are done
A release of this project also gets its leakage into audit.json and onto its card (--no-card leaves them alone).

Imitation (Figure 3c): an attacker runs a model on photos that he has and searches with its output. Export REAL once
more by the other model (MAE), or by the same model with another secret, and give that release with its links:
  --imitation MAE=release_mae:release_mae.private/links.csv --imitation 'other masks=again:again.private/links.csv'
Who knows the secret too makes the very same faces: that is released → released in the report.

examples:
  python tools/audit.py data/lfw112 release --links release.private/links.csv
  python tools/audit.py data/lfw112 release --links release.private/links.csv --non-members data/others --processes 4 \\
      --cfg-options second_embedder=weights/buffalo_l
  python tools/audit.py casia/train.rec synthetic/ --non-members data/lfw112     any released set against any real one
  python tools/audit.py data/lfw112 release --links release.private/links.csv \\
      --utility original=verify_original.json released=verify_released.json --compare MAE=audit_mae/report.json

A curve says how often a photo finds its person (Eq. 3) among growing numbers of people, all read off one exact search.
Intervals are of 95 % and resample people. What no attacker here finds, another may."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('real', metavar='REAL', help='the photos that the attacker holds')
    add('released', metavar='RELEASED', help='the faces that were released')
    add('--links', metavar='FILE', help="the owner's links.csv: which face was made from which photo")
    add('--out', metavar='DIR', help='where to write (default: work_dirs/audit/RELEASED)')
    add(
        '--attackers', default=str(RECIPE), metavar='RECIPE', help='recipe of the attackers (default: configs/audit.py)'
    )
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='set variables at the head of that recipe (attacker_embedder=weights/r50.pth), or other keys with dots',
    )
    add('--only', nargs='+', metavar='NAME', help='of these attackers only')
    add('--non-members', metavar='FACES', help='photos of people who are known not to be released, for membership')
    add('--imitation', action='append', default=[], metavar='NAME=FACES:LINKS', help='see below; may be repeated')
    add(
        '--utility',
        nargs='+',
        default=[],
        metavar='original|released=FILE',
        help='what tools/verify.py --out wrote of a recogniser that was trained on them',
    )
    add('--compare', nargs='+', default=[], metavar='METHOD=FILE', help='report.json of other audits, for one plot')
    add('--topk', type=int, nargs='+', default=[1, 2, 3, 4], metavar='K', help='(default: 1 2 3 4)')
    add('--identities', type=int, nargs='+', metavar='N', help='points of the curves (default: all, a half, … a 16th)')
    add('--draws', type=int, default=20, metavar='N', help='draws of people at each point (default: 20)')
    add(
        '--depth',
        type=int,
        default=64,
        metavar='M',
        help='nearest images that are listed (default: 64): more, if many queries are searched again',
    )
    share = 'share of the people whose pairs attackers who learn own, and who are not asked about then (default: 0.3)'
    add('--owned', type=float, default=0.3, metavar='SHARE', help=share)
    add('--seed', type=int, default=0, help='of draws and owned people (default: 0)')
    add('--no-flip', action='store_true', help='embed f(x) alone')
    add('--no-pixels', action='store_true', help='do not look for copies by pixels')
    add('--no-card', action='store_true', help='leave audit.json and the card of the release as they are')
    add('--show-faces', action='store_true', help='do not blur the pictures; the report is for you alone then')
    add('--batch-size', type=int, default=64, metavar='N', help='faces at once (default: 64)')
    add('--workers', type=int, default=0, metavar='N', help='processes that read faces, for each that embeds (0)')
    add('--processes', type=int, default=1, metavar='N', help='processes: GPUs, or CPUs where there is none')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='in place of --processes')
    args = parser.parse_args()
    if min(args.batch_size, args.processes, args.draws, args.depth, *args.topk) < 1 or args.workers < 0:
        parser.error('--batch-size, --processes, --draws, --depth and --topk must be 1 or more, --workers 0 or more')
    if max(args.topk) > 100:
        parser.error(f'--topk {max(args.topk)}: 100 at most')
    return args


def named(texts: list[str], option: str) -> dict[str, str]:
    """NAME=REST by name.

    Raises:
        ValueError: Another form, or a name twice.
    """
    found = {}
    for text in texts:
        name, _, rest = text.partition('=')
        if not name or not rest or name in found or not re.fullmatch(r'[\w .()-]+', name):
            raise ValueError(
                f'{option} {text!r}: give NAME=… with a name of letters, digits, blanks, . _ - ( ), each once.'
            )
        found[name] = rest
    return found


def open_imitations(texts: list[str]) -> dict[str, tuple[FaceSource, Path | None]]:
    """NAME=FACES[:LINKS], opened."""
    found = {}
    for name, rest in named(texts, '--imitation').items():
        faces, _, links = (rest, '', '') if Path(rest).exists() else rest.rpartition(':')
        found[name] = open_faces(faces or rest), Path(links) if links else None
    return found


def build_attackers(path: str, options: dict, only: list[str] | None) -> dict[str, Attacker]:
    """The attackers of a recipe, by name."""
    recipe = load_config(path, options)
    attackers = recipe.get('attackers')
    if not isinstance(attackers, dict) or not attackers:
        raise ValueError(f'{path} has no dict `attackers`. Look at configs/audit.py.')
    unknown = sorted(set(only or ()) - set(attackers))
    if unknown:
        raise ValueError(f'--only {unknown[0]}: {path} has the attackers {", ".join(attackers)}.')
    chosen = {name: config for name, config in attackers.items() if not only or name in only}
    return {name: TASK_UTILS.build(config) for name, config in chosen.items()}


def release_of(source: FaceSource) -> Path | None:
    """The directory of a release of this project, in one piece or in shards; None of other sets."""
    folder = source.path if source.path.is_dir() else source.path.parent
    return folder if release_parts(folder) is not None else None


def name_of(source: FaceSource) -> str:
    """What a set is called, without where it lies."""
    return (release_of(source) or source.path).resolve().name


def describe(source: FaceSource) -> dict:
    """A set of faces for the report."""
    return dict(
        name=name_of(source),
        images=len(source),
        identities=len(source.identities),
        keys_sha256=keys_digest(source.keys),
    )


def read_utilities(args: argparse.Namespace) -> list[dict]:
    """Verification results by method, recogniser and set."""
    found = []
    for method, file in named(args.utility, '--utility').items():
        if method not in ('original', 'released'):
            raise ValueError(
                f'--utility {method}=…: this audit knows the methods original and released; give others by --compare.'
            )
        for name, metrics in read_utility(file).items():
            accuracy = [metrics['accuracy'], metrics.get('accuracy_lo'), metrics.get('accuracy_hi')]
            pairs = metrics.get('pairs')
            found.append(dict(method=method, recogniser='', set=name, accuracy=accuracy, pairs=pairs and int(pairs)))
    return found


def read_compared(args: argparse.Namespace, real: FaceSource, people: int | None) -> list[dict]:
    """Leakage at the headline's attacker, and utility, of other audits of the same photos.

    Args:
        args: The command line.
        real: The photos.
        people: How many this audit asks about at its last point; None where it measures no leakage.

    Raises:
        ValueError: No such report, of other photos, or of another number of people.
    """
    found, k = [], headline_k(args.topk)
    for method, file in named(args.compare, '--compare').items():
        other = read_json(file, 'Give the report.json of another audit.', lambda number: None)
        try:
            name = other['headline']['attacker']
            last = other['attackers'][name]['leakage']['original_released']['points'][-1]
            counted = 'without' if last.get('without') else 'with'
            leakage = {str(int(k)): interval(values) for k, values in last[counted].items()}
            chance = {str(int(k)): interval([value] * 3)[0] for k, value in last[f'chance_{counted}'].items()}
            utility = [
                dict(
                    {key: str(entry[key]) for key in ('method', 'recogniser', 'set')},
                    accuracy=interval(entry['accuracy']),
                    pairs=entry.get('pairs') and int(entry['pairs']),
                )
                for entry in other.get('utility') or ()
            ]
            photos, others = other['real']['keys_sha256'], int(last['identities'])
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f'{file} is no report.json of an audit that measured leakage. Give another.') from error
        if str(k) not in leakage:
            raise ValueError(f'{file} has no leakage at K = {k}, which this report compares. Audit it with --topk {k}.')
        if photos != keys_digest(real.keys):
            raise ValueError(f'{file} is the audit of other photos than {real.path}: the two cannot be compared.')
        if people not in (None, others):
            raise ValueError(
                f'{file} asks about {others} people, and this audit about {people}: leakage falls with their '
                'number, so the two cannot be compared. Audit both with one choice of --only, --owned and --identities.'
            )
        found.append(
            dict(method=method, leakage=leakage, chance=chance, attacker=str(name), counted=counted, utility=utility)
        )
    return found


def interval(values: list) -> list[float | None]:
    """[rate, low, high], of which the latter two may be None.

    Raises:
        TypeError, ValueError: Something else.
    """
    rate, low, high = values
    found = [float(rate), *(None if end is None else float(end) for end in (low, high))]
    if not all(end is None or abs(end) <= 1 for end in found):
        raise ValueError(f'{values} are no rates')
    return found


def headline_k(topk: list[int]) -> int:
    """The paper's K, where it is asked for."""
    return K if K in topk else min(topk)


def headline(attackers: dict, topk: list[int]) -> dict:
    """The attacker who finds most, and the K that is asked first."""
    k = headline_k(topk)

    def found(name: str) -> float:
        points = attackers[name]['leakage'].get('original_released', {}).get('points')
        if points:
            rates = points[-1].get('without') or points[-1]['with']
            return rates[str(k)][0]
        membership = attackers[name]['membership']
        return membership['with']['calibrated']['auc'][0] if membership else 0.0

    return dict(attacker=max(attackers, key=found), k=k) if attackers else dict(attacker=None, k=k)


def measurements(about: dict, matching: dict) -> dict[str, float] | None:
    """An attacker's leakage as `RetrievalLeakage` names it, for the card; None where it was not measured."""
    if not about['leakage']:
        return None
    last = about['leakage']['original_released']['points'][-1]
    found = dict(queries=last['queries'], identities=last['identities'], gallery=last['gallery'])
    found |= {name: matching[name] for name in ('left_out_identities', 'owned_identities')}
    for mode, suffix in (('with', '_with'), ('without', '')):
        for k, values in (last[mode] or {}).items():
            key = f'top{k}_{mode}'
            found |= dict(zip((key, f'{key}_lo', f'{key}_hi'), values, strict=True))
            found[f'chance_top{k}{suffix}'] = last[f'chance_{mode}'][k]
    return found


def pictures(audit: Audit, worst: dict[str, list[tuple[int, int]]]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Released face and photo of each of the worst cases."""
    load = LoadFace()

    def read(source: FaceSource, number: int) -> np.ndarray:
        face = load(dict(img_bytes=source.read(number), img_path=f'{source.path}:{source.keys[number]}'))['img']
        return face.round().astype(np.uint8)

    return {
        name: [(read(audit.released, face), read(audit.real, photo)) for face, photo in pairs]
        for name, pairs in worst.items()
    }


def write_keys(audit: Audit, worst: dict, folder: Path) -> None:
    """Which faces and photos the worst cases are, for the owner alone."""
    rows = [
        (name, audit.released.keys[face], audit.real.keys[photo])
        for name, pairs in worst.items()
        for face, photo in pairs
    ]
    write_private(folder / 'worst_cases_keys.csv', [('attacker', 'released_key', 'photo_key'), *rows])


def print_summary(report: dict) -> None:
    """The headline table."""
    k = str(report['headline']['k'])

    def rate(values: list | None) -> str:
        return 'not available' if not values else f'{values[0]:.1%} [{values[1]:.1%}, {values[2]:.1%}]'

    header = ('attacker', f'others, K={k}', 'chance', f'any, K={k}', 'below original', 'member at FPR 1e-2')
    rows = [header]
    for name, about in report['attackers'].items():
        points = about['leakage'].get('original_released', {}).get('points')
        last = points[-1] if points else {}
        less = (about['difference'] or {}).get('points')
        less = (less[-1]['without'] or less[-1]['with'])[k] if less else None
        member = about['membership']
        scores = (member['without'] or member['with']).values() if member else ()
        member = max(filter(None, (score['tpr']['0.01'] for score in scores)), default=None)
        chance = (last.get('chance_without') or last.get('chance_with') or {}).get(k)
        rows.append(
            (
                name + ('  (worst)' if name == report['headline']['attacker'] else ''),
                rate((last.get('without') or {}).get(k)),
                '' if chance is None else f'{chance:.1%}',
                rate((last.get('with') or {}).get(k)),
                rate(less),
                rate(member),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("others: released faces of the photo's person that were not made from it; any: all of them.")
    for note in report['matching']['notes']:
        print(note)


def run(args: argparse.Namespace) -> None:
    """Attacks, measures, writes."""
    started = time.perf_counter()
    real, released = open_faces(args.real), open_faces(args.released)
    out = Path(args.out or Path('work_dirs') / 'audit' / name_of(released))
    utility = read_utilities(args)
    strangers = open_faces(args.non_members) if args.non_members else None
    if strangers is not None and keys_digest(strangers.keys) == keys_digest(real.keys):
        raise ValueError(f'--non-members {args.non_members} holds the photos of {args.real}. Give those of others.')
    for source in (real, released):
        folder = source.path.resolve()
        folder = folder if folder.is_dir() else folder.parent
        if out.resolve().is_relative_to(folder):
            raise ValueError(f'--out {out} lies in {folder}, among the faces. Name a folder outside.')
    settings = Settings(
        topk=tuple(sorted(set(args.topk))),
        points=tuple(args.identities) if args.identities else None,
        draws=args.draws,
        depth=max(args.depth, max(args.topk) + 1),
        owned=args.owned,
        seed=args.seed,
        flip=not args.no_flip,
        pixels=not args.no_pixels,
        batch_size=args.batch_size,
        workers=args.workers,
    )
    release = release_of(released)
    manifest = None if release is None else read_manifest(release)[1]
    device = start_processes(args.launcher, WAIT)
    rank, processes = process_numbers(args.launcher)[:2]
    private = out / 'private'
    audit = Audit(
        real,
        released,
        Path(args.links) if args.links else None,
        build_attackers(args.attackers, args.cfg_options, args.only),
        private,
        strangers,
        open_imitations(args.imitation),
        settings,
        device,
    )
    compared = read_compared(args, real, audit.draws.points[-1] if audit.draws else None)
    lock, refused = None, [None]
    if rank == 0:
        try:
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_folder(private)
        except OSError as error:
            refused = [error]
    broadcast_object_list(refused)
    if refused[0]:
        raise refused[0]
    found = audit.run()
    if found is None:
        return
    measured, worst = found
    report = dict(
        format='facemae-audit',
        version=1,
        command=shlex.join(['python', *(without_folders(word) for word in dist_run.typed_words(args.processes))]),
        date=date.today().isoformat(),
        versions=dict(
            facemae_mm=facemae_mm.__version__,
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
        ),
        seconds=round(time.perf_counter() - started, 1),
        real=describe(real),
        released=describe(released) | dict(manifest_sha256=manifest),
        settings=vars(settings)
        | dict(
            identities=list(audit.draws.points) if audit.draws else [],
            resamples=number_of_resamples(len(audit.draws.identities) if audit.draws else 0),
            processes=processes,
            device=device.type,
        ),
        **measured,
        headline=headline(measured['attackers'], args.topk),
        utility=utility,
        compared=compared,
    )
    page = write_report(report, out, pictures(audit, worst), show_faces=args.show_faces)
    write_keys(audit, worst, private)
    print_summary(report)
    print(f'Report: {page}; numbers: {out / "report.json"} and *.csv. For you alone: {private}')
    if manifest is not None and not args.no_card:
        leakage = {name: measurements(about, report['matching']) for name, about in report['attackers'].items()}
        leakage = {name: metrics for name, metrics in leakage.items() if metrics}
        if leakage:
            print(f'{add_measurements(release, leakage)} and the card beside it hold the leakage.')
    lock.close()


def main() -> None:
    args = parse_args()
    if args.processes > 1 and args.launcher == 'none':
        dist_run.run_again(args.processes)
    local_rank = 0
    try:
        local_rank = process_numbers(args.launcher)[2]
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'audit.py: {error}', local_rank)
    except RuntimeError as error:
        if local_rank or 'RANK' not in os.environ:  # the first process ended, and has said why; or it never met others
            refuse(f'audit.py: {error}', local_rank)
        raise
    except KeyboardInterrupt:
        refuse('audit.py: interrupted; what is finished is kept: the same command goes on.', local_rank)


if __name__ == '__main__':
    main()
