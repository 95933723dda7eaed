"""An audit of a released set of faces: every attacker embeds, searches and is measured."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank

from ..datasets.face_source import FaceSource
from ..datasets.resumable import faces_digest
from ..evaluation.embed_faces import FaceImages
from ..evaluation.embedded_faces import EmbeddedFaces
from ..evaluation.embedding_parts import embed_to_file, load_rows, private_rows
from ..evaluation.nearest import pair_cosines
from ..evaluation.retrieval_curves import Curve, Draws, difference_interval, retrieval_curves, spread_points
from ..evaluation.search_parts import search_to_file
from ..whole_file import whole_file
from .attackers import Attacker, CannotLearn
from .audited_sets import OwnedPairs, match_sets, memberships, own_identities
from .membership import membership
from .near_duplicates import near_duplicates, pixel_copies, pixel_descriptors

_ROWS = 2**16  # embeddings that are mapped at once
_BLOCK = 2**13  # queries whose lists are read at once


@dataclass(frozen=True)
class Settings:
    """What an audit is asked for.

    Attributes:
        topk: Values of K.
        points: Numbers of identities of a curve; None for five, halving from all.
        draws: Draws of identities at each point.
        depth: Nearest images of each query that are listed; what they do not decide is searched again.
        owned: Share of the identities that attackers who learn own.
        seed: Of draws, owned identities and cohorts.
        flip: Embed f(x) + f(flip x).
        pixels: Compare small pictures too.
        batch_size: Faces embedded at once.
        workers: Processes that read faces, for each that embeds.
    """

    topk: tuple[int, ...] = (1, 2, 3, 4)
    points: tuple[int, ...] | None = None
    draws: int = 20
    depth: int = 64
    owned: float = 0.3
    seed: int = 0
    flip: bool = True
    pixels: bool = True
    batch_size: int = 64
    workers: int = 0


@dataclass(frozen=True)
class _KeyedFaces(EmbeddedFaces):
    """Faces with what tells their embeddings from others in the folder."""

    key: str


class _Rows(NamedTuple):
    """Embeddings, and what tells them from others."""

    embeddings: np.ndarray
    key: str

    def of(self, identity: np.ndarray, source: np.ndarray) -> _KeyedFaces:
        """As those of faces of these people, made from these photos."""
        return _KeyedFaces(self.embeddings, identity, source, self.key)


@dataclass
class Audit:
    """Real photos against released faces, and what attackers make of them.

    Every process of a group embeds and searches its share; the first one measures.

    Args:
        real: The photos.
        released: The released faces.
        links: The owner's links of the release.
        attackers: By name.
        folder: For embeddings, searches and what attackers learnt, for the owner alone: an interrupted audit goes on.
        strangers: Photos of people who are known not to be in the release.
        imitations: By name, faces that an attacker made of the real photos, and their links.
        settings: What is asked for.
        device: Where to compute.

    Attributes:
        matched: Who is who.
        draws: Of identities; None where nobody can be drawn.

    Raises:
        ValueError: Sets or links that do not fit, a point or K that the sets are too small for, or, when it runs,
            images that cannot be read or embedded.
    """

    real: FaceSource
    released: FaceSource
    links: str | Path | None
    attackers: Mapping[str, Attacker]
    folder: Path
    strangers: FaceSource | None = None
    imitations: Mapping[str, tuple[FaceSource, str | Path | None]] = field(default_factory=dict)
    settings: Settings = Settings()
    device: torch.device = torch.device('cpu')

    def __post_init__(self) -> None:
        settings = self.settings
        self.matched = match_sets(self.real, self.released, self.links)
        self.notes = list(self.matched.notes)
        learn = any(attacker.needs_pairs for attacker in self.attackers.values())
        self.owned = own_identities(self.matched, settings.owned if learn else 0, settings.seed)
        asked = np.setdiff1d(self.matched.drawn, self.owned)
        self.draws = None
        if asked.size:
            points = spread_points(len(asked)) if settings.points is None else settings.points
            self.draws = Draws.nested(asked, points, settings.draws, settings.seed)
            images = int(np.isin(self.matched.released_identity, asked).sum())
            if max(settings.topk) >= images:
                raise ValueError(
                    f'K = {max(settings.topk)}, and the people who are asked about have {images} released images. Ask '
                    'for a smaller K (--topk).'
                )
        elif self.matched.by != 'none':
            self.notes.append(
                'No person has two photos or more and a released face (Eq. 3 needs them), so leakage is not measured.'
            )
        self.imitated = {name: match_sets(self.real, *made) for name, made in self.imitations.items()}
        for name, made in self.imitated.items():
            if self.draws is not None and not np.isin(made.released_identity, self.draws.identities).any():
                raise ValueError(
                    f'Imitation {name!r} shows nobody who is asked about. {" ".join(made.notes)} Give the links of '
                    'this imitation (NAME=FACES:LINKS), made of photos of the real set.'
                )
            self.notes += [f'Imitation {name}: {note}' for note in made.notes]
        self.member = memberships(self.matched, self.owned)
        self.pairs = OwnedPairs(self.real, self.released, self.matched, self.owned)
        made = self.matched.released_source
        self._twins = int(np.bincount(made[made >= 0], minlength=1).max())  # faces of one photo

    def run(self) -> tuple[dict, dict[str, list[tuple[int, int]]]] | None:
        """Everything, attacker by attacker.

        Returns:
            'attackers' and 'matching' of a report, and by attacker the worst near duplicates, as numbers of the
            released face and of the photo; None on other processes than the first.
        """
        self._look()
        copies = self._pixel_copies() if self.settings.pixels else None
        found, worst = {}, {}
        for name, attacker in self.attackers.items():
            made = self._attack(name, attacker, copies)
            if made is not None:
                found[name], worst[name] = made
        if get_rank() == 0 and not found:
            raise ValueError(' '.join(['No attacker could attack.', *self.notes]))
        return None if get_rank() else (dict(attackers=found, matching=self._describe_matching()), worst)

    def _attack(self, name: str, attacker: Attacker, copies: tuple | None) -> tuple[dict, list] | None:
        about = dict(kind=type(attacker).__name__, about=attacker.describe(), budget=dict(attacker.budget))
        if attacker.needs_pairs:
            refused = [None]
            if get_rank() == 0:
                try:
                    about['took'] = attacker.fit(self.pairs, self.folder, self.device, self.settings.flip)
                except CannotLearn as error:
                    refused = [str(error)]
            broadcast_object_list(refused)
            if refused[0]:
                self.notes.append(f'Attacker {name} was left out: {refused[0]}')
                return None
            if get_rank():  # reads what the first process learnt
                attacker.fit(self.pairs, self.folder, self.device, self.settings.flip)
        attacker.photo_network.to(self.device)
        attacker.released_network.to(self.device)
        matched, whose = self.matched, (self.matched.released_identity, self.matched.released_source)
        photos = self._embed(self.real, attacker.photo_network, f'{name}: photos')
        photos = photos.of(matched.real_identity, matched.real_source)
        plain = self._embed(self.released, attacker.released_network, f'{name}: released').of(*whose)
        released = self._map(attacker, plain).of(*whose)
        deep = {'original_released': (photos, released)}  # as curves need them
        if self.draws is not None:
            deep |= {'original_original': (photos, photos), 'released_released': (plain, plain)}
            for model, (source, _) in self.imitations.items():
                imitated = self.imitated[model]
                faces = self._embed(source, attacker.released_network, f'{name}: {model}')
                faces = faces.of(imitated.released_identity, imitated.released_source)
                deep[f'imitation:{model}'] = faces, plain
        nearest = {'released_original': (released, photos)}  # the nearest image alone
        if self.strangers is not None:
            strangers = self._embed(self.strangers, attacker.photo_network, f'{name}: others')
            labels = np.asarray(self.strangers.labels, np.int64)
            strangers = strangers.of(np.where(labels < 0, -1, -2 - labels), np.full(len(labels), -1))
            nearest['strangers'] = strangers, released
        near = {
            pairing: self._search(*pair, pairing in deep, f'{name}: {pairing}')
            for pairing, pair in (deep | nearest).items()
        }
        if get_rank():
            return None

        curves = {}
        if self.draws is not None:
            curves = {
                pairing: self._curves(*pair, near[pairing], f'{name}: {pairing}') for pairing, pair in deep.items()
            }
        about['leakage'] = {pairing: self._points(modes) for pairing, modes in curves.items()}
        about['difference'] = self._difference(photos, released, near, curves) if curves else None
        about['membership'] = self._membership(photos, released, near, nearest.get('strangers', [None])[0])
        about['near_duplicates'], worst = near_duplicates(
            photos,
            released,
            np.asarray(self.released.labels, np.int64),
            near['released_original'][:, 0],
            copies,
            self.owned,
            seed=self.settings.seed,
        )
        return about, worst

    def _look(self) -> None:
        """What tells sets from others in the folder, whatever their names: the first process looks at every face."""
        sets = [self.real, self.released, *(source for source, _ in self.imitations.values())]
        sets += [] if self.strangers is None else [self.strangers]
        digests = [None] * len(sets) if get_rank() else [faces_digest(source) for source in sets]
        broadcast_object_list(digests)
        self._contents = dict(zip(map(id, sets), digests, strict=True))

    def _embed(self, source: FaceSource, network: torch.nn.Module, title: str) -> '_Rows':
        """Embeddings of all faces of a set."""
        key = f'faces-{_digest(network.fingerprint(self.device), self._contents[id(source)], self.settings.flip)}'
        faces = FaceImages(source, np.arange(len(source)))
        options = dict(flip=self.settings.flip, batch_size=self.settings.batch_size, workers=self.settings.workers)
        return _Rows(embed_to_file(faces, network, self.folder, key, title=title, **options), key)

    def _map(self, attacker: Attacker, plain: '_KeyedFaces') -> '_Rows':
        """Embeddings of released faces where those of photos lie."""
        if type(attacker).map_released is Attacker.map_released:
            return _Rows(plain.embeddings, plain.key)
        key, images = [None], plain.embeddings
        if get_rank() == 0:
            draft, rows, digest = self.folder / 'mapped.partial', None, hashlib.sha256()
            for start in range(0, len(images), _ROWS):
                block = attacker.map_released(np.asarray(images[start : start + _ROWS])).astype(np.float32)
                if rows is None:
                    rows = private_rows(draft, np.float32, (len(images), block.shape[1]))
                rows[start : start + len(block)] = block
                digest.update(block.tobytes())
            rows.flush()
            key = [f'{plain.key}-{digest.hexdigest()[:16]}']
            draft.replace(self.folder / f'{key[0]}.npy')
        broadcast_object_list(key)
        return _Rows(load_rows(self.folder / f'{key[0]}.npy', len(images)), key[0])

    def _search(self, queries: '_KeyedFaces', gallery: '_KeyedFaces', deep: bool, title: str) -> np.ndarray:
        """The nearest images of every query, deep as curves need them or one alone, (Q, M)."""
        depth = min(max(self.settings.depth, self._twins + 1), len(gallery)) if deep else 1
        labels = (queries.identity, gallery.identity) if deep else None
        digests = [hashlib.sha256(rows.tobytes()).hexdigest() for rows in labels or ()]
        key = f'near-{_digest(queries.key, gallery.key, depth, *digests)}'
        return search_to_file(queries.embeddings, gallery.embeddings, depth, self.folder, key, labels, title)

    def _curves(self, queries: EmbeddedFaces, gallery: EmbeddedFaces, near: np.ndarray, title: str) -> dict[str, Curve]:
        return retrieval_curves(queries, gallery, near, self.draws, max(self.settings.topk), f'{title}, again')

    def _points(self, curves: Mapping[str, Curve]) -> dict:
        """A curve of a report."""
        points = []
        for p, people in enumerate(self.draws.points):
            any_curve = curves['with']
            asked = (any_curve.places[p] > 0).sum(1).mean()
            point = dict(
                identities=people, draws=len(any_curve.places[p]), queries=float(asked), gallery=any_curve.galleries[p]
            )
            for mode in ('with', 'without'):
                curve = curves.get(mode) if asked else None  # an imitation may show few people
                point[mode] = curve and {str(k): list(curve.interval(p, k)) for k in self.settings.topk}
                chance = curve and {str(k): float(curve.chances[p][k - 1]) for k in self.settings.topk}
                point[f'chance_{mode}'] = chance
            points.append(point)
        return dict(points=points)

    def _difference(self, real: EmbeddedFaces, released: EmbeddedFaces, near: Mapping, curves: Mapping) -> dict:
        """Original→Original minus Original→released, with galleries of equal size."""
        a, b, drawn = curves['original_original'], curves['original_released'], False
        count = len(self.draws.identities) + 1
        held = [np.bincount(self.draws.numbers(faces.identity) + 1, minlength=count)[1:] for faces in (real, released)]
        if (held[0] != held[1]).any():
            kept = equal_galleries(real, released, self.settings.seed)
            sets = [
                EmbeddedFaces(faces.embeddings, np.where(rows, faces.identity, -1), faces.source)
                for faces, rows in zip((real, released), kept, strict=True)
            ]
            a = self._curves(real, sets[0], near['original_original'], 'equal galleries')
            a = {mode: a['without'] for mode in ('with', 'without')}  # the query itself is left out
            b = self._curves(real, sets[1], near['original_released'], 'equal galleries')
            drawn = True
        points = []
        for p, people in enumerate(self.draws.points):
            point = dict(identities=people, drawn_to_equal=drawn)
            for mode in ('with', 'without'):
                point[mode] = (
                    {str(k): list(difference_interval(a[mode], b[mode], p, k)) for k in self.settings.topk}
                    if mode in b
                    else None
                )
            points.append(point)
        return dict(points=points)

    def _membership(
        self, real: EmbeddedFaces, released: EmbeddedFaces, near: Mapping, strangers: EmbeddedFaces | None
    ) -> dict | None:
        def to_released(faces: EmbeddedFaces, image: np.ndarray) -> np.ndarray:
            return pair_cosines(faces.embeddings, np.arange(len(faces)), released.embeddings, image)

        photos, member = [real], self.member
        best = [to_released(real, near['original_released'][:, 0])]
        if strangers is not None:
            photos.append(strangers)
            member = np.concatenate([member, np.zeros(len(strangers), np.int8)])
            best.append(to_released(strangers, near['strangers'][:, 0]))
        if not (member == 0).any() or not (member == 1).any():
            return None
        without = None
        if self.matched.sources:
            listed = near['original_released']
            image = np.empty(len(real), np.int64)
            for start in range(0, len(real), _BLOCK):
                block = np.asarray(listed[start : start + _BLOCK])
                other = released.source[block] != real.source[start : start + _BLOCK, None]
                image[start : start + _BLOCK] = np.take_along_axis(block, other.argmax(1)[:, None], 1)[:, 0]
            without = np.concatenate([to_released(real, image), *best[1:]])
        return membership(np.concatenate(best), without, photos, released, member, seed=self.settings.seed)

    def _pixel_copies(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Nearest photos by pixels, kept in a file; on the first process alone."""
        if get_rank():
            return None
        sets = self.released, self.real
        file = self.folder / f'pixels-{_digest(*(self._contents[id(source)] for source in sets))}.npy'
        if not file.is_file():
            photo, correlation = pixel_copies(
                *(pixel_descriptors(source, np.arange(len(source)), self.settings.workers) for source in sets)
            )
            with whole_file(file, private=True) as out:
                np.save(out, np.stack([photo, correlation], 1))
        found = load_rows(file, len(self.released))
        return found[:, 0].astype(np.int64), np.array(found[:, 1])

    def _describe_matching(self) -> dict:
        member = self.member
        people = self.matched.real_identity
        others = 0 if self.strangers is None else len(self.strangers)
        other_people = len(set(self.strangers.identities)) or others if others else 0
        drawn = 0 if self.draws is None else len(self.draws.identities)
        everybody = len(np.union1d(people[people >= 0], self.matched.released_people))
        if not (member == 0).any() and not others:
            self.notes.append(
                'No photo is of a person who is known not to be in the release, so membership is not measured. Give '
                'photos of others (--non-members).'
            )
        return dict(
            by=self.matched.by,
            sources=self.matched.sources,
            drawn_identities=drawn,
            left_out_identities=everybody - drawn - len(self.owned),
            owned_identities=len(self.owned),
            owned_pairs=len(self.pairs),
            member_photos=int((member == 1).sum()),
            non_member_photos=int((member == 0).sum()) + others,
            non_member_identities=len(np.unique(people[member == 0])) + other_people,
            notes=self.notes,
        )


def equal_galleries(real: EmbeddedFaces, released: EmbeddedFaces, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which photos and which released faces to keep so that both hold as many of every person.

    Where the source of a released face is known, the two are kept together; else images are drawn.

    Args:
        real: The photos.
        released: The released faces.
        seed: Of what is drawn.

    Returns:
        (N,) bool and (G,) bool.
    """
    generator = np.random.default_rng(seed)
    kept = np.zeros(len(real), bool), np.zeros(len(released), bool)
    order = generator.permutation(len(released))
    made = order[released.source[order] >= 0]
    source, first = np.unique(released.source[made], return_index=True)
    if source.size:
        kept[0][source] = True
        kept[1][made[first]] = True
        return kept
    orders = generator.permutation(len(real)), order
    people = [faces.identity[rows] for faces, rows in zip((real, released), orders, strict=True)]
    count = max(people[0].max(initial=-1), people[1].max(initial=-1)) + 2
    least = np.minimum(*(np.bincount(who + 1, minlength=count) for who in people))
    for rows, who, keep in zip(orders, people, kept, strict=True):
        sort = np.argsort(who, kind='stable')
        starts = np.searchsorted(who[sort], np.arange(-1, count - 1))
        place = np.arange(len(sort)) - starts[who[sort] + 1]
        keep[rows[sort[(place < least[who[sort] + 1]) & (who[sort] >= 0)]]] = True
    return kept


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:24]
