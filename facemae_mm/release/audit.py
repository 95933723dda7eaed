"""What was measured on a release after it was made: `audit.json` beside its manifest, and its card drawn anew."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..json_file import read_json
from ..whole_file import whole_file
from .card import draw_card
from .manifest import read_manifest

AUDIT = 'audit.json'
CARD = 'README.md'
LEAKAGE = 'leakage/'

#: No measurement is as large.
LARGEST = 1e15

WRITTEN_BY = 'Give a file that tools/test.py or tools/verify.py wrote.'


def read_audit(release: Path, name: str) -> dict:
    """The audit of a release; an empty one where there is none.

    Args:
        release: Its directory.
        name: SHA-256 of its manifest.

    Raises:
        ValueError: A link, no audit, or that of another release.
    """
    path = release / AUDIT
    remedy = 'Delete it, and give the measurements again.'
    if path.is_symlink():
        raise ValueError(f'{path} is a link, which may lead anywhere. {remedy}')
    if not path.is_file():
        return dict(release=name, leakage={}, utility={})
    audit = read_json(path, remedy)
    if not isinstance(audit, dict) or audit.get('release') != name:
        raise ValueError(f'{path} is the audit of another release than {name}. Delete it, and measure this one.')
    depths = dict(leakage=2, utility=3)  # attacker, metric; recogniser, set, metric
    if audit.keys() != {'release', *depths} or not all(_are_numbers(audit[key], depths[key]) for key in depths):
        raise ValueError(f'{path} holds something else than measurements. {remedy}')
    return audit


def read_leakage(file: str | Path) -> dict[str, float]:
    """Leakage by metric, as `tools/test.py configs/leakage_casia.py … --out FILE --out-item metrics` wrote it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no leakage, or more than numbers.
    """
    metrics = {key.removeprefix(LEAKAGE): value for key, value in _metrics(file).items() if key.startswith(LEAKAGE)}
    if not any(key.startswith('top') for key in metrics):
        raise ValueError(f'{file} holds no leakage. Give what tools/test.py with a leakage recipe wrote.')
    _check_measurements(file, {'leakage': metrics}, 2)
    return metrics


def read_utility(file: str | Path) -> dict[str, dict[str, float]]:
    """Metrics by verification set, as `tools/verify.py … --out FILE` wrote them.

    Or `tools/test.py` with a recogniser's recipe and `--out FILE --out-item metrics`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no verification, or more than numbers.
    """
    sets = _verified_sets(_metrics(file))
    if not sets:
        raise ValueError(f'{file} holds no verification. Give what tools/verify.py --out wrote.')
    _check_measurements(file, {'utility': sets}, 3)
    return sets


def add_measurements(
    release: str | Path,
    leakage: Mapping[str, Mapping[str, float]] = {},
    utility: Mapping[str, Mapping[str, Mapping[str, float]]] = {},
) -> Path:
    """Puts measurements into `audit.json` and on the card. The manifest stays as it is.

    Args:
        release: Its directory.
        leakage: Metrics by name of the attacker, as `RetrievalLeakage` names them.
        utility: Metrics by name of the recogniser and by set.

    Returns:
        The audit's path.

    Raises:
        OSError: A file cannot be written.
        ValueError: The release has no valid manifest, or its audit is that of another.
    """
    release = Path(release)
    manifest, name = read_manifest(release)
    audit = read_audit(release, name)
    for kind, found, depth in (('leakage', leakage, 2), ('utility', utility, 3)):
        _check_measurements(release, found, depth)
        audit[kind] |= found
    with whole_file(release / AUDIT, 'x') as file:
        file.write(json.dumps(audit, indent=1, ensure_ascii=False) + '\n')
    with whole_file(release / CARD, 'x') as file:
        file.write(draw_card(manifest, name, audit))
    return release / AUDIT


def _metrics(file: str | Path) -> dict:
    found = read_json(file, WRITTEN_BY)
    if not isinstance(found, dict):
        raise ValueError(f'{file} holds no measurements. {WRITTEN_BY}')
    return found


def _check_measurements(file: str | Path, found: object, depth: int) -> None:
    if not _are_numbers(found, depth):
        raise ValueError(
            f'{file}: not all of {", ".join(map(repr, found))} are finite numbers under names without line breaks and '
            f'|. {WRITTEN_BY}'
        )


def _are_numbers(found: object, depth: int) -> bool:
    """Whether these are finite numbers by names, so many deep, that fit into a table of the card."""
    if not depth:
        return isinstance(found, int | float) and abs(found) < LARGEST  # neither NaN nor infinite
    return isinstance(found, dict) and all(
        name.isprintable() and '|' not in name and _are_numbers(values, depth - 1) for name, values in found.items()
    )


def _verified_sets(found: dict) -> dict[str, dict]:
    """Metrics by set, of `tools/verify.py` or of a test."""
    if isinstance(found.get('sets'), dict):
        metrics = {name: about.get('metrics') for name, about in found['sets'].items() if isinstance(about, dict)}
    else:
        metrics = {}
        for key, value in found.items():
            name, slash, what = key.partition('/')
            if slash:
                metrics.setdefault(name, {})[what] = value
    return {name: values for name, values in metrics.items() if isinstance(values, dict) and 'accuracy' in values}
