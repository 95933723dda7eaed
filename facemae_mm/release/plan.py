"""Which face of a dataset stands where in a release, before any is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets import FaceMask, FaceRecordDataset
from ..datasets.masked_dataset import MaskedSource
from ..datasets.masking import opaque_order

#: Faces that are named together: numbers of Python take four times the memory of NumPy's.
BLOCK = 1 << 16


@dataclass(frozen=True)
class ReleasePlan:
    """The faces of a release in their order, which carries nothing of the source.

    Attributes:
        dataset: The faces.
        order: Items of the dataset in the order of the release, (N,) int64.
        labels: Identity of each of them, counted in the order of the release, (N,) int64.
    """

    dataset: FaceRecordDataset
    order: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, dataset: FaceRecordDataset, mask: FaceMask) -> 'ReleasePlan':
        """Identities, and the faces of each, in the order of what only the owner can compute.

        A masked dataset stands in that order already: its release is that of the original faces with the same secret.

        Args:
            dataset: Faces to release.
            mask: Knows the secret.

        Raises:
            ValueError: A masked dataset in another order.
        """
        if isinstance(dataset.source, MaskedSource):
            labels = np.asarray(dataset.labels)
            if (labels[1:] < labels[:-1]).any():
                raise ValueError(
                    f'{dataset.source.path}: the faces of a person do not stand together. Mask the originals anew.'
                )
            return cls(dataset, np.arange(len(dataset)), labels)
        keys = dataset.source.keys
        if len(dataset) != len(keys):
            keys = (dataset.source.keys[int(image)] for image in dataset.indices)
        return cls(dataset, *opaque_order(mask, keys, np.asarray(dataset.labels), dataset.identities))

    def __len__(self) -> int:
        return len(self.order)

    def names(self, places: Sequence[int]) -> Iterator[tuple[str, str]]:
        """(img_key, identity) of the source, for some places in the release."""
        for start in range(0, len(places), BLOCK):
            for item in self.order[places[start : start + BLOCK]].tolist():
                yield (
                    self.dataset.source.keys[int(self.dataset.indices[item])],
                    self.dataset.identities[int(self.dataset.labels[item])],
                )
