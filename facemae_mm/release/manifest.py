"""What a release says of itself: a JSON that a schema describes, without times, hosts, paths and source names."""

import json
import platform
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import cv2
import jsonschema
import mmcv
import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.config import Config

from ..datasets.release_source import FORMAT, MANIFEST, check_shards, load_manifest
from ..datasets.resumable import sha256_file

SCHEMA = Path(__file__).with_name('manifest.schema.json')

#: Strings of a recipe that a manifest repeats, by key; others may be paths or names and are left out.
SHOWN_STRINGS = frozenset(
    {'type', 'arch', 'out_type', 'precision', 'regions', 'channel_order', 'pad_mode', 'direction'}
)
LEFT_OUT = 'left out'


def redact(node: object, key: str = '') -> object:
    """A part of a recipe as a manifest may show it: its structure, numbers, and strings under `SHOWN_STRINGS`.

    Keys are shown where they may be names of parameters, and nothing under `identities`.

    Args:
        node: Dict, list, or value.
        key: Under which it stands.
    """
    if key == 'identities':  # a .rec names its people by numbers
        return LEFT_OUT
    if isinstance(node, dict):
        return {
            str(name) if str(name).isidentifier() else LEFT_OUT: redact(value, str(name))
            for name, value in node.items()
            if name != 'init_cfg' and not str(name).startswith('_')  # random weights, and MMEngine's own marks
        }
    if isinstance(node, list | tuple):
        shown = [redact(value, key) for value in node]
        return LEFT_OUT if LEFT_OUT in shown else shown
    if isinstance(node, bool | int | float) or node is None:
        return LEFT_OUT if isinstance(node, float) and not np.isfinite(node) else node
    if isinstance(node, type):
        return node.__name__
    return node if key in SHOWN_STRINGS and isinstance(node, str) else LEFT_OUT


def _parts(config: Config) -> dict:
    """The parts of a recipe that made a release."""
    dataset = config.test_dataloader.dataset
    parts = dict(model=config.model, pipeline=dataset.pipeline)
    parts |= {key: dataset[key] for key in ('subset', 'images') if dataset.get(key) is not None}
    return Config(parts).to_dict()


def describe_config(config: Config) -> dict:
    """The parts of a recipe that made a release, redacted."""
    return redact(_parts(config))


def left_out_strings(config: Config) -> dict[str, str]:
    """Strings of these parts that `describe_config` leaves out and that may decide about faces, by dotted key.

    For the owner alone. What the loss, the mask secret and the first weights are called decides about nothing.
    """
    return {
        key: value
        for key, value in flat(dict(config=_parts(config)))
        if isinstance(value, str) and not re.search(r'\.(head\.loss|secret|init_cfg)(\.|$)', key)
    }


def flat(node: object, key: str = '') -> Iterator[tuple[str, object]]:
    """(dotted key, value) of nested dicts and lists."""
    items = node.items() if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list | tuple) else ()
    if not items:
        yield key, node
    for name, value in items:
        yield from flat(value, f'{key}.{name}' if key else str(name))


def versions() -> dict[str, str]:
    """Of everything on which a release's bytes may depend."""
    from .. import __version__

    return dict(
        facemae_mm=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        mmpretrain=mmpretrain.__version__,
        numpy=np.__version__,
        opencv=cv2.__version__,
        mmcv=mmcv.__version__,
        simplejpeg=metadata.version('simplejpeg'),
    )


@cache
def _validator() -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding='utf-8')))


def check_manifest(manifest: object, place: str | Path, whole: bool = True) -> None:
    """Holds a manifest against its schema.

    Args:
        manifest: As JSON holds it.
        place: What to call it in messages.
        whole: False where keys may be missing yet.

    Raises:
        ValueError: The first thing that does not fit.
    """
    if isinstance(manifest, dict) and manifest.get('format') == FORMAT and isinstance(manifest.get('shards'), list):
        check_shards(manifest.get('version'), manifest['shards'], place)
    try:
        error = next((error for error in _validator().iter_errors(manifest) if whole or error.path), None)
        fault = None if error is None else f'{".".join(map(str, error.path)) or "the whole"}: {error.message[:300]}'
    except RecursionError:
        fault = 'it is too deep'
    if fault is not None:
        remedy = 'A manifest is final: get the release again from where it comes.'
        if not whole:
            remedy = 'Correct the recipe, or get the masked dataset again from where it comes.'
        raise ValueError(f'{place} does not fit {SCHEMA.name}: {fault}. {remedy}')


def manifest_text(manifest: dict) -> str:
    """The bytes of `manifest.json`, lists of numbers on one line."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    lists = r'\[\n\s*(-?\d[-\d,.\se+]*?)\n\s*\]'  # strings hold no line breaks
    return re.sub(lists, lambda found: f'[{" ".join(found[1].split())}]', text) + '\n'


def read_manifest(release: str | Path) -> tuple[dict, str]:
    """A release's manifest, and its SHA-256, which is the release's name.

    Raises:
        FileNotFoundError: No manifest.
        ValueError: No JSON, another version, or it does not fit the schema.
    """
    path = Path(release) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist. Give the directory of a release.')
    manifest = load_manifest(path)
    check_manifest(manifest, path)
    return manifest, sha256_file(path)
