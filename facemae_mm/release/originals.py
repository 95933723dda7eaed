"""How close each released face is to the real one it was made from, and to others of the same person."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ..datasets import LoadFace
from ..datasets.face_source import FaceSource
from ..datasets.masked_dataset import MaskedSource
from ..models.embedders import FaceEmbedder
from .plan import ReleasePlan

#: Columns: PSNR (dB) and cosine of embeddings, to the own source and to another image of the same person.
PSNR_OWN, PSNR_OTHER, PHI_OWN, PHI_OTHER = range(4)

#: Of an image that is equal to its source, whose error is none: that of half a level everywhere.
HIGHEST_PSNR = 20 * np.log10(255 / 0.5)

QUANTILES = dict(minimum=0.0, quantile_01=0.01, median=0.5, quantile_99=0.99, maximum=1.0)


class OriginalsCheck:
    """Compares the faces of a chunk with their originals.

    The other image of a person is the next one in the chunk, in a circle; where the chunk has no other, there is none.

    Args:
        originals: The real faces.
        plan: Which source stands where.
        phi: Embeds both; on its device.
        mask: Of the release, which knows the keys that a masked dataset has.
        chunk_size: Faces that are embedded at once, filled up where there are fewer.

    Raises:
        ValueError: A masked dataset that was made with another secret.
    """

    def __init__(self, originals: FaceSource, plan: ReleasePlan, phi: FaceEmbedder, mask, chunk_size: int) -> None:
        self.originals = originals
        self.plan = plan
        self.phi = phi
        self.chunk_size = chunk_size
        self.load = LoadFace()
        keys = originals.keys
        source = plan.dataset.source
        if isinstance(source, MaskedSource):
            if mask.commitment != source.info['mask']['commitment']:
                raise ValueError(
                    f'--originals: {source.path} was masked with another secret, so nobody can tell which face is '
                    'which. Give the file of that secret: --cfg-options mask_secret=PATH.'
                )
            keys = map(mask.image_pseudonym, keys)
        self._image = {key: image for image, key in enumerate(keys)}

    def compare(self, places: Sequence[int], faces: torch.Tensor) -> np.ndarray:
        """Closeness of released faces.

        Args:
            places: Where they stand in the release.
            faces: (n, 3, H, H) uint8 RGB.

        Returns:
            (n, 4) float32: PSNR and cosine, own and other (see above); NaN where there is no other.

        Raises:
            ValueError: A face whose original is not among them, or cannot be read.
        """
        originals = torch.stack([self._original(key, faces.shape[-1]) for key, _ in self.plan.names(places)])
        faces = faces.cpu()
        other = _next_of_same(self.plan.labels[places])
        found = np.full((len(faces), 4), np.nan, np.float32)
        released, real = self._embed(faces), self._embed(originals)
        for column, to in ((PSNR_OWN, np.arange(len(faces))), (PSNR_OTHER, other)):
            has = np.flatnonzero(to >= 0)
            error = (faces[has].float() - originals[to[has]].float()).square().mean((1, 2, 3)).sqrt()
            found[has, column] = (20 * torch.log10(255 / error)).clamp(max=HIGHEST_PSNR)
            found[has, column + 2] = (released[has] * real[to[has]]).sum(1)
        return found

    def _original(self, key: str, size: int) -> torch.Tensor:
        if key not in self._image:
            raise ValueError(
                f'--originals {self.originals.path} holds no {key!r}, from which a face was made. Give the faces of '
                'which deploy_faces was made, with the same keys.'
            )
        image = self._image[key]
        name = f'{self.originals.path}:{self.originals.keys[image]}'
        face = self.load(dict(img_bytes=self.originals.read(image), img_path=name))['img']
        if face.shape[:2] != (size, size):
            face = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(face[..., ::-1].transpose(2, 0, 1)))

    def _embed(self, faces: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (n, D); as many faces at once whatever n is."""
        filled = torch.zeros(self.chunk_size, *faces.shape[1:], dtype=torch.uint8)
        filled[: len(faces)] = faces
        with torch.inference_mode():
            embeddings = self.phi(filled.to(self.phi.mean.device))[-1][: len(faces)].cpu()
        return torch.nn.functional.normalize(embeddings)


def _next_of_same(labels: np.ndarray) -> np.ndarray:
    """The next place with the same label, in a circle; −1 where there is none. Labels ascend."""
    _, start, count = np.unique(labels, return_index=True, return_counts=True)
    place = np.arange(len(labels))
    first, number = np.repeat(start, count), np.repeat(count, count)
    return np.where(number > 1, first + (place - first + 1) % number, -1)


def summarise(closeness: np.ndarray) -> dict:
    """What a manifest says of all faces' closeness.

    Args:
        closeness: (N, 4), rows of `OriginalsCheck.compare`.

    Returns:
        By 'psnr' and 'phi_similarity', by 'own' and 'other': `QUANTILES`, and the number of 'images'.
    """

    def quantiles(column: np.ndarray) -> dict:
        column = column[~np.isnan(column)]
        if not len(column):
            return dict(images=0)
        values = {name: round(float(np.quantile(column, q)), 3) for name, q in QUANTILES.items()}
        return dict(images=len(column)) | values

    return dict(
        psnr=dict(own=quantiles(closeness[:, PSNR_OWN]), other=quantiles(closeness[:, PSNR_OTHER])),
        phi_similarity=dict(own=quantiles(closeness[:, PHI_OWN]), other=quantiles(closeness[:, PHI_OTHER])),
    )
