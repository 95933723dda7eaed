"""Privacy leakage: do real faces retrieve their identity among the released ones? Eq. 3."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmengine.logging import print_log
from mmpretrain.registry import METRICS

from .embedded_faces import EmbeddedFaces
from .embedding_metric import EmbeddingMetric, check_embeddings
from .links import read_links
from .nearest import nearest_images
from .retrieval_curves import Draws, drawn_identities, retrieval_curves


@METRICS.register_module()
class RetrievalLeakage(EmbeddingMetric):
    r"""Privacy leakage risk by face retrieval, paper Eq. 3.

    :math:`R(A, S, K) = \frac{1}{|A|} \sum_i 1(z_i \in T(a_i, S, K))`, where T is the set of labels
    of the K released images nearest, by cosine, to the real face a_i of identity z_i.

    Samples with role 'query' are real faces, those with role 'gallery' released ones. Samples
    without a role are one real set that is retrieved from itself (Original→Original): the query
    itself is always left out, and 'with' and 'without' are the same number.

    Paper gap: which images take part. Queries are all real images of the drawn identities, which
    are those that have two real images or more and a released one; the gallery holds all released
    images of the drawn identities. Other identities are left out and counted.

    Logs (under 'leakage/'), for each K: `top{K}_with`, `top{K}_without` the released images made
    from the query itself, both with `_lo` and `_hi` (95 % interval, resampling identities with
    a fixed seed), `chance_top{K}` (for the 'without' gallery), `chance_top{K}_with`;
    and `queries`, `identities`, `gallery` (images), `left_out_identities`.

    Sources of the released images come from `links`; without links identities match by equal
    names and sources by equal image keys. Where no source is found among the queries, the numbers
    of 'without' are not logged.

    Required fields of a sample: embedding, img_key, identity; role.

    Args:
        topk: The values of K, numbers of images.
        links: The owner's `links.csv` (released_path, released_label, source_key, source_label).
        kwargs: Arguments of MMEngine's `BaseMetric`.

    Raises:
        FileNotFoundError: Where `links` is no file.
    """

    default_prefix = 'leakage'
    fields: ClassVar = dict(role=str, img_key=str, identity=str)
    key = ('role', 'img_key')
    optional = ('role',)

    def __init__(
        self,
        topk: int | Sequence[int] = (1, 2, 3, 4),
        links: str | Path | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if links is not None and not Path(links).is_file():
            raise FileNotFoundError(
                f'RetrievalLeakage: {links} is no file. Give the links.csv that the export wrote '
                'beside the release (NAME.private/links.csv), or no links.'
            )
        self.links = links

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Match released images with real ones and measure.

        Raises:
            ValueError: Where roles or links do not fit, or `calculate` cannot measure.
        """
        roles = set(results['role'].tolist())
        if roles == {''}:
            return self.calculate(results['embedding'], results['identity'], topk=self.topk)
        if roles != {'query', 'gallery'}:
            raise ValueError(
                f'RetrievalLeakage: samples have the roles {sorted(roles)}. Give one set without '
                "role, or two sets with role='query' (real) and role='gallery' (released)."
            )
        query, gallery = (
            {name: column[results['role'] == role] for name, column in results.items()} for role in ('query', 'gallery')
        )
        keys, identities = gallery['img_key'], gallery['identity']
        if self.links is not None:
            keys, identities = map(np.array, read_links(self.links, keys))
        rows = {key: row for row, key in enumerate(query['img_key'])}
        source = np.array([rows.get(key, -1) for key in keys])
        if (source < 0).all():
            source = None
            print_log(
                'RetrievalLeakage: no released image has its source among the queries; the '
                "numbers 'without' the same source are not available.",
                logger='current',
            )
        return self.calculate(
            query['embedding'],
            query['identity'],
            gallery['embedding'],
            identities,
            source=source,
            topk=self.topk,
        )

    @staticmethod
    def calculate(
        queries: np.ndarray,
        query_identities: np.ndarray,
        gallery: np.ndarray | None = None,
        gallery_identities: np.ndarray | None = None,
        source: np.ndarray | None = None,
        topk: Sequence[int] = (1, 2, 3, 4),
    ) -> dict[str, float]:
        """All numbers, from embeddings and identities alone; the keys are those of the class.

        Args:
            queries: Embeddings of real images (Q, D), not normalised.
            query_identities: Who they show, (Q,), names or numbers.
            gallery: Embeddings of released images (G, D); None retrieves the queries from
                themselves, each without itself.
            gallery_identities: Who they stand for, (G,).
            source: Row of the query that each released image was made from, −1 where none, (G,);
                None where unknown: then 'without' and its chance level are missing.
            topk: The values of K.

        Raises:
            ValueError: Where no identity can be drawn, K exceeds the gallery, an image and its
                source have different identities, or an embedding is zero or not finite.
        """
        queries, query_identities = np.asarray(queries), np.asarray(query_identities)
        alone = gallery is None
        if alone:
            gallery, gallery_identities, source = queries, query_identities, np.arange(len(queries))
        gallery, gallery_identities = np.asarray(gallery), np.asarray(gallery_identities)
        check_embeddings(queries)
        check_embeddings(gallery)
        source = np.full(len(gallery), -1) if source is None else np.asarray(source)
        if not len(topk):
            raise ValueError('RetrievalLeakage: topk names no K. Give one, such as (1, 2, 3, 4).')
        _check_sources(source, query_identities, gallery_identities)

        drawn = drawn_identities(query_identities, gallery_identities)
        if not drawn.size:
            counts = np.unique(query_identities, return_counts=True)[1]
            raise ValueError(
                f'RetrievalLeakage: of {len(counts)} real identities {(counts > 1).sum()} have two '
                'images or more, and none of these is in the gallery. Give more images per identity, '
                'or the links of a release whose identities have other names.'
            )
        left_out = len(np.union1d(query_identities, gallery_identities)) - len(drawn)
        real, released = np.isin(query_identities, drawn), np.isin(gallery_identities, drawn)
        asked = EmbeddedFaces(
            queries[real], np.searchsorted(drawn, query_identities[real]), np.flatnonzero(real).astype(np.int64)
        )
        held = asked
        if not alone:
            numbers = np.searchsorted(drawn, gallery_identities[released])
            held = EmbeddedFaces(gallery[released], numbers, source[released])
        excluded = int(np.bincount(held.source[held.source >= 0], minlength=1).max())
        most, smallest = max(topk), len(held) - excluded
        if min(topk) < 1 or most > smallest:
            raise ValueError(
                f'RetrievalLeakage: K must lie between 1 and the {smallest} gallery images that '
                f'a query is compared with, topk is {tuple(topk)}. Change topk or give more images.'
            )
        near = nearest_images(asked.embeddings, held.embeddings, most + excluded)
        curves = retrieval_curves(asked, held, near, Draws.nested(np.arange(len(drawn))), most)
        metrics = {}
        for name, curve in curves.items():
            for k in topk:
                key = f'top{k}_{name}'
                metrics[key], metrics[f'{key}_lo'], metrics[f'{key}_hi'] = curve.interval(0, k)
                metrics[f'chance_top{k}' + ('_with' if name == 'with' else '')] = float(curve.chances[0][k - 1])
        return dict(metrics, queries=len(asked), identities=len(drawn), gallery=len(held), left_out_identities=left_out)


def _check_sources(source: np.ndarray, real: np.ndarray, released: np.ndarray) -> None:
    wrong = np.flatnonzero((source >= 0) & (real[source] != released))
    if wrong.size:
        first = wrong[0]
        raise ValueError(
            f'RetrievalLeakage: {wrong.size} released images have another identity than the real '
            f'image with their source key, first {released[first]!r} against '
            f'{real[source[first]]!r}. Give the links of this very release and its real set.'
        )
