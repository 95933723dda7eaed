"""One stage of a reproduction: an ordinary command, and what tells its result from that of another."""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

import facemae_mm

from ..command_line import add_options
from ..config import load_config

#: Packages whose versions decide about every result, and those that do about a tool's.
PACKAGES = (
    'torch',
    'mmengine',
    'mmpretrain',
    'mmcv-lite',
    'numpy',
    'opencv-python',
    'simplejpeg',
    'face_recognition_models',
)
TOOL_PACKAGES = {
    'tools/separation.py': ('onnx2torch',),
    'tools/audit.py': ('onnx2torch',),
    'tools/feature_map.py': ('onnx2torch',),
    'tools/compare_faces.py': ('scikit-image', 'dlib-bin'),
}

#: Parts of a recipe that a command does not read, though they stand there or are inherited.
UNREAD = {
    'tools/train.py': (
        'test_dataloader',
        'test_evaluator',
        'test_cfg',
        'answers',
        'verification_faces',
        'verification_pairs',
    ),
    'tools/test.py': ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'epochs'),
}

#: Parts that decide what is shown, and no result.
SHOWN = ('visualizer', 'log_level')

REFERENCE = re.compile(r'\{([\w.=-]+)\}')


@dataclass(frozen=True)
class Stage:
    """A command of `tools/`, run once for all who need what it makes.

    Attributes:
        name: Unique; letters, digits, '.', '=' and '-'.
        title: What it does, for people.
        command: Words of the command behind `python`. '{name}' stands for what another stage, or a source, gave;
            '{out}' for this one's own folder.
        output: What others take of the folder: 'checkpoint' (the last one of a training), a path in it, or None where
            only its numbers count.
        numbers: Which reader of `numbers.READERS` reads them off the folder.
        seconds: Of one core, as far as known, for the time that is left.
    """

    name: str
    title: str
    command: tuple[str, ...]
    output: str | None
    numbers: str
    seconds: float = 60.0
    inputs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = {name for word in self.command for name in REFERENCE.findall(word)} - {'out'}
        object.__setattr__(self, 'inputs', tuple(sorted(found)))

    def words(self, places: Mapping[str, str]) -> list[str]:
        """The command with its references filled in."""
        return [REFERENCE.sub(lambda match: places[match[1]], word) for word in self.command]

    def versions(self) -> dict[str, str]:
        """Of what the result depends on."""
        return versions(PACKAGES + tuple(name for word in self.command for name in TOOL_PACKAGES.get(word, ())))

    def recipe(self) -> dict | None:
        """The recipe among its words, with the command's options applied; None where there is none."""
        return _recipe(self.command)

    def key(self, digests: Mapping[str, str], anew: bool = False) -> str:
        """SHA-256 of what the result depends on: words, resolved recipe, inputs' content, versions, kind of device.

        Args:
            digests: Content of every input, by its name.
            anew: Read the recipe again, which may have been edited since.
        """
        words = self.words({**digests, 'out': 'out'})
        recipe = (_recipe.__wrapped__ if anew else _recipe)(tuple(words))
        if recipe is not None:
            without = SHOWN + UNREAD.get(words[0], ())
            recipe = {part: value for part, value in recipe.items() if part not in without}
        depends = dict(words=words, recipe=recipe, versions=self.versions())
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@cache
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Of this project and of packages, with the kind of device."""
    found = dict(facemae_mm=facemae_mm.__version__)
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = 'absent'
    found['device'] = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu, one thread'
    return found


@cache
def _recipe(words: tuple[str, ...]) -> dict | None:
    """The recipe among the words of a command, the command's options applied; None where there is none."""
    path = next((word for word in words if word.startswith('configs/') and word.endswith('.py')), None)
    if path is None:
        return None
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_known_args(words[1:])[0].cfg_options
    recipe = load_config(path, options).to_dict()
    recipe.pop('needs', None)  # words for people
    return json.loads(json.dumps(recipe, default=str))
