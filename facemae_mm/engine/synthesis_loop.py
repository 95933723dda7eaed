"""Draws a set of faces of synthetic identities: SynFace's data in miniature."""

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, TestLoop
from mmpretrain.registry import LOOPS
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..datasets import open_faces
from ..datasets.resumable import PartialFolder, keys_digest, sha256_file
from ..models.gan import IdentityGAN, mix_codes
from ..randomness import keyed_seed

#: What the first of two people contributes to an identity. SynFace draws from 0, 0.05, …, 1; at the ends the identity
#: would be one real person's own.
RATIOS = np.arange(1, 20) / 20

#: Faces that are drawn at once.
CHUNK = 16


@LOOPS.register_module()
class SynthesisLoop(TestLoop):
    """Draws faces with `IdentityGAN` into a folder of identity folders, `00000/0000.png` and so on, 112×112.

    The test loader gives the faces of the people that the GAN was trained on. An identity is the mix of the mean codes
    of two of them, or the mean code of one; each face of it has a z of its own. Which people, ratio and z depend on
    (seed, number of the identity) alone. The folder appears under its name when it is complete and is then left alone;
    `OUT.private/settings.json` says how it was made, and nothing says from whom.

    Paper gap: SynFace draws another partner and ratio for each face and trains on both labels, weighted; a set of faces
    holds one label a face, so that here an identity keeps its two people and their ratio, as FaceMAE's section 4.2
    describes it.

    Args:
        runner: Of the test; its model is an `IdentityGAN`.
        dataloader: Of the training people's faces.
        evaluator: Of no metrics.
        out_dir: Folder to write.
        like: A set whose numbers of images are taken, identity by identity; none of its images is read. None where both
            numbers are given.
        identities: How many; 0 takes as many as `like`.
        images: Of each identity; 0 takes those of `like`, from the start again where it has fewer identities.
        identity_mixup: Mix two people; False takes one person each.
        seed: As above.

    Raises:
        ValueError: Another model, metrics, several processes, numbers that are not given, more identities than people.
        FileExistsError: The folder exists with other settings.
        OSError: A full disk, and the like.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        out_dir: str,
        like: str | None = None,
        identities: int = 0,
        images: int = 0,
        identity_mixup: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        if not isinstance(runner.model, IdentityGAN) or get_world_size() > 1 or self.evaluator.metrics:
            raise ValueError(
                f'SynthesisLoop: needs an IdentityGAN, not a {type(runner.model).__name__}, one process, and '
                'test_evaluator = [] without --out.'
            )
        self.out_dir = out_dir
        self.counts = image_counts(like, identities, images)
        self.identity_mixup, self.seed = identity_mixup, seed

    def run(self) -> dict:
        """Draws; nothing is measured."""
        faces = self.dataloader.dataset
        parents = draw_parents(len(faces.identities), len(self.counts), self.identity_mixup, self.seed)
        settings = dict(
            model_sha256=sha256_file(self.runner._load_from) if self.runner._load_from else None,
            phi_sha256=self.runner.model.phi.sha256,
            people=len(faces.identities),
            faces_sha256=keys_digest(key for key, _ in faces.names()),
            counts=self.counts,
            identity_mixup=self.identity_mixup,
            seed=self.seed,
            threads=torch.get_num_threads(),
        )
        self.runner.call_hook('before_test')
        folder = PartialFolder(self.out_dir, settings, accept_complete=True)
        if not folder.complete:
            codes = self._mean_codes()
            with folder.writing():
                for number in tqdm(range(len(self.counts)), desc='drawing', unit='identity', mininterval=1):
                    self._draw_identity(folder.path, number, codes, parents[number])
                folder.finish()
        self.runner.call_hook('after_test')
        return {}

    @torch.no_grad()
    def _mean_codes(self) -> Tensor:
        """Mean code of each person's faces, unit rows (people, D)."""
        model = self.runner.model.eval()
        total = torch.zeros(len(self.dataloader.dataset.identities), model.phi.embedding_dim)
        for batch in tqdm(self.dataloader, desc='codes', unit='batch', mininterval=1):
            for sample in model.test_step(batch):
                total[int(sample.gt_label)] += sample.code.cpu()
        return torch.nn.functional.normalize(total)

    @torch.no_grad()
    def _draw_identity(self, folder: Path, number: int, codes: Tensor, parents: tuple[int, int, float]) -> None:
        """Writes the faces of one identity."""
        first, second, ratio = parents
        code = mix_codes(codes[first : first + 1], codes[second : second + 1], ratio)
        place, model = folder / f'{number:05d}', self.runner.model
        place.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(keyed_seed('z', self.seed, number))
        device = model.code_mean.device
        for start in range(0, self.counts[number], CHUNK):
            z = torch.randn(CHUNK, model.generator.z_dim, generator=generator)
            drawn = model.draw(z.to(device), code.to(device).expand(CHUNK, -1)).round().byte().cpu()
            for image, face in enumerate(drawn[: self.counts[number] - start], start):
                png = cv2.imencode('.png', face.flip(0).permute(1, 2, 0).numpy())[1]
                (place / f'{image:04d}.png').write_bytes(png.tobytes())


def image_counts(like: str | None, identities: int, images: int) -> list[int]:
    """How many images each synthetic identity has; see `SynthesisLoop`."""
    if min(identities, images) < 0 or (like is None and not (identities and images)):
        raise ValueError(
            f'SynthesisLoop: {identities=} and {images=} without a set to take them from ({like=}). Give two positive '
            'numbers, or the set.'
        )
    if identities and images:
        return [images] * identities
    found = Counter(open_faces(like).labels.tolist())
    if not found or -1 in found:
        raise ValueError(f'SynthesisLoop: {like} knows no identities. Give a folder of identity folders, or numbers.')
    own = [images or found[label] for label in sorted(found)]
    return list(islice(cycle(own), identities or len(own)))


def draw_parents(people: int, identities: int, mixup: bool, seed: int) -> Sequence[tuple[int, int, float]]:
    """Whose codes make each identity: (first, second, ratio of the first).

    Args:
        people: With a code.
        identities: Different ones: no two have the same parents.
        mixup: Two people and a ratio of `RATIOS`; else one person, twice, at ratio 1.
        seed: Decides.

    Raises:
        ValueError: More identities than people, or than pairs of them.
    """
    most = people * (people - 1) // 2 if mixup else people
    if identities > most:
        raise ValueError(
            f'SynthesisLoop: {people} people make {most} identities at most, not {identities} ({mixup=}). Ask for '
            'fewer, or give more training faces.'
        )
    if not mixup:
        order = np.random.default_rng(keyed_seed('parents', seed)).permutation(people)
        return [(int(person), int(person), 1.0) for person in order[:identities]]
    parents, seen = [], set()
    for number in range(identities):
        rng = np.random.default_rng(keyed_seed('parents', seed, number))
        while (pair := frozenset(both := rng.choice(people, 2, replace=False).tolist())) in seen:
            pass
        seen.add(pair)
        parents.append((*both, float(rng.choice(RATIOS))))
    return parents
