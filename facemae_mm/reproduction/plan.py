"""What a reproduction at the paper's size would run, as a shell script whose comments say what it costs."""

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.config import Config

from ..flops import TrainingFlops, count_prediction, count_training
from ..memory import MOMENTS
from ..models.feature_cache import CRC_BYTES, DIGEST_BYTES
from .paper_size import ESTIMATES, PARTS, PaperSize
from .run import duration
from .stage import Stage

#: Bytes of a released face, PNG of 112×112: 99,574,084 of 3,731 faces (results/release_lfw.json).
PNG_BYTES = 99_574_084 / 3_731

#: Bytes of an embedding: 512 float32.
EMBEDDING_BYTES = 4 * 512

#: Bytes of φ(original) of a face as it is and flipped.
FEATURE_BYTES = 2 * (DIGEST_BYTES + CRC_BYTES + EMBEDDING_BYTES)


@dataclass(frozen=True)
class Cost:
    """Of a stage.

    Attributes:
        flops: Floating-point operations.
        gpus: That share them; 0 where the processor alone works.
        disk: Bytes of what it keeps.
    """

    flops: float
    gpus: int
    disk: float

    def hours(self, tflops: float) -> float:
        """GPU hours at a rate of a GPU, 1e12 operations a second."""
        return self.flops / (tflops * 1e12) / 3600


class Costs:
    """Costs of stages; a network is counted once however many stages run it.

    Args:
        graph: With the stages.
    """

    def __init__(self, graph: PaperSize) -> None:
        self.graph = graph
        self._counted: dict[tuple[str, str], TrainingFlops | float] = {}

    def __getitem__(self, name: str) -> Cost:
        """Of a stage by its name."""
        stage, work = self.graph.stages[name], self.graph.work[name]
        flops, disk = 0.0, work.released * PNG_BYTES + work.embeddings * EMBEDDING_BYTES
        if work.trained:
            recipe = stage.recipe()
            counted = self._count('training', recipe)
            epochs, loss = recipe['train_cfg']['max_epochs'], recipe['model']['head'].get('loss', {})
            cached = bool(loss.get('cache'))
            flops += work.trained * (epochs * counted.step + min(epochs, 2 if cached else epochs) * counted.originals)
            moments = MOMENTS.get(recipe['optim_wrapper']['optimizer']['type'], 2)
            disk += counted.parameters * 4 * (1 + moments) * recipe['default_hooks']['checkpoint']['max_keep_ckpts']
            disk += work.trained * FEATURE_BYTES if cached else 0
        if work.tested:
            flops += work.tested * self._count('prediction', stage.recipe())
        if work.embedded:
            phi = self._count('training', self.graph.stages[self.graph.facemae(0)].recipe()).originals
            flops += work.embedded * phi
        return Cost(flops, work.gpus, disk)

    def _count(self, kind: str, recipe: dict) -> TrainingFlops | float:
        """By all of the recipe that a count depends on: weights of a loss count as there or not."""
        model = json.loads(json.dumps(recipe['model']))
        loss = model['head'].get('loss', {})
        if kind == 'prediction':
            loss.clear()
        for weight in ('im_weight', 'beta', 'mse_weight'):
            if weight in loss:
                loss[weight] = bool(loss[weight])
        ratios = [step.get('mask_ratio') for step in recipe['train_dataloader']['dataset']['pipeline']]
        key = kind, json.dumps([model, ratios, recipe['optim_wrapper']['type']], sort_keys=True)
        if key not in self._counted:
            count = count_training if kind == 'training' else count_prediction
            self._counted[key] = count(Config(recipe))
        return self._counted[key]


def needed(stages: Mapping[str, Stage], targets: Collection[str]) -> list[Stage]:
    """All stages from which targets come, themselves included, in an order in which they can run."""
    found: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name in stages and name not in found:
            for inner in stages[name].inputs:
                visit(inner)
            found[name] = stages[name]

    for name in targets:
        visit(name)
    return list(found.values())


def with_seconds(graph: PaperSize, targets: Collection[str], tflops: float) -> dict[str, Stage]:
    """The graph's stages, those that targets need with their expected time."""
    found, costs = dict(graph.stages), Costs(graph)
    for stage in needed(graph.stages, targets):
        cost = costs[stage.name]
        found[stage.name] = replace(stage, seconds=3600 * cost.hours(tflops) / max(cost.gpus, 1))
    return found


def plan(
    graph: PaperSize, targets: Sequence[str], sources: Mapping[str, Path], cache: Path, tflops: float
) -> Iterator[str]:
    """Lines of the script, as they are found.

    Args:
        graph: With the stages.
        targets: Names of the stages that are wanted.
        sources: What is given, by name.
        cache: Folder of outputs.
        tflops: Sustained rate of a GPU, 1e12 operations a second.
    """
    costs, stages = Costs(graph), needed(graph.stages, targets)
    places = {name: str(sources.get(name, name.upper())) for stage in stages for name in stage.inputs}
    places |= {stage.name: str(cache / stage.name / _output(stage)) for stage in stages}
    hours = seconds = disk = unaided = 0
    yield from _header(graph, tflops)
    for number, stage in enumerate(stages, 1):
        cost = costs[stage.name]
        time = cost.hours(tflops)
        hours, disk = hours + time, disk + cost.disk
        seconds += 3600 * time / max(cost.gpus, 1)
        unaided += not cost.gpus
        yield from (
            f'# {number}/{len(stages)} {stage.name}: {stage.title}',
            f'#   of {", ".join(stage.inputs)}; {_gpu_time(cost, time)}; {_size(cost.disk)}',
            shlex.join(['python', *stage.words({**places, 'out': str(cache / stage.name)})]),
            '',
        )
    yield (
        f'# Total: {len(stages)} stages, {hours:,.0f} GPU hours ({duration(seconds)} one after another on '
        f'{graph.gpus} GPUs at most), {_size(disk)}; {unaided} stages run on the processor alone.'
    )


def _header(graph: PaperSize, tflops: float) -> list[str]:
    """What the estimates rest on."""
    lines = [
        '# GPU hours: operations of products and convolutions, counted on the recipes, at',
        f'# {tflops:g} TFLOPS a GPU, which is an assumption (--tflops). Reading, decoding, searches',
        '# and what stages do on the processor are not in them; embedders that audit and judge',
        '# count as φ; φ(original) is computed twice a face, then kept.',
        f'# Disk: checkpoints with moments, what φ keeps, {PNG_BYTES:,.0f} bytes a released face (as',
        '# of LFW in results/release_lfw.json), embeddings of audits.',
    ]
    for source, tenth in dict.fromkeys(PARTS.values()):
        if source == 'synthetic' and graph.synthetic_size is None:
            continue
        people, images = graph.sizes.get((source, tenth), ESTIMATES[source])
        counted = 'counted' if (source, tenth) in graph.sizes else 'estimated'
        part = source if tenth is None else f'{source}, part {tenth} of 10'
        lines.append(f'# {part}: {people:,} people, {images:,} faces ({counted}).')
    return [*lines, '']


def _output(stage: Stage) -> str:
    """What a stage's folder holds for others when it is done."""
    if stage.output != 'checkpoint':
        return stage.output or ''
    return f'epoch_{stage.recipe()["train_cfg"]["max_epochs"]}.pth'


def _gpu_time(cost: Cost, hours: float) -> str:
    if not cost.gpus:
        return 'processor'
    figure = f'{hours:,.0f}' if hours >= 10 else f'{hours:.2g}'
    return f'{figure} GPU hours on {cost.gpus}'


def _size(size: float) -> str:
    for unit, scale in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
        if size >= scale:
            return f'{size / scale:.3g} {unit}'
    return 'next to nothing on disk'
