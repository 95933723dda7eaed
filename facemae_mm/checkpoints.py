"""Writing and finding checkpoints, in place of MMEngine's functions of the same names (see `stack.py`)."""

import logging
import re
import zipfile
from pathlib import Path

import torch
from mmengine.logging import print_log

from .whole_file import whole_file

#: Files that a CheckpointHook writes; not 'best_…', which lack the optimiser.
CHECKPOINT = re.compile(r'(epoch|iter)_\d+\.pth')


def save_checkpoint(checkpoint: dict, filename: str) -> None:
    """Writes a checkpoint, which has its name only when it is complete."""
    path = Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        torch.save(checkpoint, file)


def find_latest_checkpoint(path: str) -> str | None:
    """What `--resume` goes on from: the checkpoint that `last_checkpoint` names.

    Where that file is empty, or names none that is complete, as MMEngine's leaves it behind when it is killed, it is
    the newest complete checkpoint of the folder.

    Args:
        path: The work folder.

    Returns:
        The checkpoint; None where the folder has none.

    Raises:
        FileNotFoundError: There was a checkpoint once, and no complete one is left.
    """
    folder, record = Path(path), Path(path) / 'last_checkpoint'
    named = record.read_text(encoding='utf-8').strip() if record.is_file() else ''
    if '://' in named or Path(named or '.missing').is_dir():
        return named  # in a remote store, or a folder as DeepSpeed writes
    if named:
        for file in (Path(named), folder / Path(named).name):  # the latter where the folder was moved
            if is_whole(file):
                return str(file)
    whole = [file for file in folder.glob('*.pth') if CHECKPOINT.fullmatch(file.name) and is_whole(file)]
    if whole:
        newest = max(whole, key=lambda file: (file.stat().st_mtime_ns, file.name))
        said = f'names {named}, which is not complete' if named else 'is empty' if record.is_file() else 'is missing'
        print_log(f'{record} {said}: going on from {newest}.', logger='current', level=logging.WARNING)
        return str(newest)
    if record.is_file():
        raise FileNotFoundError(
            f'--resume: {record} names {named or "nothing"}, and no complete checkpoint is in {folder}. '
            f'Give one (--resume PATH), or remove {record} to start anew.'
        )
    print_log(f'--resume: {folder} has no checkpoint yet, so training starts as the recipe says.', logger='current')
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: it is a zip, whose table of contents is written last."""
    return path.is_file() and zipfile.is_zipfile(path)
