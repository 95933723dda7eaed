"""Runs the stages that a table needs and that are not there yet, several at once."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path
from typing import IO

from ..whole_file import whole_file
from .stage import Stage
from .store import Store, current_commit

LOG = 'stage.log'
SPENT = 'spent.json'

#: Keeps libraries to one thread.
ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')


class StageError(RuntimeError):
    """Stages did not end well."""


def to_run(store: Store, targets: Collection[str]) -> list[Stage]:
    """Stages without a valid record, and those whose files are lost and needed by one of these.

    In an order in which they can run, and which finishes the first target first.
    """
    found: dict[str, Stage] = {}

    def visit(name: str, files: bool) -> None:
        if name not in store.stages or name in found:
            return
        stage = store.stages[name]
        for inner in stage.inputs:
            visit(inner, False)
        if store.record(stage) is None or (files and not store.has_output(stage)):
            for inner in stage.inputs:
                visit(inner, True)
            found[name] = stage

    for name in targets:
        visit(name, False)
    return list(found.values())


def run_stages(
    store: Store,
    targets: Collection[str],
    jobs: int,
    say: Callable[[str], None] = print,
    one_thread: bool = True,
) -> None:
    """Runs until every target has its numbers. Nothing runs twice; what a killed run had finished is kept.

    Args:
        store: Of the graph; nobody else must be at work on it (`Store.lock`).
        targets: Names of stages.
        jobs: Stages at once.
        say: Takes a line for people.
        one_thread: Each stage computes on one thread; else on as many as it likes.

    Raises:
        StageError: Stages failed; what does not depend on them was finished.
    """
    while todo := to_run(store, targets):
        _run_all(store, todo, jobs, say, ONE_THREAD if one_thread else {})


def _run_all(
    store: Store, todo: list[Stage], jobs: int, say: Callable[[str], None], environment: Mapping[str, str]
) -> None:
    place = {stage.name: number for number, stage in enumerate(todo)}
    order = TopologicalSorter({stage.name: place.keys() & set(stage.inputs) for stage in todo})
    order.prepare()
    left = sum(stage.seconds for stage in todo)
    say(f'{len(todo)} stages to run, {jobs} at once: about {duration(left / jobs)}.')
    done, failed, waiting = 0, {}, list(order.get_ready())
    running: dict[Future, Stage] = {}
    processes = _Processes()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    waiting.sort(key=place.__getitem__)
                    stage = store.stages[waiting.pop(0)]
                    if failed.keys() & set(stage.inputs):
                        failed[stage.name] = 'an input failed'
                    elif _is_done(store, stage):  # an input that was made anew is as before
                        left -= stage.seconds
                    else:
                        running[pool.submit(_run_stage, store, stage, processes, say, environment)] = stage
                        continue
                    order.done(stage.name)
                    waiting += order.get_ready()
                for future in wait(running, return_when=FIRST_COMPLETED)[0] if running else ():
                    stage = running.pop(future)
                    try:
                        seconds = future.result()
                    except Exception as error:  # whatever damaged bytes lead to; other stages go on
                        failed[stage.name] = str(error) or repr(error)
                        say(f'{stage.name} failed: {failed[stage.name]}')
                    else:
                        done += 1
                        left -= stage.seconds
                        say(
                            f'[{done}/{len(todo)}] {stage.name}: {duration(seconds)}; about '
                            f'{duration(max(left, 0) / jobs)} left'
                        )
                    order.done(stage.name)
                    waiting += order.get_ready()
        except BaseException:
            processes.stop()
            raise
    if failed:
        reasons = {name: reason for name, reason in failed.items() if reason != 'an input failed'}
        raise StageError(
            f'{len(failed)} of {len(todo)} stages have not run. '
            + ' '.join(f'{name}: {reason}' for name, reason in reasons.items())
            + ' Mend what is said there; the same command goes on.'
        )


class _Processes:
    """Those at work; once stopped, none starts any more."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)  # as it is now: reading a recipe changes it for a moment
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, command: list[str], log: IO[str], environment: Mapping[str, str]) -> tuple[int, float]:
        """Runs a command of `python` to its end; gives its exit code and its seconds of processors."""
        with self._lock:
            if self._stopped:
                raise StageError('it had not begun when the run was stopped.')
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | environment,
                pass_fds=[log.fileno()],
            )
            self._running.add(process)
        _, status, usage = os.wait4(process.pid, 0)  # the processor time of this one alone
        process.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            self._running.discard(process)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """Ends all of them."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _is_done(store: Store, stage: Stage) -> bool:
    return store.record(stage) is not None and (stage.output is None or store.has_output(stage))


def _run_stage(
    store: Store,
    stage: Stage,
    processes: _Processes,
    say: Callable[[str], None],
    environment: Mapping[str, str],
) -> float:
    store.check_recipe(stage)
    folder, commit = store.folder(stage), current_commit()
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: str(store.output(name)) for name in stage.inputs}
    command = stage.words({**places, 'out': str(folder)})
    say(f'  {stage.name}: {stage.title} (about {duration(stage.seconds)}; log: {folder / LOG})')
    began = time.monotonic()
    with (folder / LOG).open('a', encoding='utf-8') as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by the stage's process too, if this one is killed
        except BlockingIOError:
            raise StageError(
                f'{folder} is still at work for a run that was ended. Wait for that process, or end it.'
            ) from None
        if stage.output != 'checkpoint' and store.has_output(stage):  # its numbers were lost
            (folder / SPENT).unlink(missing_ok=True)
            for name in (stage.output, f'{stage.output}.private'):
                shutil.rmtree(folder / name, ignore_errors=True)
        print(f'\n$ {shlex.join(["python", *command])}', file=log, flush=True)
        code, cpu_seconds = processes.run(command, log, environment)
    seconds = time.monotonic() - began
    spent = _spend(folder / SPENT, seconds, cpu_seconds)
    if code:
        raise StageError(f'it ended with exit code {code}. {_last_words(folder / LOG)} ({folder / LOG})')
    store.finish(stage, ['python', *stage.command], commit, **spent)
    return seconds


def _spend(file: Path, seconds: float, cpu_seconds: float) -> dict[str, float]:
    """Adds to what a stage took before it was interrupted."""
    before = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
    now = dict(seconds=seconds, cpu_seconds=cpu_seconds)
    spent = {key: round(value + before.get(key, 0), 1) for key, value in now.items()}
    with whole_file(file, 'x') as handle:
        json.dump(spent, handle)
    return spent


def _last_words(log: Path) -> str:
    """What a stage said at its end."""
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    said = [line.strip() for line in lines[-40:] if line.strip()]
    return said[-1] if said else 'It said nothing.'


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
