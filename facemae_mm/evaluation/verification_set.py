"""A verification set on its own: what to embed, and what the embeddings are worth."""

import hashlib
from pathlib import Path

import numpy as np

from ..datasets.verification_pairs import PairSet
from .embed_faces import FaceImages
from .face_verification import FARS, FaceVerification, check_pairs, tar_name


class VerificationSet:
    """Pairs of faces of a `.bin`, of faces and a list, or of CFP; every image is embedded once.

    Args:
        name: Of the set.
        source: As for `PairSet`.
        pairs: As for `PairSet`.
        protocol: As for `PairSet`.

    Attributes:
        faces: What to embed, for `embed_faces`.
        notes: What the marks in `cells` mean.

    Raises:
        FileNotFoundError: As `PairSet`.
        ValueError: As `PairSet`; fewer than ten pairs, or one kind of pairs only.
    """

    notes = (
        '*  interpolated as InsightFace does: fewer than one of the different pairs of nine folds can be accepted.',
        '–  not measured: for the same reason; FAR f needs more than 1/f different pairs.',
        "95 % interval by resampling identities; (pairs): they are unknown, Wilson's, as if pairs were independent.",
        'XNorm: mean norm of the raw embeddings, of both passes with the flip test.',
    )

    def __init__(self, name: str, source: str, pairs: str | None = None, protocol: str | None = None) -> None:
        self.name = name
        self.options = dict(source=source, pairs=pairs, protocol=protocol)
        self._pairs = PairSet(name, **self.options)
        try:
            check_pairs(self._pairs.same)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
        used, self._sides = np.unique(self._pairs.images, return_inverse=True)
        self.faces = FaceImages(self._pairs.source, used)

    def describe(self) -> dict:
        """Where it is, and `sha256`: of a `.bin` the file's; else of a line 'hash hash 0|1' for each pair in order,
        with the SHA-256 of either image's bytes.
        """
        source = self._pairs.source
        if self.options['pairs'] is None:
            return self.options | dict(sha256=hashlib.sha256(Path(self.options['source']).read_bytes()).hexdigest())
        hashes = [hashlib.sha256(source.read(int(image))).hexdigest() for image in self.faces.indices]
        digest = hashlib.sha256()
        for (a, b), same in zip(self._sides.reshape(-1, 2), self._pairs.same):
            digest.update(f'{hashes[a]} {hashes[b]} {int(same)}\n'.encode())
        return self.options | dict(sha256=digest.hexdigest())

    def evaluate(self, embeddings: np.ndarray, norms: np.ndarray) -> tuple[dict, dict[str, dict[str, np.ndarray]]]:
        """What `FaceVerification` logs, and ROC curves by name.

        Args:
            embeddings: Of `faces`, (N, D).
            norms: Their mean norms over the passes, (N,).
        """
        sides = self._sides.reshape(-1, 2)
        source, same = self._pairs.source, self._pairs.same
        identities = None
        if source.identities:
            identities = np.array(source.identities)[source.labels[self._pairs.images]].reshape(-1, 2)
        pair = embeddings[sides[:, 0]], embeddings[sides[:, 1]], same
        metrics = FaceVerification.calculate(*pair, identities, norms[sides])
        return metrics, {self.name: FaceVerification.roc(*pair)}

    @staticmethod
    def cells(metrics: dict) -> dict[str, str]:
        """A row of a table, heading to text; rates in percent."""
        unknown = '' if metrics['interval_by_identity'] else ' (pairs)'
        row = {
            'pairs': f'{metrics["pairs"]:,}',
            'accuracy ± std': f'{100 * metrics["accuracy"]:.2f} ± {100 * metrics["accuracy_std"]:.2f}',
            '95 % interval': f'{100 * metrics["accuracy_lo"]:.2f} … {100 * metrics["accuracy_hi"]:.2f}{unknown}',
        }
        for far in FARS:
            rate = metrics.get(tar_name(far))
            mark = '*' if far < metrics['far_resolution'] else ''
            row[f'TAR@{tar_name(far)[8:]}'] = '–' if rate is None else f'{100 * rate:.2f}{mark}'
        return row | {'AUC': f'{metrics["auc"]:.5f}', 'XNorm': f'{metrics["xnorm"]:.2f}'}
