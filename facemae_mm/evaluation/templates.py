"""Templates of several images: pooled to one feature each, compared in pairs and searched in a gallery."""

from collections.abc import Sequence

import numpy as np

from .embedding_metric import check_embeddings

#: Images that are pooled, pairs and probes that are compared, at once: their features fit into a processor's cache.
IMAGES, PAIRS, PROBES = 4096, 512, 1024


def pool_templates(
    embeddings: np.ndarray,
    templates: np.ndarray,
    media: np.ndarray,
    weights: np.ndarray | None = None,
    norm_score: bool = True,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """One feature for each template, as InsightFace makes them for IJB.

    Embeddings times their weights are averaged over the images of a medium (the frames of a video), summed over the
    media of a template, and that sum is L2-normalised.

    Args:
        embeddings: Of each image (N, D), not normalised; may be mapped from a file.
        templates: Of each image (N,), every number of 0 … T − 1.
        media: Of each image (N,); one number in two templates is two media.
        weights: Of each image (N,), ≥ 0: the detector's scores. None weighs all alike.
        norm_score: Take embeddings as they are, so that their norms weigh too; else each is L2-normalised first.
        names: Of the images, for messages.

    Returns:
        (T, D) float64.

    Raises:
        ValueError: An embedding is zero or not finite, or those of a template cancel out or all weigh 0.
    """
    order = np.lexsort((media, templates))
    starts = np.searchsorted(templates[order], np.arange(templates.max() + 2))
    _, medium, counts = np.unique(np.stack([templates, media]), axis=1, return_inverse=True, return_counts=True)
    share = 1 / counts[medium]
    if weights is not None:
        share *= weights
    pooled = np.empty((len(starts) - 1, embeddings.shape[1]))
    first = 0
    while first < len(pooled):
        last = max(int(np.searchsorted(starts, starts[first] + IMAGES, side='right')) - 1, first + 1)
        images = order[starts[first] : starts[last]]
        block = embeddings[images].astype(np.float64)
        check_embeddings(block, None if names is None else [names[image] for image in images])
        if not norm_score:
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        block *= share[images, None]
        pooled[first:last] = np.add.reduceat(block, starts[first:last] - starts[first])
        first = last
    norm = np.linalg.norm(pooled, axis=1, keepdims=True)
    if not norm.all():
        template = int(norm[:, 0].argmin())
        image = order[starts[template]]
        raise ValueError(
            f'The template of image {image if names is None else names[image]} has no direction: its images cancel out '
            "or all weigh 0. Check the detector's scores, or leave them out."
        )
    pooled /= norm
    return pooled


def compare_pairs(templates: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of pairs of templates, (P,) float64.

    Args:
        templates: Unit features (T, D).
        first: Index of one template of each pair, (P,).
        second: Of the other, (P,).
    """
    similarity = np.empty(len(first))
    for start in range(0, len(first), PAIRS):
        part = slice(start, start + PAIRS)
        similarity[part] = np.einsum('pd,pd->p', templates[first[part]], templates[second[part]])
    return similarity


def search_gallery(
    probes: np.ndarray, gallery: np.ndarray, mates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Searches a gallery for every probe.

    Args:
        probes: Unit features (P, D).
        gallery: Unit features (G, D).
        mates: Which of the gallery shows the person of each probe, (P,); −1 where none does.

    Returns:
        `similarity` (P,) to the mate, −inf without one; `rank` (P,): how many others of the gallery are at least as
        similar as the mate, G without one; `nearest` (P,): the largest similarity to anyone but the mate, −inf where
        there is nobody else.
    """
    similarity, nearest = np.full(len(probes), -np.inf), np.empty(len(probes))
    rank = np.empty(len(probes), np.int64)
    for start in range(0, len(probes), PROBES):
        part = slice(start, start + PROBES)
        found = probes[part] @ gallery.T
        mated = np.flatnonzero(mates[part] >= 0)
        mate = mates[part][mated]
        similarity[part][mated] = found[mated, mate]
        found[mated, mate] = -np.inf
        rank[part] = (found >= similarity[part][:, None]).sum(1)
        nearest[part] = found.max(1)
    return similarity, rank, nearest


def tar_at_far(similarity: np.ndarray, same: np.ndarray, fars: Sequence[float]) -> dict[float, tuple[float, float]]:
    """TAR at given FARs as InsightFace reads it off for IJB: at the point of the ROC whose FAR is nearest.

    The ROC is scikit-learn's: a pair is accepted at a similarity ≥ the threshold, and of points at equal steps on a
    straight line only the ends are kept. Of points equally near the one of the larger FAR is taken, of points of one
    FAR that of the larger TAR.

    Args:
        similarity: Of each pair, (P,).
        same: Whether it shows one person, (P,); some do, some do not.
        fars: FARs in (0, 1].

    Returns:
        By FAR: TAR and threshold. A FAR of less than one false match is left out: so few pairs do not measure it.
    """
    order = np.argsort(-similarity)
    ordered = similarity[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # of the pairs at one similarity
    true = np.cumsum(same[order])[last]
    false = last + 1 - true
    kept = np.ones(len(last), bool)
    kept[1:-1] = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    true, false, threshold = (
        np.append(start, column[kept])[::-1] for start, column in ((0, true), (0, false), (np.inf, ordered[last]))
    )
    result = {}
    for far in fars:
        if far * false[0] >= 1 - 1e-9:
            point = int(np.abs(false / false[0] - far).argmin())
            result[far] = float(true[point] / true[0]), float(threshold[point])
    return result
