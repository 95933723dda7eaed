"""The page of a reproduction: the paper's tables beside ours, claims, figures, costs; nothing typed by hand."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..whole_file import whole_file
from .charts import draw_leakage, draw_trade_off
from .claims import CLAIMS, FAILS, HOLDS, NOT_RUN, OPEN, OURS_ALONE, Evidence, Verdict, percent, worst
from .data_flow import DataFlow
from .face_regions import MEASURES
from .measures import SETS, Measured, Measures, worst_leakage
from .run import duration
from .store import Store, content_digest
from .tables import ALL, MASKS, RECOGNISER, Row, Table

PAGE = 'README.md'


def write_page(folder: Path, store: Store, graph: DataFlow, tables: Mapping[str, Table], command: str) -> Path:
    """Writes README.md and its charts from the records of a store; charts that it does not show go.

    Args:
        folder: Where.
        store: With the records.
        graph: The data flow that the tables are of.
        tables: By name, all of them.
        command: Words of the command that made it.

    Returns:
        The page.
    """
    measures, judges = Measures(store, tables.values()), list(graph.judges())
    evidence = Evidence(measures, dict(tables), judges)
    lines = [
        f'# {graph.title}',
        '',
        'Last drawn by `'
        + command
        + '` (of each path its last part), from what all commands so far have run. No number of ours is typed by hand: '
        'each comes from a record in `stages/`, which names its command, what it depended on (SHA-256), its cost, the '
        'versions and the commit.',
        '',
        *graph.described(lambda name: store.record(store.stages[name])),
        _tested(evidence.sets),
        '',
        *_claims(evidence),
    ]
    for table in tables.values():
        lines += _table(table, measures, judges, evidence.sets)
    lines += _figures(folder, measures, tables)
    lines += _costs(store)
    path, text = folder / PAGE, '\n'.join(lines).rstrip() + '\n'
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'x') as file:
        file.write(text)
    for chart in (folder / 'figures').glob('*.svg'):
        if f'(figures/{chart.name})' not in text:  # of numbers that are no longer these
            chart.unlink()
    return path


def _tested(sets: Sequence[str]) -> str:
    """Which sets beside LFW verified."""
    if not sets:
        return 'CFP-FP and AgeDB: not run.'
    names = ' and '.join(SETS[name] for name in sets)
    return (
        f'Accuracy is also that on {names}: a `.bin`, which names no people, so that intervals resample its pairs as '
        'if they were independent.'
    )


def _percent(value: Measured | None, accuracy: Measured | None = None) -> str:
    """A cell; with its number of runs where that is not the accuracy's, whose records the row lists."""
    if value is None:
        return 'not run'
    other = '' if accuracy and accuracy.runs == value.runs else f' ({_runs(value.runs)})'
    return percent((value.mean, value.low, value.high)) + other


def _runs(count: int) -> str:
    return f'{count} runs' if count > 1 else 'one run'


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace('|', '\\|') for cell in row] for row in (header, *rows)]
    lines = [f'| {" | ".join(row)} |' for row in cells]
    return [lines[0], '|' + '---|' * len(header), *lines[1:], '']


def _table(table: Table, measures: Measures, judges: Sequence[str], sets: Sequence[str]) -> list[str]:
    """A table of the paper beside ours."""
    header = ['', *(f'paper, {name}' for name in SETS.values()), 'accuracy, %']
    header += [*(f'accuracy {SETS[name]}, %' for name in sets), *(f'separation, {judge}, %' for judge in judges)]
    header += ['leakage at K = 2, %', 'records of runs', 'which differ in']
    rows = []
    for row in table.rows.values():
        accuracy = measures.accuracy(row)
        paper = ['–' if number is None else f'{number:.2f}' for number in row.paper or (None,) * 3]
        rows.append(
            [
                row.label + (f' ({row.remark})' if row.remark else ''),
                *paper,
                _percent(accuracy, accuracy),
                *(_percent(measures.accuracy(row, name), accuracy) for name in sets),
                *(
                    _percent(measures.separation(row, judge), accuracy) if _is_judged(row, judge) else ''
                    for judge in judges
                ),
                _leakage(measures.leakage(row)) if any(run.audit for run in row.runs) else '',
                _records(row, accuracy),
                row.varies,
            ]
        )
    return [
        f'## Table {table.name.removeprefix("table")}: {table.title}',
        '',
        *_markdown(header, rows),
        table.remark + _overlap(table, measures) + _originals(table, measures),
        '',
    ]


def _records(row: Row, accuracy: Measured | None) -> str:
    """Links to what is known of each run of a row."""
    runs = row.runs[: accuracy.runs] if accuracy else ()
    return ', '.join(f'[{seed}](stages/{run.verify}.json)' for seed, run in enumerate(runs)) or 'none'


def _overlap(table: Table, measures: Measures) -> str:
    """How many of C's people the overlapping training set of Table 4 has."""
    parts = measures.numbers('parts')
    if table.name != 'table4' or parts is None:
        return ''
    return f' In the last row {parts["overlap"]:.0%} of the people deployed on are among those trained on.'


def _originals(table: Table, measures: Measures) -> str:
    """Beside Table 1's leakage: that of the originals, and what chance finds."""
    audits = [audit for row in table.rows.values() for audit in measures.leakage(row)]
    if table.name != 'table1' or not audits:
        return ''
    audit = audits[0]
    points = [about['leakage']['original_original'][-1] for about in audit['attackers'].values()]
    found = max(point['with']['2'] for point in points)
    chance = points[0]['chance_with']['2']
    return (
        f' Leakage among the originals themselves: {percent(found)}; chance: {100 * chance:.1f}. An empty cell was not '
        'asked for.'
    )


def _is_judged(row: Row, judge: str) -> bool:
    return any(judge in run.separation for run in row.runs)


def _leakage(audits: Sequence[dict]) -> str:
    """At the largest number of identities, without and with the same source: first run, and the others in brackets."""
    found = []
    for mode in ('without', 'with'):
        rates = [rate for rate in (worst_leakage(audit, mode) for audit in audits) if rate]
        if rates:
            others = f' ({", ".join(f"{100 * rate[0]:.1f}" for rate in rates[1:])})' if rates[1:] else ''
            found.append(f'{mode} {percent(rates[0])}{others}')
    return ', '.join(found) or 'not run'


def _claims(evidence: Evidence) -> list[str]:
    rows, waiting, of_paper, of_ours = [], [], [], []
    for claim in CLAIMS:
        verdicts: list[Verdict] = [one for one in claim.check(evidence) if one.verdict != NOT_RUN]
        if not verdicts:
            waiting.append(f'{claim.name} ({claim.place})')
            continue
        for number, verdict in enumerate(verdicts):
            name = [f'**{claim.name}**: {claim.sentence}', claim.place] if number == 0 else ['', '']
            runs = f', {_runs(verdict.runs)}'
            rows.append([*name, verdict.measure, f'**{verdict.verdict}**{runs}', verdict.figures])
        outcome = worst([verdict.verdict for verdict in verdicts])
        decides = [verdict for verdict in verdicts if verdict.verdict == outcome]
        outcomes = of_ours if claim.place == OURS_ALONE else of_paper
        outcomes.append((outcome, all(verdict.runs == 1 for verdict in decides)))
    ours = sum(claim.place == OURS_ALONE for claim in CLAIMS)
    return [
        '## The claims',
        '',
        f'Of {len(CLAIMS) - ours} claims of the paper, by every measure that has run: {_counted(of_paper)}; of '
        f'{ours} of ours beside them: {_counted(of_ours)}. A claim '
        'holds where the whole 95 % interval of the difference says so, does not hold where the whole interval says '
        'the contrary, and is not decided otherwise. Differences are in points, paired by people; releases '
        'are compared in leakage unpaired, by the interval of the difference that follows from their two (Newcombe). '
        'What "does not matter" must lie within 2 points; that something "does not help" does not hold where the whole '
        'interval says that it helps, and holds where it helps by less than 2 points at most.',
        '',
        f'{_covered(evidence)} A claim about leakage holds where it does in every run. Its intervals, and those of '
        'Figures 1 and 4 and of alignment, are of the people of one run, not of what another training would change. No '
        'interval is widened for the number of claims: a claim of several measures is judged by its worst.',
        '',
        *_markdown(['claim', 'where', 'measure', 'verdict', 'figures'], rows),
        *([f'Not run: {"; ".join(waiting)}.', ''] if waiting else []),
    ]


def _counted(outcomes: Sequence[tuple[str, bool]]) -> str:
    """How often each verdict, and how often by one run alone."""
    said = []
    for verdict in (HOLDS, FAILS, OPEN):
        alone = [by_one_run for outcome, by_one_run in outcomes if outcome == verdict]
        if alone:
            by_one_run = f', {"all" if all(alone) else sum(alone)} by one run' if any(alone) else ''
            said.append(f'{verdict} ({len(alone)}{by_one_run})')
    return ', '.join(said) or 'none has run'


def _covered(evidence: Evidence) -> str:
    """What intervals of accuracy and separation cover."""
    kinds = [*(f'accuracy {name}' for name in ('lfw', *evidence.sets)), *(f'separation {j}' for j in evidence.judges)]
    found = {kind: evidence.measures.between_trainings(kind) for kind in kinds}
    said = [f'{_kind(kind)} {100 * deviation:.1f} points' for kind, (deviation, freedom) in found.items() if freedom]
    if not said:
        return 'Intervals cover the people of the test alone, not what another training would change.'
    return (
        'Intervals of accuracy and separation cover the people of the test and what other trainings would change: the '
        f'standard deviation between runs that train everything anew is, pooled over rows, {", ".join(said)}, over the '
        "root of a row's trainings. Runs that share one reconstructor count as one training; of faces that no "
        'reconstructor made, separation has the people alone.'
    )


def _kind(kind: str) -> str:
    what, _, name = kind.partition(' ')
    return f'{what} ({SETS.get(name, name)})'


def _figures(folder: Path, measures: Measures, tables: Mapping[str, Table]) -> list[str]:
    lines = []
    audits = {
        row.label: measures.leakage(row)
        for table in tables.values()
        for key, row in table.rows.items()
        if (table.name, key) in (('table2', 'mse'), ('table2', 'im_rm'))
    }
    if not audits or not all(audits.values()):
        lines += ['Figures 3 and 5: not run.', '']
    else:
        mae, ours = (of_runs[0] for of_runs in audits.values())
        for attacker in ours['attackers']:
            file = f'figures/leakage_{attacker}.svg'
            draw_leakage(folder / file, mae['attackers'][attacker], ours['attackers'][attacker])
            lines += [
                f'![Top-K retrieval accuracy against the number of identities, attacker {attacker}]({file})',
                '',
                f'Figures 3 and 5, attacker `{attacker}`, first run: K = 2, 3, 4; 95 % intervals by identity; the '
                'query itself is left out of Original → Original; dashed: without the faces made from the very photo.',
                '',
            ]
    shown = {
        row.label: (measures.accuracy(row), measures.leakage(row))
        for row in (tables['table1'].rows.values() if 'table1' in tables else ())
    }
    shown = {label: (accuracy, audits[0]) for label, (accuracy, audits) in shown.items() if accuracy and audits}
    if len(shown) > 1:
        original = measures.accuracy(tables['table1'].rows['original'])
        draw_trade_off(folder / 'figures/trade_off.svg', shown, original)
        lines += [
            '![Accuracy against leakage, for every release of Table 1](figures/trade_off.svg)',
            '',
            'Utility against leakage: accuracy of recognisers, and leakage of the first run at K = 2 by the worst '
            'attacker.',
            '',
        ]
    return ['## Figures', '', *lines, *_feature_map(folder, measures.store), *_compared_faces(measures.store)]


def _feature_map(folder: Path, store: Store) -> list[str]:
    """Figure 1: its picture, which shows no face, and its distances."""
    stage = store.stages['fig1']
    record = store.record(stage)
    if record is None:
        return ['Figure 1: not run.', '']
    picture = folder / 'figures/feature_map.svg'
    if store.has_output(stage):
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.output(stage.name), picture)
    shown = picture.is_file() and content_digest(picture) == record['output']
    numbers = record['numbers']
    rows = [
        [name, *('{:.4f} [{:.4f}, {:.4f}]'.format(*numbers[measure][name]) for measure in ('frechet', 'mmd2'))]
        for name in numbers['frechet']
    ]
    return [
        *(['![Five sets of faces in one plane](figures/feature_map.svg)', ''] if shown else []),
        'Figure 1: how far each set lies from the originals in the space of the first judge; `zero` is one half of the '
        "originals' people from the other.",
        '',
        *_markdown(['set', 'Fréchet distance', 'MMD²'], rows),
        f'Made by `{shlex.join(record["command"])}`.',
        '',
    ]


def _compared_faces(store: Store) -> list[str]:
    """Figure 4's numbers; its picture shows real people and stays outside the repository."""
    record = store.record(store.stages['fig4'])
    if record is None:
        return ['Figure 4: not run.', '']
    rows = [
        [name, region, *('{:.3f} [{:.3f}, {:.3f}]'.format(*about[region][measure]) for measure in MEASURES)]
        for name, about in record['numbers']['sets'].items()
        for region in about
    ]
    return [
        f'Figure 4, of {record["numbers"]["photos"]:,} photos: structural similarity to the original; detail (energy '
        "of the Laplacian) over the original's, beyond 1 noise or a pattern; and how much of it is the original's own "
        '(correlation; far below 1, most of the detail is not). The claim asks for the first and the last. The picture '
        'shows real people and is not published; it lies in the cache beside the record made by '
        f'`{shlex.join(record["command"])}`.',
        '',
        *_markdown(['set', 'region', 'SSIM', 'detail, × original', 'match of detail'], rows),
    ]


def _costs(store: Store) -> list[str]:
    """What stages took, by kind."""
    kinds: dict[str, list[dict]] = {}
    missing = 0
    for stage in store.stages.values():
        record = store.record(stage)
        if record is None:
            missing += 1
        else:
            kinds.setdefault(stage.name.split('.')[0], []).append(record)
    rows = [
        [kind, str(len(records)), *(duration(sum(r[key] for r in records)) for key in ('seconds', 'cpu_seconds'))]
        for kind, records in sorted(kinds.items())
    ]
    everything = [record for records in kinds.values() for record in records]
    commits = sorted({str(record['commit']) for record in everything})
    versions = sorted({f'{name} {number}' for record in everything for name, number in record['versions'].items()})
    return [
        '## Cost and settings',
        '',
        *_markdown(['stages', 'run', 'time', 'processor time'], rows),
        f'{len(everything)} stages have run; {missing} more would give every row all its runs. Time is of stages that '
        'shared the processor with each other and with other work.',
        '',
        f'Versions: {", ".join(versions)}. Commits: {", ".join(commits)}.',
        '',
        "Intervals of accuracy and separation: 95 %, as said above the claims; a table's last column says what runs "
        f'differ in: {ALL}; {MASKS} where one training serves all; {RECOGNISER} where one release does. '
        'Leakage is that of the first run, its interval by people; behind it, in brackets, that of other runs.',
        '',
    ]
