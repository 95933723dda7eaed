"""Recipes: the variables at their head from the command line, and what they need on disk."""

import inspect
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from .models.embedders.face_embedder import PACKAGE, resolve_checkpoint

PREFIX = 'FACEMAE_'

#: Parts of a recipe that a run reads.
TRAIN_PARTS = ('train_dataloader', 'model', 'load_from', 'val_dataloader', 'val_evaluator')
TEST_PARTS = ('test_dataloader', 'model', 'load_from', 'test_evaluator')

#: Top-level keys that MMEngine's Runner reads from a config beside its own arguments.
RUNNER_KEYS = ('activation_checkpointing', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn')

#: Keys whose values name a file or folder that must be there.
INPUT_KEYS = ('source', 'pairs', 'checkpoint', 'load_from', 'links')

#: Held while a recipe is read, which changes the environment of the process for a moment.
_READING = threading.Lock()


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Reads a recipe and applies `--cfg-options` to it.

    A recipe writes a variable at its head as ``train_faces = '{{$FACEMAE_TRAIN_FACES:data/train.rec}}'``. An option of
    that bare name replaces it before the recipe is read, so the value reaches every place that uses the variable, in
    the recipe and in those that inherit it. All other options are merged afterwards, as MMEngine does. Threads may
    call it at once; other reads of the environment see the option's `FACEMAE_` variable for a moment.

    Args:
        path: Recipe.
        options: What `--cfg-options` gave, dotted keys to values.

    Returns:
        The config, its custom imports done.

    Raises:
        FileNotFoundError: No such recipe.
        ValueError: A bare name that the recipe does not know, or a value that cannot stand in its text.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'Recipe {path} does not exist. Recipes lie in configs/.')
    options = dict(options or {})
    with _READING:
        config = Config.fromfile(path)
        head = head_variables(config)
        values = {name: _as_text(name, options.pop(name)) for name in head if name in options}
        if values:
            with _environment(values):
                config = Config.fromfile(path)
    for name, value in values.items():
        if str(config.get(name, value)) != value:
            raise ValueError(
                f'{path} sets {name} itself, to {config[name]!r}, so --cfg-options {name}={value} would not reach '
                f"every use. Write it as {name} = '{{{{${PREFIX}{name.upper()}:{config[name]}}}}}'."
            )
    known = {*config, *inspect.signature(Runner).parameters, *RUNNER_KEYS}
    for name in options:
        if '.' not in name and name not in known:
            raise ValueError(
                f'--cfg-options {name}: {path} has no such key. Its variables are {", ".join(head) or "none"}; '
                'other keys are written as they stand in the recipe, with dots.'
            )
    config.merge_from_dict(options)
    return config


def head_variables(config: Config) -> list[str]:
    """Names of the variables that `--cfg-options` sets by a bare name, in a recipe and its bases."""
    found = re.findall(r'\{\{[\'"]?\s*\$' + PREFIX + r'(\w+)\s*:', config.text)
    return sorted({name.lower() for name in found})


def check_inputs(config: Config, parts: Sequence[str] = TRAIN_PARTS) -> None:
    """Looks for every file and folder that a run needs.

    Args:
        config: Recipe, options applied. Its top-level dict `needs` says by variable name how to get what is missing.
        parts: Top-level keys that the run reads, as `TRAIN_PARTS` or `TEST_PARTS`.

    Raises:
        FileNotFoundError: One message for all that is missing: variable or key, path, remedy.
    """
    missing = {key: path for key, path in _inputs(config, parts) if not _exists(path)}
    if not missing:
        return
    owners = _owners(config, parts)
    lines = {}
    for key, path in missing.items():
        name = owners.get(key, key)
        remedy = config.get('needs', {}).get(name, f'(--cfg-options {name}=PATH)')
        lines[f'  {name} = {path}\n      {remedy}'] = None  # a dict: several keys may share a variable
    raise FileNotFoundError(
        f'{config.filename} needs what is not there:\n' + '\n'.join(lines) + f'\nRelative paths start at {Path.cwd()}.'
    )


def _inputs(config: Config, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every input in parts of a recipe. A test takes no loss, so no φ inside one."""
    skip = () if 'train_dataloader' in parts else ('model.head.loss',)

    def walk(node: object, key: str) -> Iterator[tuple[str, str]]:
        if key in skip:
            return
        if isinstance(node, dict):
            for name, value in node.items():
                yield from walk(value, f'{key}.{name}')
        elif isinstance(node, list | tuple):
            for number, value in enumerate(node):
                yield from walk(value, f'{key}.{number}')
        elif isinstance(node, str) and key.rpartition('.')[2] in INPUT_KEYS:
            yield key, node

    for part in parts:
        yield from walk(config.get(part), part)


def _owners(config: Config, parts: Sequence[str]) -> dict[str, str]:
    """Which variable at the head of the recipe each input's value comes from: read again with each one marked."""
    names = [name for name in head_variables(config) if isinstance(config.get(name), str)]
    with _environment({name: f'<{name}>' for name in names}):
        marked = dict(_inputs(Config.fromfile(config.filename, import_custom_modules=False), parts))
    return {
        key: name
        for key, path in _inputs(config, parts)
        for name in names
        if f'<{name}>' in marked.get(key, '') and config[name] in path
    }


def _exists(path: str) -> bool:
    """A file or folder, or one inside an installed package (`package:name/path`); an address is left to MMEngine."""
    if '://' in path:
        return True
    if path.startswith(PACKAGE):
        try:
            return resolve_checkpoint(path).is_file()
        except FileNotFoundError:
            return False
    return Path(path).exists()


def _as_text(name: str, value: object) -> str:
    """The value of a head variable as MMEngine pastes it into the text of a recipe."""
    text = str(value)
    if isinstance(value, list | tuple | dict) or not text or re.search(r'[\'"\\\n]', text):
        raise ValueError(
            f'--cfg-options {name}={value!r}: takes one value without commas, quotes and backslashes. '
            'Rename the file, or link to it by a plain name.'
        )
    return text


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets head variables through the environment, and puts back what was there; MMEngine's notes on it are muted."""
    names = {PREFIX + name.upper(): value for name, value in variables.items()}
    before = {name: os.environ.get(name) for name in names}
    logger = MMLogger.get_current_instance()
    level = logger.level
    os.environ.update(names)
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
