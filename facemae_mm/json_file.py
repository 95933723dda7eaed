"""JSON that comes from outside."""

import json
from collections.abc import Callable
from pathlib import Path


def read_json(path: str | Path, remedy: str, parse_constant: Callable[[str], object] | None = None) -> object:
    """What a file of JSON holds, which may be anything.

    Args:
        path: The file, UTF-8.
        remedy: What to do where it is none, for the message.
        parse_constant: As `json.loads` takes it: for NaN and infinities.

    Raises:
        OSError: It cannot be read.
        ValueError: No JSON, or too deep.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'), parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON: {error}. {remedy}') from error
