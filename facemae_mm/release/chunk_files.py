"""Encoded chunks of a release on their way to it: one file each, complete or not there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..whole_file import whole_file

#: Chunks in one folder.
FOLDER = 1000


@dataclass(frozen=True)
class EncodedChunk:
    """The faces of one chunk as they are released.

    Attributes:
        images: Encoded, in order; b'' where the source could not be read.
        notes: Why not; '' where it could.
        closeness: (n, 4) float32, a row of `OriginalsCheck` for each; None where none was made.
    """

    images: Sequence[bytes]
    notes: Sequence[str]
    closeness: np.ndarray | None = None


class ChunkFiles:
    """A folder of chunks, written by any process and read by one.

    Args:
        folder: Where they lie; made with the first, for the owner alone: notes name source faces.
        made_by: What decides about them. A process of an export that its launcher did not end may still write, after
            another one was begun in the same place: its chunks are not taken.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder
        self.made_by = made_by

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f'{chunk // FOLDER:05d}' / f'{chunk:08d}.npz'

    def written(self, chunks: int) -> np.ndarray:
        """Which of the first `chunks` are there, (chunks,) bool."""
        there = np.zeros(chunks, bool)
        for file in self.folder.glob('*/*.npz'):
            if file.stem.isdecimal() and int(file.stem) < chunks:
                there[int(file.stem)] = True
        return there

    def write(self, chunk: int, encoded: EncodedChunk) -> None:
        """Writes a chunk; its bytes are on the disk when this returns."""
        path = self.path(chunk)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        closeness = {} if encoded.closeness is None else dict(closeness=encoded.closeness)
        with whole_file(path) as file:
            np.savez(
                file,
                images=np.frombuffer(b''.join(encoded.images), np.uint8),
                sizes=np.array([len(image) for image in encoded.images]),
                notes=np.array(encoded.notes),
                made_by=np.array(self.made_by),
                **closeness,
            )

    def read(self, chunk: int, faces: int) -> EncodedChunk:
        """Reads a chunk of so many faces.

        Raises:
            ValueError: It is damaged, or of another export; with what to do.
        """
        path = self.path(chunk)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images, ends = arrays['images'].tobytes(), arrays['sizes'].cumsum().tolist()
                notes, closeness = arrays['notes'].tolist(), arrays.get('closeness')
                made_by = arrays['made_by'].item()
            if not len(ends) == len(notes) == faces or ends[-1] != len(images):
                raise ValueError(f'it holds {len(ends)} faces, not {faces}')
        except Exception as error:  # damaged bytes raise whatever they lead to
            raise ValueError(
                f'{path} is damaged: {error}. Delete it: the same command makes it anew and goes on.'
            ) from error
        if made_by != self.made_by:
            raise ValueError(
                f'{path} was written by a process of another export, which was still running. See that none does, and '
                'delete the file: the same command makes it anew and goes on.'
            )
        return EncodedChunk([images[a:b] for a, b in zip([0, *ends], ends)], notes, closeness)
