"""Writes the report of an audit."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from facemae_mm.whole_file import whole_file

from . import charts, tables, wording
from .findings import findings
from .picture import picture
from .rows import COLUMNS, all_rows, attackers, dig, headline_k

_HERE = Path(__file__).parent
#: Resamples of the intervals of membership and near duplicates; those of leakage are in the report's settings.
RESAMPLES = 1000

#: Signs with which a spreadsheet begins a formula.
_FORMULA = ('=', '+', '-', '@', '\t', '\r')

Pictures = Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]


def write_report(report: dict, folder: Path, pictures: Pictures | None = None, show_faces: bool = False) -> Path:
    """Writes report.json, a CSV file for each table, and report.html, each complete or absent.

    The page needs nothing but itself: no network, no script, no font. What comes from `report` is shown as text. In
    the CSV files a text that a spreadsheet would run as a formula begins with an apostrophe.

    Args:
        report: The audit's numbers, of JSON's types (docs/audit.md).
        folder: Where to; made where it is absent.
        pictures: By attacker, a pair (released face, real photo) for each of its `near_duplicates.worst`, in that
            order; each (H, W, 3) uint8 in BGR.
        show_faces: The faces themselves in the page, which then only its owner may read (mode 0600) and which says
            so; else 6×6 pixels of each.

    Returns:
        Path of report.html.

    Raises:
        ValueError: The numbers hold NaN or infinity, or the pictures are not those of the worst cases.
        TypeError: The numbers hold what JSON has not.
        OSError: A file cannot be written.
    """
    try:
        text = json.dumps(report, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(f'a report holds JSON: {error}. Use None for what was not measured') from error
    report = json.loads(text)
    rows = all_rows(report)
    shown = _pictures(report, pictures or {}, show_faces)
    page = _page(report, rows, shown, show_faces)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / 'report.json') as file:
        file.write(f'{text}\n'.encode())
    for name, columns in COLUMNS.items():
        with whole_file(folder / f'{name}.csv') as file:
            file.write(_csv(columns.split(), rows[name]))
    path = folder / 'report.html'
    with whole_file(path, private=show_faces) as file:
        file.write(page)
    return path


def _csv(columns: list[str], rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                key: f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
                for key, value in row.items()
            }
        )
    return text.getvalue().encode('utf-8', 'backslashreplace')  # names of files need not be text


def _pictures(report: dict, pictures: Pictures, show_faces: bool) -> dict[str, list[tuple[str, str]]]:
    shown = {}
    for attacker, pairs in pictures.items():
        worst = dig(report, 'attackers', attacker, 'near_duplicates', 'worst') or []
        if len(pairs) != len(worst):
            raise ValueError(
                f'a pair of pictures is needed for each worst case: attacker {attacker!r} has {len(worst)} '
                f'(near_duplicates.worst) and {len(pairs)} pairs'
            )
        shown[attacker] = [(picture(released, show_faces), picture(real, show_faces)) for released, real in pairs]
    return shown


def _page(report: dict, rows: dict[str, list[dict]], pictures: dict, show_faces: bool) -> bytes:
    style = (_HERE / 'report.css').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = headline_k(report)
    names = list(attackers(report))
    ks = {name: {row['k'] for row in rows['curves'] if row['attacker'] == name} for name in names}
    text = environment.get_template('report.html.jinja').render(
        report=report,
        style=Markup(style),
        digest=digest,
        show_faces=show_faces,
        findings=findings(report, rows),
        headline=dig(report, 'headline', 'attacker'),
        k=first,
        attackers_chart=charts.attackers_chart(report, rows),
        headline_table=tables.headline_table(report, rows),
        curves=[
            (
                name,
                [
                    (k, charts.curve_chart(f'curve-{place}-{k}', rows, name, k))
                    for k in sorted(ks[name], key=lambda k: (k != first, k == 1, k))
                ],
                tables.curve_table(rows, name),
                tables.difference_table(rows, name),
            )
            for place, name in enumerate(names)
            if ks[name]
        ],
        rocs=[
            (name, chart)
            for place, name in enumerate(names)
            if (chart := charts.roc_chart(f'roc-{place}', rows, name)) is not None
        ],
        membership_table=tables.membership_table(rows),
        near_table=tables.near_table(rows),
        near=[
            (
                name,
                charts.histogram_chart(f'histogram-{place}', rows, report, name),
                tables.histogram_table(rows, name),
                [row for row in rows['worst_cases'] if row['attacker'] == name],
                pictures.get(name),
            )
            for place, name in enumerate(names)
            if dig(report, 'attackers', name, 'near_duplicates')
        ],
        utility_charts=charts.utility_charts(report, rows),
        utility_table=tables.utility_table(rows),
        audited=tables.audited_table(report),
        facts=tables.facts,
        resamples=RESAMPLES,
        settings={
            'resamples of the leakage curves' if key == 'resamples' else key: value
            for key, value in (report.get('settings') or {}).items()
        },
        matching={
            key.replace('_', ' '): wording.number(value) if type(value) is int else value
            for key, value in (report.get('matching') or {}).items()
            if key != 'notes'
        },
        dig=dig,
        wording=wording,
        files=[f'{name}.csv' for name in COLUMNS],
    )
    return text.encode('utf-8', 'backslashreplace')
