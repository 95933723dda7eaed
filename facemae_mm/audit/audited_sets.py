"""Who is who: real photos and released faces on one numbering, and what of them an attacker owns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..datasets.face_source import FaceSource
from ..datasets.masked_dataset import MaskedSource
from ..datasets.release_source import release_parts
from ..evaluation.embed_faces import FaceImages
from ..evaluation.links import read_links
from ..evaluation.retrieval_curves import drawn_identities
from ..randomness import keyed_seed


@dataclass(frozen=True)
class MatchedSets:
    """A real and a released set of faces on the real set's numbering, which all sets that are matched with it share.

    Attributes:
        real_identity: Label of each photo in the real set, (N,) int64; −1 where it knows none.
        released_identity: Label in the real set of whom each released face stands for, (M,) int64; −1 where the real
            set does not have them, or it is not known.
        released_source: Number of the photo that each was made from, (M,) int64; −1 where it is not in the real set, or
            not known.
        by: What they were matched by: 'links', 'names' (equal names of identities), or 'none'.
        notes: What is not available and why, in sentences.
    """

    real_identity: np.ndarray
    released_identity: np.ndarray
    released_source: np.ndarray
    by: str
    notes: tuple[str, ...] = ()

    @property
    def real_source(self) -> np.ndarray:
        """A photo's own number, (N,) int64."""
        return np.arange(len(self.real_identity))

    @property
    def sources(self) -> bool:
        """Whether it is known which photo a released face was made from."""
        return bool((self.released_source >= 0).any())

    @property
    def released_people(self) -> np.ndarray:
        """Real identities with a released face, ascending."""
        return np.unique(self.released_identity[self.released_identity >= 0])

    @property
    def drawn(self) -> np.ndarray:
        """Identities that Eq. 3 can ask about: two photos or more and a released face; ascending."""
        return drawn_identities(self.real_identity, self.released_people)


def match_sets(real: FaceSource, released: FaceSource, links: str | Path | None = None) -> MatchedSets:
    """Finds for every released face whom it stands for and which photo it was made from.

    By the links, where they are given; else by equal names of identities, without sources; else not at all. Releases
    and masked datasets of this project number identities anew: equal names mean nothing there, and only links match.

    Args:
        real: The photos.
        released: The released faces.
        links: The owner's `links.csv`.

    Raises:
        OSError: The links cannot be read.
        ValueError: They are none, do not hold every released face, or name a photo under another identity than the real
            set does.
    """
    identity = np.asarray(real.labels, np.int64)
    unknown = np.full(len(released), -1, np.int64)
    label_of = {name: label for label, name in enumerate(real.identities)}
    if links is not None:
        return _follow_links(real, released, links, label_of)
    labels = np.array([label_of.get(name, -1) for name in released.identities] + [-1])  # the last for label −1
    known = labels[np.asarray(released.labels, np.int64)]
    notes = [
        'Without links it is not known which photo a face was made from; equal image keys are not taken as a sign.'
    ]
    anew = _numbered_anew(released)
    if anew or (known < 0).all():
        why = (
            f'Identities in {released.path.name} were numbered anew when it was made: links alone say who is who.'
            if anew
            else 'No identity has the same name in both sets.'
        )
        return MatchedSets(identity, unknown, unknown, 'none', (*notes, why))
    equal = [name for name in released.identities if name in label_of]
    if all(name.isdecimal() for name in equal):
        notes.append(
            'All equal names of identities are numbers. If the released set was numbered anew they mean nothing, and '
            'leakage is measured as chance: then give links.'
        )
    notes += _left_out(known, 'bear a name that the real set does not have')
    return MatchedSets(identity, known, unknown, 'names', tuple(notes))


def _numbered_anew(released: FaceSource) -> bool:
    folder = released.path if released.path.is_dir() else released.path.parent  # of a train.rec
    return isinstance(released, MaskedSource) or release_parts(folder) is not None


def _follow_links(real: FaceSource, released: FaceSource, links: str | Path, label_of: dict[str, int]) -> MatchedSets:
    keys, names = read_links(links, released.keys)
    photo_of = {key: number for number, key in enumerate(real.keys)}
    source = np.array([photo_of.get(key, -1) for key in keys], np.int64)
    known = np.array([label_of.get(name, -1) for name in names], np.int64)
    identity = np.asarray(real.labels, np.int64)
    wrong = (source >= 0) & (identity[source] != known) & (identity[source] >= 0)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f'{links} says that {released.keys[first]} was made from {keys[first]} of {names[first]!r}, and that is a '
            f'photo of {real.identities[identity[source[first]]]!r} in {real.path}; so are {int(wrong.sum())} in all. '
            'Give the links of this very release and its real set.'
        )
    if not real.identities:
        notes = ['The real set has no identities.']
    else:
        notes = _left_out(known, 'were made from photos of people that the real set does not have, by the links')
    lost = int((source < 0).sum())
    if lost == len(source):
        notes.append(
            'No photo that the links name is in the real set, so that the same source cannot be left out. Where the '
            'links are of another copy of the set, its labels too may be others: then leakage is measured as chance.'
        )
    elif lost:
        notes.append(f'{lost:,} released faces were made from photos that the real set does not have.')
    return MatchedSets(identity, known, source, 'links', tuple(notes))


def _left_out(known: np.ndarray, what: str) -> list[str]:
    count = int((known < 0).sum())
    return [f'{count:,} of {len(known):,} released faces {what}.'] if count else []


def own_identities(matched: MatchedSets, share: float, seed: int) -> np.ndarray:
    """The identities that an attacker owns and learns from, which no evaluation asks about.

    Args:
        matched: The sets.
        share: Of the drawn identities, in [0, 1); rounded down.
        seed: Of the choice.

    Returns:
        Identities, ascending.

    Raises:
        ValueError: Another share.
    """
    if not 0 <= share < 1:
        raise ValueError(f'An attacker owns a share of {share} of the identities. Give one from 0 to below 1.')
    drawn = matched.drawn
    chosen = np.random.default_rng(keyed_seed('owned identities', seed)).permutation(len(drawn))
    return np.sort(drawn[chosen[: int(share * len(drawn))]])


def memberships(matched: MatchedSets, owned: np.ndarray) -> np.ndarray:
    """Whether the person on each photo is in the released set: 1, 0, or −1 where nobody asks; (N,) int8.

    Nobody asks about people whom the attacker owns, or whom the real set does not name.

    Paper gap: where nothing says who is who ('none'), every photo counts as a member's: the real set is what the
    release is said to be made from, and only people of another set are known not to be in it.

    Args:
        matched: The sets.
        owned: Identities that the attacker owns.
    """
    identity = matched.real_identity
    if matched.by == 'none':
        return np.ones(len(identity), np.int8)
    member = np.isin(identity, matched.released_people).astype(np.int8)
    member[(identity < 0) | np.isin(identity, owned)] = -1
    return member


class OwnedPairs(Dataset):
    """Pairs of a photo and a released face that an attacker owns: (photo, released face, identity) by index.

    Where sources are known, a pair is a released face and the photo it was made from; faces whose photo the real set
    does not have are in no pair. Else it is a released face and one photo of the same person, chosen by the face's key.

    Args:
        real: The photos.
        released: The released faces.
        matched: What `match_sets` found of these two.
        identities: Those that the attacker owns.

    Attributes:
        identities: Of every pair, (P,) int64, on the real set's numbering.
        photos: Number of its photo, (P,) int64.
        faces: Number of its released face, (P,) int64, ascending.
    """

    def __init__(self, real: FaceSource, released: FaceSource, matched: MatchedSets, identities: np.ndarray) -> None:
        owned = np.isin(matched.released_identity, identities) & (matched.released_identity >= 0)
        if matched.sources:
            self.faces = np.flatnonzero(owned & (matched.released_source >= 0))
            self.photos = matched.released_source[self.faces]
        else:
            self.faces = np.flatnonzero(owned)
            order = np.argsort(matched.real_identity, kind='stable')
            people = matched.released_identity[self.faces]
            first, after = (np.searchsorted(matched.real_identity[order], people, side) for side in ('left', 'right'))
            draws = [keyed_seed('owned pair', released.keys[face]) for face in self.faces.tolist()]
            place = [draw % count for draw, count in zip(draws, (after - first).tolist(), strict=True)]
            self.photos = order[first + np.array(place, np.int64)]
        self.identities = matched.released_identity[self.faces]
        self._photos, self._faces = FaceImages(real, self.photos), FaceImages(released, self.faces)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Photo (3, H, H) uint8 RGB, released face (3, h, h) uint8 RGB, identity.

        Raises:
            ValueError: One of them cannot be read, or is no square of 112 pixels or more.
        """
        images = (faces[i][0].round().to(torch.uint8) for faces in (self._photos, self._faces))  # masked faces: float32
        return *images, int(self.identities[i])
