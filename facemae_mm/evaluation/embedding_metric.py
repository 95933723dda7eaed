"""A metric over embeddings: kept as arrays, gathered once, every image counted once."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, gather_object, is_main_process
from mmengine.evaluator import BaseMetric


def check_embeddings(embeddings: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Refuse embeddings that have no direction.

    Args:
        embeddings: Embeddings (N, D).
        names: What to call them in the message; their index by default.

    Raises:
        ValueError: Where an embedding holds NaN or infinity or is zero, naming the first such.
    """
    finite = np.isfinite(embeddings).all(1)
    directed = finite & embeddings.any(1)
    if not directed.all():
        first = int(directed.argmin())
        name = f'number {first}' if names is None else names[first]
        raise ValueError(
            f'The embedding of image {name} {"is zero" if finite[first] else "is not finite"}, so '
            'it has no direction to compare. Check this image and the weights of the recogniser.'
        )


class EmbeddingMetric(BaseMetric):
    """Base of the metrics that compare `data_sample.embedding`s.

    MMEngine's collection pickles every sample through a temporary folder; here each process keeps
    arrays and sends them once to rank 0. Samplers that repeat images to fill the last batch of a
    distributed test do no harm: an image counts once.

    A subclass defines `compute_metrics(results)`, where `results` holds `embedding` (N, D) float32
    and one array (N,) for each of `fields`, sorted by `key`: the order in which images arrived has
    no influence.

    Attributes:
        fields: Fields that are read from a sample, with their numpy dtype.
        key: Those of them that tell one image from another, in the order of sorting.
        optional: Those that may be missing or None, which reads as '' for text and NaN for numbers.
    """

    fields: ClassVar[dict[str, type]] = {}
    key: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keep a batch's embeddings and fields.

        Raises:
            ValueError: Where a field is missing or an embedding is zero, NaN or infinite.
        """
        if not data_samples:
            return
        columns = {name: self._column(name, data_samples) for name in self.fields}
        embeddings = self._embeddings(data_samples)
        check_embeddings(embeddings, [self._name(sample) for sample in data_samples])
        self.results.append(dict(embedding=embeddings, **columns))

    def _embeddings(self, data_samples: Sequence[dict]) -> np.ndarray:
        embeddings = [sample.get('embedding') for sample in data_samples]
        if any(embedding is None for embedding in embeddings):
            raise ValueError(
                f'{type(self).__name__}: a sample has no embedding. Give the model a head that '
                'sets it in predict mode (EmbeddingHead, ArcFaceHead).'
            )
        rows = [torch.as_tensor(embedding) for embedding in embeddings]
        return torch.stack(rows).detach().float().cpu().numpy()

    def _column(self, name: str, data_samples: Sequence[dict]) -> np.ndarray:
        values = [sample.get(name) for sample in data_samples]
        if name in self.optional:
            absent = '' if self.fields[name] is str else math.nan
            values = [absent if value is None else value for value in values]
        elif any(value is None for value in values):
            raise ValueError(
                f'{type(self).__name__}: a sample has no {name}. Use a data set that gives it and '
                f"add '{name}' to meta_keys of PackInputs."
            )
        return np.array(values, dtype=self.fields[name])

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather, drop repeated images, compute on rank 0 and tell every process.

        Args:
            size: Number of images in the data set.

        Raises:
            ValueError: Where no images arrived, or fewer different ones than the data set has.
        """
        parts = gather_object(_stack(self.results), dst=0)
        metrics = [None]
        if is_main_process():
            results = _stack([part for part in parts if part])
            values = self.compute_metrics(self._distinct(results, size))
            metrics = [{f'{self.prefix}/{k}' if self.prefix else k: v for k, v in values.items()}]
        broadcast_object_list(metrics)
        self.results.clear()
        return metrics[0]

    def _distinct(self, results: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
        if not results:
            raise ValueError(f'{type(self).__name__}: no image arrived. Check the data set.')
        ranks = np.stack([_ranks(results[name]) for name in self.key])
        order = np.lexsort(ranks[::-1])
        repeated = ~np.diff(ranks[:, order], axis=1).any(0)
        if len(order) - repeated.sum() < size:
            example = ''
            if repeated.any():
                row = order[1:][repeated][0]
                example = f' (repeated: {self._name({name: results[name][row] for name in self.key})})'
            raise ValueError(
                f'{type(self).__name__}: of the {size} images in the data set only '
                f'{len(order) - repeated.sum()} arrived that differ in {", ".join(self.key)}'
                f'{example}. Give every image its own.'
            )
        order = order[np.concatenate([[True], ~repeated])]
        return {name: column[order] for name, column in results.items()}

    def _name(self, sample: dict) -> str:
        identity = ', '.join(f'{name} {sample.get(name)}' for name in self.key)
        return sample.get('img_path') or sample.get('img_key') or identity


def _stack(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([b[name] for b in batches]) for name in (batches or [{}])[0]}


def _ranks(column: np.ndarray) -> np.ndarray:
    """Order of a column's values: keys of a .rec, which are decimal, as numbers."""
    values, ranks = np.unique(column, return_inverse=True)
    if values.dtype.kind == 'U' and np.char.isdecimal(values).all():
        ranks = np.lexsort((values, np.char.str_len(values))).argsort()[ranks]
    return ranks
