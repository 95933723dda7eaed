"""Training within a budget of faces, stopped where held-out identities are ranked best."""

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .attacker import CannotLearn

#: Steps over which the learning rate rises.
WARM_UP = 20


def info_nce(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018, as CLIP has it): row i of one side belongs to row i of the other.

    Args:
        x: Embeddings (N, D), of any norm.
        y: Embeddings (N, D), likewise.
        temperature: That cosines are divided by.

    Returns:
        Mean of the cross-entropies of both directions; log N where nothing is known.
    """
    logits = F.normalize(x) @ F.normalize(y).T / temperature
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def flip_some(faces: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Each face (N, 3, H, H) flipped left to right or not."""
    flipped = torch.from_numpy(generator.random(len(faces)) < 0.5).to(faces.device)
    return torch.where(flipped[:, None, None, None], faces.flip(-1), faces)


def train(
    network: nn.Module,
    loss: Callable[[], torch.Tensor],
    score: Callable[[], float],
    faces: int,
    faces_per_step: int,
    lr: float,
    title: str,
    checks: int = 5,
) -> dict[str, float]:
    """Trains by AdamW, its rate rising at first and then falling as a cosine; leaves the weights that scored best.

    The weights before the first step are among those, so that learning never makes an attacker worse on held-out
    identities than he began.

    Args:
        network: Holds what is trained.
        loss: Of the next batch.
        score: On held-out identities, the larger the better.
        faces: Budget: faces seen.
        faces_per_step: Faces that a batch shows.
        lr: Peak learning rate.
        title: Of the progress bar.
        checks: How often the score is looked at, evenly.

    Returns:
        `faces` seen, `faces_at_best`, `held_out_auc`, `held_out_auc_before` and the mean `loss` of the last tenth.

    Raises:
        CannotLearn: The loss is no longer finite.
    """
    steps = max(faces // faces_per_step, 1)
    checked = {round(steps * (check + 1) / checks) for check in range(checks)} - {0}
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    before = best = score()
    weights, best_step, losses = copy.deepcopy(network.state_dict()), 0, []
    with tqdm(total=steps * faces_per_step, desc=title, unit='face', mininterval=1) as bar:
        for step in range(1, steps + 1):
            for group in optimiser.param_groups:
                group['lr'] = lr * min(1, step / WARM_UP) * (1 + np.cos(np.pi * step / (steps + 1))) / 2
            value = loss()
            if not torch.isfinite(value):
                raise CannotLearn(
                    f'{title}: the loss is {value.item()} after {step * faces_per_step} faces. Lower lr, {lr} now, in '
                    'the recipe of the attackers.'
                )
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(value.item())
            bar.update(faces_per_step)
            if step in checked:
                found = score()
                bar.set_postfix(loss=f'{np.mean(losses[-20:]):.3f}', auc=f'{found:.3f}')
                if found > best:
                    weights, best, best_step = copy.deepcopy(network.state_dict()), found, step
    network.load_state_dict(weights)
    return dict(
        faces=steps * faces_per_step,
        faces_at_best=best_step * faces_per_step,
        held_out_auc=best,
        held_out_auc_before=before,
        loss=np.mean(losses[-max(steps // 10, 1) :]),
    )
