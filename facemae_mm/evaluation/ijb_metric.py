"""IJB-B and IJB-C, 1:1 and 1:N: templates of many images in place of single faces."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmpretrain.registry import METRICS

from ..datasets.ijb_protocol import IJBProtocol
from .embedding_metric import EmbeddingMetric
from .face_verification import tar_name
from .intervals import bootstrap_interval, resampled_identities, wilson_interval
from .roc import roc_curve
from .templates import compare_pairs, pool_templates, search_gallery, tar_at_far

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)


@METRICS.register_module()
class IJBMetric(EmbeddingMetric):
    """TAR at FAR of pairs of templates, and rank and TPIR at FPIR of searches, as InsightFace evaluates IJB.

    Images become templates by `pool_templates`. Logs, each named 'ijbb/…' or 'ijbc/…':

    - `images`, `templates`;
    - 1:1, where its list is there: `tar@far=1e-6` … `tar@far=1e-1` (`tar_at_far`), `auc`, `pairs`, `genuine_pairs`. A
      FAR of less than one false match is not there: the set cannot measure it;
    - 1:N, where its lists are there, for the gallery `g1` (and `g2`; `s1`, `s2` of IJB-B): `g1/rank1`, `rank5`,
      `rank10` of the `g1/mated` probes whose subject is enrolled; `g1/tpir@fpir=1e-2` and `1e-1` (also called DIR): how
      many of them find their mate first and above the threshold that one in a hundred (ten) of the `g1/nonmated` others
      exceeds, where there are so many. `mean/rank…` counts the probes of both galleries, `mean/tpir…` is the mean of
      the two rates; `g1+g2/rank…` searches both galleries as one. Others as similar as the mate count as before it.

    Each rate has its 95 % interval as `…_lo` and `…_hi`: subjects are resampled 1000 times with a fixed seed, and
    thresholds stay; without the lists of 1:N, which tell the subjects, Wilson's over genuine pairs, as if independent.

    Required fields of a sample: embedding (flip test added up, as `FaceRecognizer` does), sample_idx.

    Args:
        path: Folder of the set, as `IJBProtocol` takes it, or its lists as they are.
        norm_score: Let the norm of an embedding weigh it in its template; else each is normalised first.
        detector_score: Let the detector's score of an image weigh it.
        kwargs: Further arguments of MMEngine's `BaseMetric`.

    Attributes:
        protocol: The lists.
        curve: ROC of the last evaluation's pairs: `far`, `tar` and `threshold` (similarity), (K,) each; None before,
            and without pairs.

    Raises:
        FileNotFoundError: No list of pairs and none of 1:N is there, or one of 1:N is missing.
        ValueError: Damaged lists.
    """

    default_prefix = ''
    fields: ClassVar = dict(sample_idx=int)
    key = ('sample_idx',)

    def __init__(
        self, path: str | Path | IJBProtocol, norm_score: bool = True, detector_score: bool = True, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = path if isinstance(path, IJBProtocol) else IJBProtocol(path)
        searched = self.protocol.has_search
        self._search = self.protocol.read_search() if searched else None
        self._pairs = self.protocol.read_pairs() if self.protocol.has_pairs or not searched else None
        self.norm_score = norm_score
        self.detector_score = detector_score
        self.curve: dict[str, np.ndarray] | None = None

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """All numbers of both protocols.

        Raises:
            ValueError: The images are not those of the lists.
        """
        if not np.array_equal(results['sample_idx'], np.arange(len(self.protocol.images))):
            raise ValueError(
                f'IJBMetric: {len(results["sample_idx"])} images arrived that are not the '
                f'{len(self.protocol.images)} of {self.protocol.path}. Test on IJBFaces of the same folder.'
            )
        values = self.calculate(results['embedding'])
        return {f'{self.protocol.name}/{key}': value for key, value in values.items()}

    def calculate(self, embeddings: np.ndarray) -> dict[str, float]:
        """All numbers of both protocols, without the name of the set before them, in float64.

        Args:
            embeddings: Of each image (N, D), in the order of the list; may be mapped from a file.

        Raises:
            ValueError: Another number of images, or an embedding that is zero or not finite.
        """
        protocol = self.protocol
        if len(embeddings) != len(protocol.images):
            raise ValueError(
                f'IJBMetric: {len(embeddings)} embeddings for the {len(protocol.images)} images of {protocol.path}. '
                'Embed each once, in the order of the list.'
            )
        weights = protocol.scores if self.detector_score else None
        templates = pool_templates(
            embeddings, protocol.templates, protocol.media, weights, self.norm_score, protocol.images
        )
        metrics = dict(images=len(embeddings), templates=len(templates))
        subjects = np.full(len(templates), -1, np.int64)
        if self._search is not None:
            galleries, probes = self._search
            for members, names in (*galleries.values(), probes):
                subjects[members] = names
        self.curve = None
        if self._pairs is not None:
            metrics |= self._verify(templates, *self._pairs, subjects)
        if self._search is not None:
            metrics |= _identify(templates, *self._search)
        return metrics

    def _verify(
        self, templates: np.ndarray, first: np.ndarray, second: np.ndarray, same: np.ndarray, subjects: np.ndarray
    ) -> dict[str, float]:
        similarity = compare_pairs(templates, first, second)
        curve = roc_curve(-similarity, same)
        self.curve = curve | dict(threshold=-curve['threshold'])
        genuine, subjects = similarity[same], subjects[first[same]]
        metrics = dict(auc=float(np.trapezoid(curve['tar'], curve['far'])), pairs=len(same), genuine_pairs=len(genuine))
        for far, (tar, threshold) in tar_at_far(similarity, same, FARS).items():
            known = [(genuine >= threshold, subjects)] if (subjects >= 0).all() else None
            interval = _interval(known, tar) if known else wilson_interval(tar, len(genuine))
            metrics |= _rate(tar_name(far), tar, interval)
        return metrics


def _identify(
    templates: np.ndarray,
    galleries: dict[str, tuple[np.ndarray, np.ndarray]],
    probes: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Ranks and TPIR of each gallery, of both as `mean`, and ranks among both as one."""
    metrics: dict[str, float] = {}
    hits: dict[
        str, list[tuple[np.ndarray, np.ndarray]]
    ] = {}  # name → (hit or not, subject) of mated probes, by gallery
    for gallery, (members, subjects) in galleries.items():
        outcome, mated, nonmated = _search(templates, members, subjects, *probes)
        metrics |= {f'{gallery.lower()}/mated': mated, f'{gallery.lower()}/nonmated': nonmated}
        for name, part in outcome.items():
            metrics |= _rate(f'{gallery.lower()}/{name}', part[0].mean(), _interval([part], part[0].mean()))
            hits.setdefault(name, []).append(part)
    for name, parts in hits.items():
        if len(parts) == len(galleries):
            if name.startswith('rank'):
                parts = [tuple(np.concatenate(column) for column in zip(*parts))]
            rate = float(np.mean([hit.mean() for hit, _ in parts]))
            metrics |= _rate(f'mean/{name}', rate, _interval(parts, rate))
    members, subjects = (np.concatenate(column) for column in zip(*galleries.values()))
    if len(np.unique(subjects)) == len(subjects):
        union = '+'.join(galleries).lower()
        for name, part in _search(templates, members, subjects, *probes)[0].items():
            if name.startswith('rank'):
                metrics |= _rate(f'{union}/{name}', part[0].mean(), _interval([part], part[0].mean()))
    return metrics


def _search(
    templates: np.ndarray, members: np.ndarray, enrolled: np.ndarray, probes: np.ndarray, subjects: np.ndarray
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int, int]:
    """Hit or not and subject of each mated probe, by the name of the rate; how many probes are mated, how many not."""
    order = np.argsort(enrolled)
    place = np.minimum(np.searchsorted(enrolled, subjects, sorter=order), len(order) - 1)
    mates = np.where(enrolled[order[place]] == subjects, order[place], -1)
    similarity, rank, nearest = search_gallery(templates[probes], templates[members], mates)
    mated = mates >= 0
    strangers = np.sort(nearest[~mated])[::-1]
    outcome = {}
    if mated.any():
        for k in RANKS:
            outcome[f'rank{k}'] = rank[mated] < k, subjects[mated]
        for fpir in FPIRS:
            allowed = int(len(strangers) * fpir + 1e-9)
            if allowed:  # as ijb_evals.py of InsightFace: strangers above the threshold are one fewer
                hit = (rank[mated] == 0) & (similarity[mated] > strangers[allowed - 1])
                outcome[tpir_name(fpir)] = hit, subjects[mated]
    return outcome, int(mated.sum()), len(strangers)


def tpir_name(fpir: float) -> str:
    """Key of the TPIR at an FPIR."""
    return tar_name(fpir).replace('tar@far', 'tpir@fpir')


def _rate(name: str, rate: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: float(rate), f'{name}_lo': interval[0], f'{name}_hi': interval[1]}


def _interval(parts: Sequence[tuple[np.ndarray, np.ndarray]], rate: float) -> tuple[float, float]:
    """Interval of the mean of the parts' rates, subjects resampled over all of them."""
    names, index = np.unique(np.concatenate([subjects for _, subjects in parts]), return_inverse=True)
    bounds = np.cumsum([0, *(len(hit) for hit, _ in parts)])
    by_subject = []
    for (hit, _), start, stop in zip(parts, bounds, bounds[1:]):
        own = index[start:stop]
        by_subject.append([np.bincount(own, values, len(names)) for values in (hit, np.ones(len(hit)))])
    hits, trials = np.array(by_subject).swapaxes(0, 1)  # (parts, subjects) each
    rates = []
    for multiplicity in resampled_identities(len(names)):
        drawn = trials @ multiplicity
        if drawn.all():
            rates.append((hits @ multiplicity / drawn).mean())
    return bootstrap_interval(rates, rate, len(names))
