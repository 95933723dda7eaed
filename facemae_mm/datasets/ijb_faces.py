"""The faces of IJB-B and IJB-C, aligned by the landmarks of their list."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset

from .face_detection import crop_face
from .ijb_protocol import IJBProtocol
from .load_face import decode_face


@DATASETS.register_module()
class IJBFaces(Dataset):
    """Every face of IJB-B or IJB-C in the order of its list, warped to the ArcFace template at 112×112.

    The warp is that of InsightFace's evaluation and of its `norm_crop`: the older 96×112 template, to whose x
    coordinates that evaluation adds 8 pixels, is the template of `norm_crop`.

    A sample holds img (112, 112, 3) uint8 BGR, img_path, img_key (the image's name in the list) and sample_idx.

    Args:
        path: The folder with loose_crop/ and meta/, as `IJBProtocol` takes it.
        pipeline: Transforms, from LoadFace to PackInputs.

    Attributes:
        protocol: The lists.

    Raises:
        FileNotFoundError: A list, loose_crop/ or an image in it is missing.
        ValueError: A damaged list.
    """

    def __init__(self, path: str | Path, pipeline: Sequence = ()) -> None:
        self.protocol = IJBProtocol(path)
        self.folder = self.protocol.path / 'loose_crop'
        self.pipeline = Compose([TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline])
        self._check_images()

    def _check_images(self) -> None:
        """A name that is no file of the folder itself is missing too: no list leads out of it."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f'{self.folder} does not exist. Put the images of {self.protocol.name} there.')
        there = set(os.listdir(self.folder))
        missing = [number for number, name in enumerate(self.protocol.images, 1) if name not in there]
        if missing:
            raise FileNotFoundError(
                f'{self.folder} lacks {len(missing)} of the {len(self)} images of {self.protocol.name}'
                f'_name_5pts_score.txt, first {self.protocol.images[missing[0] - 1]} (line {missing[0]}). Unpack the '
                'images completely: a result without some of them compares with no other.'
            )

    @property
    def metainfo(self) -> dict:
        """What MMEngine writes into checkpoints: no names belong here."""
        return dict(name=self.protocol.name, images=len(self))

    def full_init(self) -> None:
        """For MMEngine, which calls it before use; everything is read at construction already."""

    def __len__(self) -> int:
        return len(self.protocol.images)

    def name(self, idx: int) -> str:
        """For messages."""
        return str(self.folder / self.protocol.images[idx])

    def read(self, idx: int) -> np.ndarray:
        """Face `idx`, (112, 112, 3) uint8 BGR, black beyond the image's edge.

        Raises:
            ValueError: The image is damaged.
        """
        image = decode_face((self.folder / self.protocol.images[idx]).read_bytes(), self.name(idx))
        return crop_face(image, self.protocol.points[idx])[0]

    def get_data_info(self, idx: int) -> dict:
        """One face before the pipeline."""
        if not 0 <= idx < len(self):
            raise IndexError(f'IJBFaces: index {idx} is not in [0, {len(self)}).')
        key = self.protocol.images[idx]
        return dict(img=self.read(idx), img_path=self.name(idx), img_key=key, sample_idx=idx)

    def __getitem__(self, idx: int) -> dict:
        return self.pipeline(self.get_data_info(idx))
