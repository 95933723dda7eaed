"""Domain mixup: synthetic faces, each blended with a real one (SynFace, section 3.3)."""

from collections import Counter
from collections.abc import Sequence

import torch
from mmengine.registry import FUNCTIONS
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from ..randomness import keyed_seed
from .face_dataset import FaceRecordDataset
from .face_source import open_faces

#: λ is one of 0, 1/20, …, 1, each as likely, as in SynFace.
STEPS = 20


@DATASETS.register_module()
class DomainPairs(Dataset):
    """Faces of one set, each with a labelled face of another, for `mix_domains`.

    Real people are taken by the hash of their names among those with two images or more, and labelled after the
    synthetic identities. In each epoch every real face has about as many partners, in a new order.

    Args:
        synthetic: Config of a `FaceRecordDataset`.
        real: Config of a `FaceRecordDataset`, without `subset`.
        real_people: How many.
        min_images: Of each real person.

    Attributes:
        datasets: Both sets.

    Raises:
        ValueError: Fewer real people.
    """

    def __init__(self, synthetic: dict, real: dict, real_people: int, min_images: int = 2) -> None:
        source = open_faces(real['source'])
        images = Counter(source.identities[label] for label in source.labels)
        people = sorted((name for name in images if images[name] >= min_images), key=keyed_seed)
        if not 0 < real_people <= len(people):
            raise ValueError(
                f'DomainPairs: {real_people} real people are asked for; {source.path} has {len(people)} with '
                f'{min_images} images or more. Set real_people to 1 … {len(people)}.'
            )
        self.synthetic, self.real = self.datasets = [
            DATASETS.build({'type': FaceRecordDataset, **synthetic}),
            DATASETS.build({'type': FaceRecordDataset, **real, 'subset': dict(identities=people[:real_people])}),
        ]

    @property
    def metainfo(self) -> dict:
        """Empty, as of FaceRecordDataset."""
        return {}

    def full_init(self) -> None:
        """For MMEngine; everything is read at construction already."""

    def __len__(self) -> int:
        return len(self.synthetic)

    def __getitem__(self, idx: int) -> dict:
        """Both samples as their pipelines leave them, and a number that (seed, epoch, idx) decide."""
        seed, epoch, _ = self.synthetic._keys(idx)
        generator = torch.Generator().manual_seed(keyed_seed('partners', seed, epoch))
        partners = torch.randperm(len(self.real), generator=generator)
        real = self.real[int(partners[idx % len(partners)])]
        label = real['data_samples'].gt_label + len(self.synthetic.identities)
        real['data_samples'].set_gt_label(label)
        return dict(synthetic=self.synthetic[idx], real=real, draw=keyed_seed('ratio', seed, epoch, idx))


@FUNCTIONS.register_module()
def mix_domains(pairs: Sequence[dict]) -> dict:
    """A batch of `DomainPairs`, x = λ · synthetic + (1 − λ) · real, with one λ for all of it, as SynFace draws it.

    Returns:
        inputs: (3, H, W) float32 each, [0, 255]; data_samples: the synthetic faces', with `real_label` and λ as
        `mix_ratio`.
    """
    ratio = pairs[0]['draw'] % (STEPS + 1) / STEPS
    inputs, samples = [], []
    for pair in pairs:
        synthetic, real = pair['synthetic'], pair['real']
        inputs.append(ratio * synthetic['inputs'].float() + (1 - ratio) * real['inputs'].float())
        sample = synthetic['data_samples']
        sample.set_field(real['data_samples'].gt_label, 'real_label', dtype=torch.Tensor)
        sample.set_field(ratio, 'mix_ratio', dtype=float)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
