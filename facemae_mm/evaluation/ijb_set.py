"""IJB-B or IJB-C on its own: what to embed, and what the embeddings are worth."""

import hashlib

import numpy as np
import torch

from ..datasets.ijb_faces import IJBFaces
from .face_verification import tar_name
from .ijb_metric import FARS, FPIRS, RANKS, IJBMetric, tpir_name


class IJBSet:
    """IJB-B or IJB-C by its official lists; the counterpart of `VerificationSet`.

    Args:
        name: Of the set.
        path: Folder with loose_crop/ and meta/.
        norm_score: As for `IJBMetric`.
        detector_score: As for `IJBMetric`.

    Attributes:
        faces: What to embed, for `embed_faces`.
        notes: What the marks in `cells` mean.

    Raises:
        FileNotFoundError: As `IJBFaces`.
        ValueError: As `IJBFaces`.
    """

    notes = (
        '–  not measured: a FAR f needs 1/f pairs of two persons, an FPIR f 1/f probes of strangers.',
        'TAR@FAR of pairs of templates, 95 % interval of one by resampling subjects (pairs, without the lists of 1:N).',
        'Rank and TPIR@FPIR (DIR) of searches: mean of both galleries. Each of them, and all intervals: --out.',
    )

    def __init__(self, name: str, path: str, norm_score: bool = True, detector_score: bool = True) -> None:
        self.name = name
        self.faces = IJBFaces(path, [_for_embedder])
        self.settings = dict(norm_score=norm_score, detector_score=detector_score)
        self._metric = IJBMetric(self.faces.protocol, **self.settings)

    def describe(self) -> dict:
        """Where it is, how it is pooled, and `sha256`: of the lists in meta/, in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted(self.faces.protocol.path.glob(f'meta/{self.faces.protocol.name}_*')):
            with path.open('rb') as file:
                digest.update(f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
        return dict(source=str(self.faces.protocol.path), **self.settings, sha256=digest.hexdigest())

    def evaluate(self, embeddings: np.ndarray, norms: np.ndarray) -> tuple[dict, dict[str, dict[str, np.ndarray]]]:
        """What `IJBMetric` logs, with `xnorm`, and ROC curves by name.

        Args:
            embeddings: Of `faces`, (N, D).
            norms: Their mean norms over the passes, (N,).
        """
        metrics = self._metric.calculate(embeddings) | dict(xnorm=float(np.mean(norms, dtype=np.float64)))
        return metrics, {} if self._metric.curve is None else {self.name: self._metric.curve}

    @staticmethod
    def cells(metrics: dict) -> dict[str, str]:
        """A row of a table, heading to text; rates in percent."""

        def percent(key: str) -> str:
            return f'{100 * metrics[key]:.2f}' if key in metrics else '–'

        interval = '–'
        if far := next((far for far in (1e-4, 1e-3, 1e-2, 1e-1) if tar_name(far) in metrics), None):
            low, high = (percent(f'{tar_name(far)}_{end}') for end in ('lo', 'hi'))
            interval = f'{low} … {high} @{far:.0e}'.replace('e-0', 'e-')
        return {
            'images': f'{metrics["images"]:,}',
            'templates': f'{metrics["templates"]:,}',
            'pairs': f'{metrics.get("pairs", 0):,}',
            **{f'TAR@{far:.0e}'.replace('e-0', 'e-'): percent(tar_name(far)) for far in FARS},
            '95 % interval': interval,
            **{f'rank-{k}': percent(f'mean/rank{k}') for k in RANKS},
            **{f'TPIR@{fpir:.0e}'.replace('e-0', 'e-'): percent(f'mean/{tpir_name(fpir)}') for fpir in FPIRS},
            'XNorm': f'{metrics["xnorm"]:.2f}',
        }


def _for_embedder(sample: dict) -> tuple[torch.Tensor, str]:
    """Face (3, 112, 112) uint8 RGB, and its name for messages."""
    return torch.from_numpy(sample['img'][..., ::-1].copy()).permute(2, 0, 1), sample['img_path']
