"""Embeddings of a set of faces, sharded over processes, with the same result on any number of them."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, gather_object, get_dist_info
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..alignment import ARCFACE_SIZE
from ..datasets.face_source import FaceSource
from ..datasets.load_face import LoadFace
from ..models.embedders import FaceEmbedder
from .embedding_metric import check_embeddings


class FaceImages(Dataset):
    """Images of a source as an embedder takes them.

    Args:
        source: The faces, aligned.
        indices: Which of them, (N,).
    """

    def __init__(self, source: FaceSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices
        self.load = LoadFace()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        """A face (3, H, H) RGB, uint8, or float32 of a masked dataset, and its name for messages.

        Raises:
            ValueError: It cannot be read, or is no square of 112 pixels or more.
        """
        index = int(self.indices[i])
        name = f'{self.source.path}:{self.source.keys[index]}'
        image = self.load(dict(img_bytes=self.source.read(index), img_path=name))['img']
        height, width = image.shape[:2]
        if height != width or width < ARCFACE_SIZE:
            raise ValueError(
                f'{name} is {width}×{height} pixels; aligned faces are squares of {ARCFACE_SIZE} pixels or more. '
                'Align the faces first: tools/prepare_faces.py does it.'
            )
        return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1), name


def embed_faces(
    faces: Dataset,
    phi: FaceEmbedder,
    flip: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    title: str = 'embed',
) -> tuple[np.ndarray, np.ndarray] | None:
    """Embeds every image of a set; each process of a group takes whole batches in turn.

    Args:
        faces: (face (3, H, H) RGB in [0, 255], name) by index, as `FaceImages`.
        phi: On the device where it is to run.
        flip: Give f(x) + f(flip x), flipped left to right, as InsightFace verifies faces; else f(x).
        batch_size: Images at once.
        workers: Processes that read images, for each process that embeds.
        title: Of the progress bar.

    Returns:
        Raw embeddings (N, D) and the mean norm of their passes (N,), float32, on the first process; None on others.

    Raises:
        ValueError: On every process, where one of them cannot read or embed an image.
    """
    rank, processes = get_dist_info()
    batches = [range(i, min(i + batch_size, len(faces))) for i in range(0, len(faces), batch_size)]
    loader = DataLoader(_Batches(faces, batches[rank::processes]), batch_size=None, num_workers=workers)
    rows, norms, error = [], [], None
    try:
        with tqdm(total=len(faces), desc=title, unit='image', mininterval=1, disable=rank > 0) as bar:
            for number, (images, names) in enumerate(loader):
                if isinstance(images, Exception):
                    raise images
                images = images.to(phi.mean.device)
                with torch.inference_mode():
                    passes = [phi(images)[-1]] + ([phi(images.flip(-1))[-1]] if flip else [])
                    rows.append(sum(passes).cpu().numpy())
                    norms.append(torch.stack([embedding.norm(dim=1) for embedding in passes]).mean(0).cpu().numpy())
                check_embeddings(rows[-1], names)
                bar.update(sum(map(len, batches[number * processes : (number + 1) * processes])))  # all are as far
    except (OSError, ValueError) as caught:
        error = caught
    parts = gather_object((rows, norms, error), dst=0)
    errors = [next((part[2] for part in parts if part[2]), None) if rank == 0 else None]
    broadcast_object_list(errors)
    if errors[0]:
        raise errors[0]
    if rank:
        return None
    turns = [(parts[i % processes], i // processes) for i in range(len(batches))]
    return tuple(np.concatenate([part[kind][place] for part, place in turns]) for kind in (0, 1))


class _Batches(Dataset):
    """Whole batches (images (B, 3, H, H), names); an error in place of images, which keeps its words in a worker."""

    def __init__(self, faces: Dataset, batches: Sequence[range]) -> None:
        self.faces = faces
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor | Exception, list[str]]:
        try:
            images, names = zip(*(self.faces[i] for i in self.batches[number]))
            for image, name in zip(images, names):
                if image.shape != images[0].shape:
                    raise ValueError(
                        f'{name} is {image.shape[2]}×{image.shape[1]} pixels, {names[0]} {images[0].shape[2]}×'
                        f'{images[0].shape[1]}. Bring all faces of a set to one size (tools/prepare_faces.py).'
                    )
        except (OSError, ValueError) as error:
            return error, []
        return torch.stack(images), list(names)
