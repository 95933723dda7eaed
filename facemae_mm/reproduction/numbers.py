"""What each kind of stage leaves in its folder, as the small numbers that are kept."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..datasets.face_source import open_faces
from ..json_file import read_json
from .lfw_parts import PAIRS

_REMEDY = 'Delete its folder, and the same command makes it anew.'
_DIGITS = 5


def _rounded(value: object) -> object:
    """Floats to five digits, whatever holds them."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def last_checkpoint(folder: Path) -> Path:
    """What a training names as its last, wherever its folder lies now; before the first, a file that is not there."""
    named = folder / 'last_checkpoint'
    return folder / Path(named.read_text(encoding='utf-8').strip()).name if named.is_file() else named


def _training(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """Steps of its checkpoint, and terms of the loss, as a mean over the last tenth of what was logged."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    steps = {}
    for log in logs:  # of a run that went on, the later one counts
        for line in log.read_text(encoding='utf-8').splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off where a run was killed; the one that went on has the step
                continue
            if 'loss' in row:
                steps[row['step']] = row
    last = [steps[step] for step in sorted(steps)[-max(1, len(steps) // 10) :]]
    others = {'step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'lr'}
    terms = sorted({name for row in last for name in row} - others)
    means = {name: sum(row[name] for row in last if name in row) / sum(name in row for row in last) for name in terms}
    state = torch.load(last_checkpoint(folder), map_location='cpu', weights_only=True, mmap=True)
    return dict(iterations=state['meta']['iter'], **_rounded(means))


def _parts(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """People and images of every part; the people of each pair, as numbers; C's share that train_overlap has too."""
    with (folder / 'parts' / PAIRS).open(newline='', encoding='utf-8') as file:
        pairs = [[row[key].partition('/')[0] for key in ('key1', 'key2')] for row in csv.DictReader(file)]
    number = {name: i for i, name in enumerate(sorted({name for pair in pairs for name in pair}))}
    found = dict(pairs=[[number[name] for name in pair] for pair in pairs])
    people = {}
    for part in sorted((folder / 'parts').iterdir()):
        if part.is_dir():
            source = open_faces(part)
            found[part.name] = dict(people=len(source.identities), images=len(source))
            people[part.name] = set(source.identities)
    shared = people['deploy'] & people['train_overlap']
    return found | dict(overlap=round(len(shared) / len(people['deploy']), _DIGITS))


def _release(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """People and images of a set."""
    source = open_faces(folder / 'release')
    return dict(people=len(source.identities), images=len(source))


def _verification(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """Metrics, and of every set which pairs were answered rightly: 0 and 1 in their order behind a 1, hexadecimal."""
    correct: dict[str, list[str]] = {}
    with (folder / 'answers.csv').open(newline='', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            correct.setdefault(row['set'], ['1']).append(row['correct'])
    answers = {name: f'{int("".join(digits), 2):x}' for name, digits in correct.items()}
    return dict(metrics=_rounded(read_json(folder / 'metrics.json', _REMEDY)), answers=answers)


def _separation(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """As tools/separation.py wrote it."""
    found = read_json(folder / 'separation.json', _REMEDY)
    return _rounded({key: found[key] for key in ('embedder_sha256', 'auc', 'people', 'images', 'by_person')})


def _audit(folder: Path, inputs: Mapping[str, Path]) -> dict:
    """The curves of every attacker."""
    report = read_json(folder / 'audit' / 'report.json', _REMEDY)
    kept = ('identities', 'queries', 'gallery', 'with', 'without', 'chance_with', 'chance_without')
    attackers = {}
    for name, about in report['attackers'].items():
        curves = {
            pairing: [{key: point[key] for key in kept} for point in curve['points']]
            for pairing, curve in about['leakage'].items()
        }
        attackers[name] = dict(leakage=curves, difference=about['difference'])
    return _rounded(dict(attackers=attackers, settings=report['settings']))


def _json(name: str) -> Callable[[Path, Mapping[str, Path]], dict]:
    """A file of numbers but for what says where things lie: the record has the command, the embedder its SHA-256."""

    def read(folder: Path, inputs: Mapping[str, Path]) -> dict:
        found = read_json(folder / name, _REMEDY)
        found.pop('command')
        found.get('embedder', {}).pop('checkpoint', None)
        return _rounded(found)

    return read


#: By the name that a stage gives.
READERS: dict[str, Callable[[Path, Mapping[str, Path]], dict]] = dict(
    training=_training,
    parts=_parts,
    release=_release,
    verification=_verification,
    separation=_separation,
    audit=_audit,
    feature_map=_json('feature_map.json'),
    compare_faces=_json('compare_faces.json'),
)


def answers_of(numbers: Mapping, set_name: str) -> list[bool] | None:
    """Which pairs of a set were answered rightly, of what `_verification` kept; None where the set was not tested."""
    kept = numbers['answers'].get(set_name)
    return None if kept is None else [digit == '1' for digit in bin(int(kept, 16))[3:]]  # '0b' and the leading 1
