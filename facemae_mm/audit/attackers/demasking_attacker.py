"""An attacker who trains a network to turn released faces back into photos."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from mmpretrain.registry import TASK_UTILS

from .demasking_network import DemaskingEmbedder, DemaskingNetwork, to_crop
from .learning_pairs import LearningPairs
from .trained_attacker import TrainedAttacker
from .training import flip_some, info_nce


@TASK_UTILS.register_module()
class DemaskingAttacker(TrainedAttacker):
    """Trains a small U-Net to turn released faces back into photos, and embeds what it gives.

    Its loss is the mean absolute difference to the photo in units of 127.5, and `closeness` times the symmetric
    InfoNCE between the restored face and the photo under the embedder, over the people of a batch: closeness to the
    own photo alone is had by the mean face.

    Args:
        embedder: Arguments of `open_embedder`; it stays as it is.
        faces: Budget: released faces seen.
        closeness: Weight of InfoNCE; 0 for pixels alone.
        identities: In a batch, a pair each; at most those that there are.
        lr: Peak learning rate.
        temperature: Of InfoNCE.
        held_out: Share of the owned identities that tells when to stop.
        seed: Of what is drawn.

    Raises:
        ValueError: A setting out of range.
    """

    def __init__(
        self,
        embedder: Mapping,
        faces: int = 5000,
        closeness: float = 0.2,
        identities: int = 16,
        lr: float = 1e-3,
        temperature: float = 0.1,
        held_out: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(embedder, faces, identities, lr, temperature, held_out, seed)
        if faces < identities or identities < 2 or closeness < 0 or lr <= 0 or temperature <= 0:
            raise ValueError(
                f'DemaskingAttacker: {identities=} must be 2 or more, {faces=} that or more, {closeness=} 0 or more, '
                f'{lr=} and {temperature=} above 0. The defaults are 16, 5,000, 0.2, 1e-3 and 0.1.'
            )
        self.closeness = closeness
        self._trained: DemaskingEmbedder | None = None

    def settings(self) -> dict:
        return super().settings() | dict(closeness=self.closeness)

    @property
    def released_network(self) -> DemaskingEmbedder:
        if self._trained is None:
            raise RuntimeError('DemaskingAttacker: nothing is learnt yet. Call fit first.')
        return self._trained

    def learn(self, pairs: LearningPairs, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        attack = DemaskingEmbedder(DemaskingNetwork(), self.embedder).to(device)

        def loss(batches: Iterator[np.ndarray], generator: np.random.Generator) -> torch.Tensor:
            photos, released = (to_crop(side.to(device)) for side in pairs.load(next(batches)[:, 0]))
            both = flip_some(torch.cat([photos, released], 1), generator)  # a face and its photo alike
            photos, restored = both[:, :3], attack.restore(both[:, 3:])
            value = (restored - photos).abs().mean() / 127.5
            if self.closeness:
                with torch.no_grad():
                    target = self.embedder(photos)[-1]
                value = value + self.closeness * info_nce(self.embedder(restored)[-1], target, self.temperature)
            return value

        score = partial(pairs.held_out_auc, self.embedder, attack)
        report = self.train(pairs, attack.network, loss, score, 1, 'de-masking')
        return attack.network.state_dict(), report

    def use(self, learnt: Mapping[str, torch.Tensor], device: torch.device) -> None:
        network = DemaskingNetwork()
        network.load_state_dict(learnt)
        self._trained = DemaskingEmbedder(network.requires_grad_(False).eval(), self.embedder).to(device)
