"""Near duplicates: the nearest real photo of every released face, by an embedding and by pixels."""

from collections import Counter

import cv2
import numpy as np
from tqdm import tqdm

from ..datasets.face_source import FaceSource
from ..datasets.ordered_work import in_order
from ..evaluation.embed_faces import FaceImages
from ..evaluation.embedded_faces import EmbeddedFaces
from ..evaluation.intervals import rate_by_identity
from ..evaluation.nearest import TIE, NearestImages, pair_cosines
from ..evaluation.unit_rows import unit_rows
from ..randomness import keyed_seed

#: Photos that say how near people come to each other, at most.
PHOTOS = 20_000

#: Share of photos whose nearest photo of another person stays below the threshold.
STRANGERS = 0.99

#: Side of the small grey pictures, and the correlation from which two of them are copies.
SIDE, COPY = 16, 0.99

#: Worst cases, in all and of one person, at most.
WORST, WORST_OF_ONE = 24, 2

_BLOCK = 2**23  # cosines held at once, 32 MiB
_FACES = 2**15  # searched at once, 32 MiB of small pictures
_FLAT = 1.0  # standard deviation of a small picture, grey levels, below which it shows nothing
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B (ITU-R BT.601)


def near_duplicates(
    real: EmbeddedFaces,
    released: EmbeddedFaces,
    people: np.ndarray,
    nearest: np.ndarray,
    copies: tuple[np.ndarray, np.ndarray] | None = None,
    owned: np.ndarray = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict, list[tuple[int, int]]]:
    """How near released faces lie to real photos, against how near photos of one and of two people lie to each other.

    The threshold is the cosine that the nearest photo of another person does not reach for `STRANGERS` of the photos:
    a released face above it lies nearer to a photo than nearly all strangers do. That alone is no leak: a blurred photo
    may be near to every reconstruction. Whether it is the right person's is counted beside it.

    Paper gap: the paper looks for no duplicates.

    Args:
        real: The photos.
        released: The released faces.
        people: Whom each released face stands for in the released set's own numbering, (G,), for intervals and for the
            choice of worst cases; −1 where it knows none: then each face counts as a person.
        nearest: Number of the photo with the largest cosine to each released face, (G,).
        copies: What `pixel_copies` found of the same sets; None where pixels were not compared.
        owned: Identities that attackers learn from: nobody looks for duplicates among their faces, but for copies, and
            their photos ask for no threshold, but may be nearest, as they may be to a released face.
        resamples: For intervals.
        seed: Of the resamples, and of the photos that give the threshold.

    Returns:
        'histogram': 'edges' (b + 1) and 'series', counts (b,) by name; 'source_nearest': share of the released faces of
        known source whose nearest photo it is (or one as near); 'threshold'; 'above_threshold': share of released
        faces; 'above_threshold_same_person': share of those of known people that are above it with a photo of their
        person, and 'chance_same_person', what it would be if faces had nothing to do with whom they stand for;
        shares as [rate, low, high] for this threshold, None where not known, and for fewer than 100 photos of
        known people; 'pixel_copies': 'count' and 'threshold', or None; 'worst': 'similarity', 'is_source',
        'same_person', 'by' ('embedding', 'pixels') of each, most alike first.
        And for each of the worst the numbers of the released face and of the photo.
    """
    faces = np.flatnonzero(~np.isin(released.identity, owned))
    nearest, identity, source = np.asarray(nearest)[faces], released.identity[faces], released.source[faces]
    people = np.asarray(people)[faces]
    people = np.where(people < 0, np.max(people, initial=0) + 1 + faces, people)
    cosine = pair_cosines(released.embeddings, faces, real.embeddings, nearest)
    known = np.flatnonzero(source >= 0)
    to_source = pair_cosines(released.embeddings, faces[known], real.embeddings, source[known])
    own = np.zeros(len(faces), bool)
    own[known] = to_source >= cosine[known] - TIE
    source_nearest = rate_by_identity(own[known], people[known], resamples, seed) if len(known) else None
    same, other = _nearness_of_photos(real, owned, seed)
    series = {
        'released face → nearest photo': cosine,
        'photo → nearest photo of the same person': same[np.isfinite(same)],
        'photo → nearest photo of another person': other[np.isfinite(other)],
    }
    lowest = min(values.min(initial=1) for values in series.values())
    edges = np.linspace(min(np.floor(20 * lowest) / 20, 0.95), 1, 61)
    strangers = np.sort(series['photo → nearest photo of another person'])
    threshold = above = above_same = chance = None
    if len(strangers) * (1 - STRANGERS) > 1 - 1e-9:
        threshold = float(strangers[int(np.ceil(STRANGERS * len(strangers) - 1e-9))])
        above = rate_by_identity(cosine > threshold, people, resamples, seed)
        named = identity >= 0
        if named.any():
            right = (cosine > threshold) & (identity == real.identity[nearest])
            above_same = rate_by_identity(right[named], people[named], resamples, seed)
            share = np.bincount(identity[named], minlength=real.identity.max() + 1) / named.sum()
            shown = real.identity[nearest]
            chance = float(np.where((cosine > threshold) & (shown >= 0), share[shown], 0)[named].mean())

    likeness, photo, copied, pixels = cosine, nearest, np.zeros(len(faces), bool), None
    if copies is not None:
        pixels = dict(count=int((copies[1] >= COPY).sum()), threshold=COPY)
        copied = copies[1][faces] >= COPY
        likeness, photo = (np.where(copied, of[faces], by) for of, by in zip(copies[::-1], (cosine, nearest)))
        own = np.where(copied, photo == source, own)
    shown = real.identity[photo]
    worst = _worst(likeness, people, np.where(shown < 0, -1 - photo, shown))
    near = dict(
        histogram=dict(
            edges=edges.tolist(),
            series={name: np.histogram(values.clip(max=1), edges)[0].tolist() for name, values in series.items()},
        ),
        source_nearest=source_nearest,
        threshold=threshold,
        above_threshold=above,
        above_threshold_same_person=above_same,
        chance_same_person=chance,
        pixel_copies=pixels,
        worst=[
            dict(
                similarity=min(float(likeness[face]), 1.0),
                is_source=bool(own[face]) if source[face] >= 0 else None,
                same_person=_same(identity[face], shown[face]),
                by='pixels' if copied[face] else 'embedding',
            )
            for face in worst
        ],
    )
    return near, [(int(faces[face]), int(photo[face])) for face in worst]


def _same(one: int, other: int) -> bool | None:
    return None if min(one, other) < 0 else bool(one == other)


def _worst(likeness: np.ndarray, people: np.ndarray, photographed: np.ndarray) -> list[int]:
    """The faces of the largest likeness, few of one person, and few beside photos of one person."""
    chosen, shown = [], (Counter(), Counter())
    for face in np.argsort(-likeness, kind='stable').tolist():
        whom = people[face], photographed[face]
        if all(count[person] < WORST_OF_ONE for count, person in zip(shown, whom)):
            chosen.append(face)
            for count, person in zip(shown, whom):
                count[person] += 1
        if len(chosen) == WORST:
            break
    return chosen


def _nearness_of_photos(real: EmbeddedFaces, owned: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of the nearest other photo of the same person, and of another person; −inf where there is none.

    Of up to `PHOTOS` photos of known people who are not owned, drawn by the seed; all photos of known people are
    compared, as all are searched for released faces.
    """
    who = real.identity
    asking = np.flatnonzero((who >= 0) & ~np.isin(who, owned))
    draw = np.random.default_rng(keyed_seed('near duplicates', seed)).permutation(asking)
    rows = np.sort(draw[:PHOTOS])
    asked, identity = unit_rows(real.embeddings[rows]), who[rows]
    same, other = (np.full(len(rows), -np.inf, np.float32) for _ in range(2))
    step = max(1, _BLOCK // max(len(rows), 1))
    for start in range(0, len(real) if len(rows) else 0, step):
        block = slice(start, start + step)
        cosines = asked @ unit_rows(real.embeddings[block]).T
        cosines[:, who[block] < 0] = -np.inf
        photo, column = np.nonzero(identity[:, None] == who[block])
        another = rows[photo] != start + column
        np.maximum.at(same, photo[another], cosines[photo[another], column[another]])
        cosines[photo, column] = -np.inf
        np.maximum(other, cosines.max(1), out=other)
    return same, other


def pixel_descriptors(source: FaceSource, indices: np.ndarray, workers: int = 0) -> np.ndarray:
    """Small grey pictures whose cosine is the correlation of their pixels: `SIDE` × `SIDE`, mean removed, unit length.

    A face that shows nothing (less than one grey level of contrast) is the constant picture: it correlates fully with
    others of its kind, and not at all with faces.

    Args:
        source: The faces.
        indices: Which of them, (N,).
        workers: Processes that read images; 0 reads them in this one.

    Returns:
        (N, 256) float32, row by row from the top left.

    Raises:
        ValueError: A face cannot be read, or is no square of 112 pixels or more.
    """
    faces = FaceImages(source, indices)
    found = np.empty((len(faces), SIDE * SIDE), np.float32)
    pictures = in_order(lambda i: _descriptor(faces[i][0].numpy()), range(len(faces)), workers)
    for i, picture in enumerate(tqdm(pictures, 'pixels', len(faces), unit='image', mininterval=1)):
        found[i] = picture
    return found


def _descriptor(face: np.ndarray) -> np.ndarray:
    """Of a face (3, H, H) RGB, (256,)."""
    grey = np.tensordot(_GREY, face.astype(np.float32), 1)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    return small / np.linalg.norm(small) if small.std() >= _FLAT else np.full(SIDE * SIDE, 1 / SIDE, np.float32)


def pixel_copies(released: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo whose pixels correlate best with each released face, as it is or mirrored.

    Args:
        released: `pixel_descriptors` of the released faces, (G, 256).
        real: Of the photos, (N, 256).

    Returns:
        Number of the photo (G,) int64, and the correlation (G,) float64.
    """
    search = NearestImages(real)
    photo, correlation = np.empty(len(released), np.int64), np.empty(len(released))
    for start in range(0, len(released), _FACES):
        block = released[start : start + _FACES]
        best = photo[start : start + _FACES], correlation[start : start + _FACES]
        rows = np.arange(len(block))
        best[1][:] = -np.inf
        for pictures in (block, block.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(block), -1)):
            found = search(pictures, 1)[:, 0]
            value = pair_cosines(pictures, rows, real, found)
            better = value > best[1]
            best[0][better], best[1][better] = found[better], value[better]
    return photo, correlation
