"""Where stages keep what they made: files by the hash of what they depend on, numbers as small JSON."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ..datasets.landmarks import find_landmarks
from ..datasets.resumable import LOCK, lock_folder, sha256_file
from ..evaluation.links import LINKS
from ..json_file import read_json
from ..whole_file import whole_file
from .lfw_parts import HIDDEN
from .numbers import READERS, last_checkpoint
from .stage import Stage


class Store:
    """Files in `cache`, a folder a stage and key; numbers in `results`, a record a stage.

    A record is valid for a key, into which the *content* of all inputs goes: what was lost is made anew, and where it
    then differs, everything that was made from it counts as not there. So no table mixes results. Of this project's
    code the key knows its version alone: whoever changes what a stage computes deletes its record and its folder in
    `cache`. Records name their commit.

    Args:
        stages: By name.
        sources: Files and folders from outside, by name.
        cache: Folder of outputs.
        results: Folder of records.
    """

    def __init__(
        self, stages: Mapping[str, Stage], sources: Mapping[str, str | Path], cache: str | Path, results: str | Path
    ) -> None:
        self.stages = stages
        self.sources = sources
        self.cache = Path(cache)
        self.results = Path(results)
        self._source_digests: dict[str, str] = {}
        self._checked: dict[Path, str] = {}

    def lock(self) -> ExitStack:
        """Keeps everybody else from these files until it is closed.

        Raises:
            FileExistsError: Another run is at work on them.
        """
        locks = ExitStack()
        try:
            for folder in (self.cache, self.results):
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(lock_folder(folder))
                locks.callback((folder / LOCK).unlink, missing_ok=True)
        except OSError:
            locks.close()
            raise
        return locks

    def record(self, stage: Stage) -> dict | None:
        """What is known of a stage with its present settings and inputs; None where it has to run."""
        path, key = self.results / f'{stage.name}.json', self.key(stage)
        if key is None or not path.is_file():
            return None
        record = read_json(path, f'Delete it, and the same command makes {stage.name} anew.')
        return record if isinstance(record, dict) and record.get('key') == key else None

    def key(self, stage: Stage) -> str | None:
        """Of a stage; None where that of an input is not known yet."""
        digests = {name: self.digest(name) for name in stage.inputs}
        return None if None in digests.values() else stage.key(digests)

    def digest(self, name: str) -> str | None:
        """Of the content that a stage or source gives to others; None where it is not known yet."""
        if name in self.stages:
            record = self.record(self.stages[name])
            return record and record['output']
        if name not in self._source_digests:
            path = Path(self.sources[name])
            if not path.exists():
                raise FileNotFoundError(f'{name}: {path} does not exist.')
            table = find_landmarks(path)
            self._source_digests[name] = files_digest(path) + ('' if table is None else sha256_file(table))
        return self._source_digests[name]

    def folder(self, stage: Stage) -> Path:
        """Where a stage works with its present settings and inputs, which must be known."""
        return self.cache / f'{stage.name}-{self.key(stage)[:12]}'

    def output(self, name: str) -> Path:
        """What a stage gives to others, or a source.

        Raises:
            ValueError: It is not what the stage made: it was altered since.
        """
        if name not in self.stages:
            return Path(self.sources[name])
        stage = self.stages[name]
        path = output_path(stage, self.folder(stage))
        if path not in self._checked:
            self._checked[path] = content_digest(path)
        if self._checked[path] != self.record(stage)['output']:
            raise ValueError(
                f'{path} is not what stage {name} made: it was altered since. Delete {self.folder(stage)}, and the '
                'same command makes it anew.'
            )
        return path

    def has_output(self, stage: Stage) -> bool:
        """Whether what a stage with a record gives to others is still there."""
        path = output_path(stage, self.folder(stage))
        return path is not None and path.exists()

    def check_recipe(self, stage: Stage) -> None:
        """Holds a stage's recipe on disk, which its command reads, against the one that its key is of.

        Raises:
            ValueError: It was edited since it was read.
        """
        digests = {name: self.digest(name) for name in stage.inputs}
        if stage.key(digests, anew=True) != stage.key(digests):
            raise ValueError(
                f'The recipe of stage {stage.name} was edited while this command was at work, so what it made belongs '
                'to no setting. The same command, begun anew, makes it by the recipe as it is now.'
            )

    def finish(self, stage: Stage, command: list[str], commit: str | None, seconds: float, cpu_seconds: float) -> dict:
        """Reads the numbers of a stage that has run, and writes its record.

        Args:
            stage: It.
            command: Its words, as people would write them.
            commit: Of the checkout when it began.
            seconds: It took.
            cpu_seconds: Of processors.

        Raises:
            ValueError: Its recipe, an input or what it made is not as it should be.
        """
        self.check_recipe(stage)
        folder, key = self.folder(stage), self.key(stage)
        path = output_path(stage, folder)
        record = dict(
            name=stage.name,
            title=stage.title,
            command=command,
            key=key,
            inputs={name: self.digest(name) for name in stage.inputs},
            output=None if path is None else content_digest(path),
            numbers=READERS[stage.numbers](folder, {name: self.output(name) for name in stage.inputs}),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            versions=stage.versions(),
            commit=commit,
        )
        self.results.mkdir(parents=True, exist_ok=True)
        with whole_file(self.results / f'{stage.name}.json', 'x') as file:
            json.dump(record, file, indent=1, ensure_ascii=False)
            file.write('\n')
        if path is not None:
            self._checked[path] = record['output']
        return record


def output_path(stage: Stage, folder: Path) -> Path | None:
    """What others take of a stage's folder; a path that does not exist where it is not there."""
    if stage.output is None:
        return None
    return last_checkpoint(folder) if stage.output == 'checkpoint' else folder / stage.output


def content_digest(path: Path) -> str:
    """SHA-256 of what a stage made: of a checkpoint's weights alone, else as of `files_digest`.

    Raises:
        ValueError: A damaged checkpoint.
    """
    return _weights_digest(path) if path.suffix == '.pth' else files_digest(path)


def files_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's files by name.

    A folder's links (`FOLDER.private/links.csv`) belong to it; hidden files and thumbnails do not: nothing reads them.
    """
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    links = path.with_name(f'{path.name}.private') / LINKS
    files = sorted(file for file in path.rglob('*') if file.is_file() and not _hidden(file.relative_to(path)))
    files += [links] if links.is_file() else []
    for file in files:
        name = file.relative_to(path).as_posix() if file != links else LINKS
        digest.update(f'{name}\n{sha256_file(file)}\n'.encode())
    return digest.hexdigest()


def _hidden(file: Path) -> bool:
    return any(fnmatchcase(part, pattern) for part in file.parts for pattern in HIDDEN)


def _weights_digest(path: Path) -> str:
    """Checkpoints hold times beside the weights."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)['state_dict']
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f'{path} is a damaged checkpoint: {error!r}. Delete its folder: it is made anew.') from error
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def current_commit() -> str | None:
    """Of the checkout, with a mark where it was changed; None outside one."""
    try:
        shown = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
        done = subprocess.run(shown, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
