"""The owner's table that says which real photo each released face was made from."""

import csv
from collections.abc import Sequence
from pathlib import Path
from sys import intern

from ..datasets.face_source import IMAGE_EXTENSIONS

#: What an export calls the table.
LINKS = 'links.csv'

LINK_COLUMNS = ('released_path', 'released_label', 'source_key', 'source_label')


def read_links(path: str | Path, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources and identities of released faces, whatever the order of the table.

    Args:
        path: `links.csv` (released_path, released_label, source_key, source_label); released_path is a file, or an
            image key as a source gives it.
        keys: Image keys of the released faces, (G,).

    Returns:
        source_key and source_label of each, (G,).

    Raises:
        OSError: It cannot be read.
        ValueError: No such table, a row that is cut off, two rows of one face that differ, or a face without a row.
    """
    links: dict[str, tuple[str, str]] = {}
    remedy = 'Give the links.csv that the export wrote, and copy a damaged one again.'
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:  # spreadsheets put a mark in front
            reader = csv.DictReader(file)
            missing = set(LINK_COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise ValueError(
                    f'{path} lacks the columns {sorted(missing)}. It must begin with {",".join(LINK_COLUMNS)}.'
                )
            for row in reader:
                released, source, label = (row[name] for name in ('released_path', 'source_key', 'source_label'))
                if not released or not source or not label:
                    raise ValueError(f'{path}, line {reader.line_num}, lacks a path, a key or a label. {remedy}')
                stem, _, extension = released.rpartition('.')
                key = stem if extension.lower() in IMAGE_EXTENSIONS else released
                link = source, intern(label)
                if links.setdefault(key, link) != link:
                    raise ValueError(
                        f'{path}, line {reader.line_num}: {released} has another source in a line before. {remedy}'
                    )
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no table in UTF-8: {error}. {remedy}') from error
    unknown = [key for key in keys if key not in links]
    if unknown:
        raise ValueError(
            f'{len(unknown)} of {len(keys)} released images are not in {path}, first {unknown[0]}. Give the links of '
            'this very release.'
        )
    found = [links[key] for key in keys]
    return [source for source, _ in found], [label for _, label in found]
