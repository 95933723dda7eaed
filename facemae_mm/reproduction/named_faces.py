"""A set of faces under the name that a figure gives it, and which photo and whom each face was made from."""

import re
from pathlib import Path

import numpy as np

from ..datasets.face_source import open_faces
from ..datasets.masked_dataset import MaskedSource
from ..datasets.release_source import release_parts
from ..evaluation.links import LINKS, read_links
from ..randomness import keyed_seed

#: Names that fit into a legend and a file name.
NAME = re.compile(r'[\w][\w .+%-]{0,23}')


class NamedFaces:
    """A set of faces, its name, and the names that its owner knows its photos and people by.

    Sets of one owner meet on these names: the same photo has the same name in each.

    Args:
        text: NAME=FACES or NAME=FACES:LINKS as on a command line. FACES is anything that `open_faces` reads. LINKS is
            the owner's table of a release; one that lies in `FACES.private` is found without being named.

    Attributes:
        name: Of the set.
        source: The faces.
        by: How photos and people were named: 'links', 'names' (the set's own image keys and folders), or 'none': the
            set numbers anew, and its names mean nothing in another.
        photos: What each face was made from, (N,) str.
        people: Whom it shows or stands for, (N,) str; where a set knows nobody, each image is somebody else.

    Raises:
        OSError: A part cannot be read.
        ValueError: Another form, a name that does not fit into a legend, or faces or links that are none.
    """

    def __init__(self, text: str) -> None:
        self.name, equals, rest = text.partition('=')
        if not equals or not NAME.fullmatch(self.name):
            raise ValueError(
                f'{text!r} is not NAME=FACES. NAME is 1 to 24 letters, digits, blanks and _ . + % -, such as facemae.'
            )
        faces, colon, links = (rest, '', '') if Path(rest).exists() else rest.rpartition(':')
        self.source = source = open_faces(faces if colon else rest)
        folder = source.path.absolute()
        folder = folder if folder.is_dir() else folder.parent
        beside = folder.with_name(f'{folder.name}.private') / LINKS
        if colon or beside.is_file():
            self.by = 'links'
            photos, people = read_links(links if colon else beside, source.keys)
        else:
            anew = isinstance(source, MaskedSource) or release_parts(folder) is not None
            self.by = 'none' if anew else 'names'
            mark = f'{self.name}:' if anew else ''
            photos = [f'{mark}{key}' for key in source.keys]
            people = [f'{mark}{source.identities[label]}' for label in source.labels] if source.identities else photos
        self.photos, self.people = np.array(photos), np.array(people)

    def draw(self, most_per_person: int, seed: int) -> np.ndarray:
        """Faces in an order that takes one of every person, then a second one of every person, and so on.

        The order of people's photos, and of people, is drawn by the names alone, so that sets made from the same photos
        are drawn alike.

        Args:
            most_per_person: Further photos of a person are left out.
            seed: Of the draw.

        Returns:
            Places in the set, (n,) int64, n ≤ N.
        """
        chance = np.array([keyed_seed('drawn faces', seed, photo) for photo in self.photos.tolist()], np.uint64)
        person = np.unique(self.people, return_inverse=True)[1]
        order = np.lexsort((chance, person))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(person[order], person[order])
        order = np.lexsort((chance, rank))
        return order[rank[order] < most_per_person]


def open_named_faces(texts: list[str]) -> list[NamedFaces]:
    """Opens several sets.

    Raises:
        OSError: As `NamedFaces`.
        ValueError: As `NamedFaces`; two sets of one name.
    """
    sets = [NamedFaces(text) for text in texts]
    names = [faces.name for faces in sets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'Two sets are named {name!r}. Give each a name of its own.')
    return sets
