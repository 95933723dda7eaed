"""Refuses a training whose φ does not tell its own faces apart."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..datasets import FaceRecordDataset, LoadFace
from ..models import IRMLoss
from ..models.embedders import FaceEmbedder
from ..randomness import keyed_seed

#: What networks are usually fed with, mean and std of [0, 255]: InsightFace's, [0, 1], ImageNet's.
NORMALISATIONS = (
    ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)

#: Identities below which nothing is concluded.
MIN_IDENTITIES = 16


def similarities(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the two faces of each identity, and of faces of different ones.

    Args:
        embeddings: (C, 2, D).

    Returns:
        Genuine (C,), and impostor (C, 4 · (C − 1)): row i has both faces of i against all others.
    """
    count = len(embeddings)
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
    cosine = np.einsum('iad,jbd->iajb', unit, unit)
    apart = ~np.eye(count, dtype=bool)
    impostor = cosine.transpose(0, 2, 1, 3)[apart].reshape(count, -1)
    return cosine[np.arange(count), 0, np.arange(count), 1], impostor


def area_under_curve(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The share of all (genuine, impostor) pairs of scores in the right order, ties half; exact."""
    ordered = np.sort(impostor, axis=None)
    below = np.searchsorted(ordered, genuine, 'left') + np.searchsorted(ordered, genuine, 'right')
    return float(below.mean() / (2 * ordered.size))


def margins(genuine: np.ndarray, impostor: np.ndarray) -> np.ndarray:
    """How far each genuine score lies above the mean of all impostor ones, in their standard deviations: (C,)."""
    return (genuine - impostor.mean()) / max(impostor.std(), 1e-12)


@HOOKS.register_module()
class EmbedderCheckHook(Hook):
    """Looks whether φ tells the training set's own people apart, once, before the first iteration of a run.

    A φ fed with another channel order or normalisation than it was trained with, with faces that are not aligned, or
    without its weights runs without any error, and only teaches nothing. So every φ of an `IRMLoss` embeds two faces
    each of some identities as they are stored, a sample that the set alone decides. The area under the ROC curve (AUC)
    of all genuine against all impostor cosines goes to the log. The run is refused where

    - the AUC lies below `min_auc`; or
    - the other channel order or another usual normalisation separates the same faces significantly better: over the
      identities, the mean by which an identity's margin (its genuine cosine over the impostors' mean, in their standard
      deviations) grows is above `significance` of its standard errors.

    On 60 draws of 64 people of LFW (folds 1 to 8; of 300 for InsightFace's mini pack, of 128 for dlib's φ) the right
    setting had AUC 0.993 or more, and no other was ever ahead of it; the other channel order or normalisation had 0.955
    or more (pixels not scaled at all 0.58), so AUC alone does not tell, but the right one was ahead by 3.3 standard
    errors or more. Random weights had 0.74 at most. What no other setting mends passes where its AUC is high enough:
    faces turned by up to 15° and moved by up to 10 pixels had 0.985, dlib's φ without its template 0.94.

    Either message names the setting that separates best. The first process looks, all stop.

    Args:
        min_auc: Least AUC, 0.5 (chance) … 1; 0 never refuses for it.
        significance: Standard errors above which another setting counts as better; None tries no other.
        identities: How many at most, two faces each.

    Raises:
        ValueError: φ is refused; names the setting to look at, and how to train nevertheless.
    """

    def __init__(self, min_auc: float = 0.9, significance: float | None = 3.0, identities: int = 64) -> None:
        if not 0 <= min_auc <= 1 or (significance is not None and significance <= 0) or identities < MIN_IDENTITIES:
            raise ValueError(
                f'EmbedderCheckHook: {min_auc=} must lie in 0 … 1, {significance=} above 0 or be None, and '
                f'{identities=} be {MIN_IDENTITIES} or more. The defaults are 0.9, 3.0 and 64.'
            )
        self.min_auc = min_auc
        self.significance = significance
        self.identities = identities

    def before_train(self, runner: Runner) -> None:
        """Looks at every φ of the model, where the run does not go on from a checkpoint."""
        if runner.iter:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        losses = [module for module in model.modules() if isinstance(module, IRMLoss)]
        losses = [loss for loss in losses if loss.phi_cfgs and (loss.im_weight or loss.beta)]
        if not losses:
            return
        verdict = [None]
        if get_rank() == 0:
            faces, reason = _known_faces(runner.train_dataloader.dataset, self.identities)
            if faces is None:
                runner.logger.warning(f'EmbedderCheckHook: φ is not checked: {reason}.')
            else:
                device = next(model.parameters()).device
                found = [self._look(phi, faces.to(device), runner) for loss in losses for phi in loss.embedders(device)]
                verdict = [next((fault for fault in found if fault), None)]
        broadcast_object_list(verdict)
        if verdict[0]:
            raise ValueError(verdict[0])

    def _look(self, phi: nn.Module, faces: torch.Tensor, runner: Runner) -> str | None:
        """Logs how one φ separates; what is wrong with it, if anything."""
        scores = similarities(_embed(phi, faces))
        auc = area_under_curve(*scores)
        name = type(getattr(phi, 'backbone', phi)).__name__
        runner.logger.info(f'φ {name}: AUC {auc:.4f} on {len(faces)} identities of the training set, two faces each')
        failed = auc < self.min_auc
        better = []
        if self.significance is not None and isinstance(phi, FaceEmbedder):
            for setting in _other_settings(phi, every=failed):
                others = similarities(_embed(phi, faces, **setting))
                gain = margins(*others) - margins(*scores)
                error = gain.std(ddof=1) / len(gain) ** 0.5
                if gain.mean() > self.significance * error > 0:
                    better.append((gain.mean() / error, area_under_curve(*others), setting))
        if not failed and not better:
            return None
        message = (
            f'φ {name} separates {len(faces)} identities of the training set with AUC {auc:.4f}'
            f'{f", below {self.min_auc} (0.5 is chance)" if failed else ""}. '
        )
        if better:
            _, best, setting = max(better, key=lambda entry: entry[0])
            own = ', '.join(f'{key}={_plain(getattr(phi, key))}' for key in setting)
            wanted = ', '.join(f'{key}={_plain(value)}' for key, value in setting.items())
            message += f'With {wanted} in place of {own} it has {best:.4f} on the same faces, significantly '
            message += 'better: set that in the FaceEmbedder of head.loss.phi. '
        else:
            message += (
                'No other channel_order, mean or std does better: look at checkpoint (is it the one of this network?), '
                'at the alignment of the faces (tools/prepare_faces.py) and at the labels of the set. '
            )
        return message + (
            'If it is right as it is, train with EmbedderCheckHook(min_auc=0, significance=None), or without the hook.'
        )


def _plain(value: object) -> object:
    return value if isinstance(value, str) else [round(float(v), 3) for v in torch.as_tensor(value).flatten()]


def _known_faces(dataset: object, identities: int) -> tuple[torch.Tensor | None, str]:
    """Two faces of some identities, (C, 2, 3, H, H) RGB in [0, 255], the same for a set each time; or why none.

    Faces that cannot be read or have another shape than the first are passed over, with their identities.
    """
    if not isinstance(dataset, FaceRecordDataset):
        return None, f'the training set is a {type(dataset).__name__}, not a FaceRecordDataset'
    order = np.argsort(dataset.labels, kind='stable')
    starts = np.flatnonzero(np.diff(dataset.labels[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    candidates = np.random.default_rng(keyed_seed('known faces')).permutation(np.flatnonzero(sizes > 1))
    load, faces = LoadFace(), []
    for candidate in candidates[: 4 * identities]:
        try:
            pair = [load(dataset.get_data_info(int(order[starts[candidate] + place]))) for place in (0, 1)]
        except (ValueError, OSError):
            continue
        images = [face['img'] for face in pair]
        shape = faces[0][0].shape if faces else images[0].shape
        if shape[0] == shape[1] and all(i.shape == shape for i in images) and not any('mask' in f for f in pair):
            faces.append(np.stack(images)[..., ::-1])  # to RGB
        if len(faces) == identities:
            break
    if len(faces) < MIN_IDENTITIES:
        return None, f'{len(faces)} identities have two square faces that can be read, and {MIN_IDENTITIES} are needed'
    return torch.from_numpy(np.stack(faces)).permute(0, 1, 4, 2, 3), ''


@torch.no_grad()
def _embed(phi: nn.Module, faces: torch.Tensor, **setting: object) -> np.ndarray:
    """Embeds (C, 2, 3, H, H) to (C, 2, D), float64, with some of φ's settings changed meanwhile."""
    before = {key: getattr(phi, key) for key in setting}
    try:
        for key, value in setting.items():
            setattr(phi, key, value if isinstance(value, str) else torch.tensor(value).view(3, 1, 1).to(before[key]))
        rows = [phi(batch.float())[-1].double().cpu() for batch in faces.flatten(0, 1).split(32)]
    finally:
        for key, value in before.items():
            setattr(phi, key, value)
    return torch.cat(rows).unflatten(0, faces.shape[:2]).numpy()


def _other_settings(phi: FaceEmbedder, every: bool) -> Sequence[dict]:
    """The other channel order, the network's own and the usual normalisations, one at a time; `every`: also both."""
    own = tuple(phi.mean.flatten().tolist()), tuple(phi.std.flatten().tolist())
    orders = [{}, dict(channel_order='bgr' if phi.channel_order == 'rgb' else 'rgb')]
    known = ((phi.backbone.mean, phi.backbone.std), *NORMALISATIONS)
    normalisations = [{}] + [dict(mean=m, std=s) for m, s in known if not np.allclose((m, s), own)]
    settings = [order | normalisation for order, normalisation in product(orders, normalisations)]
    return [setting for setting in settings if setting and (every or len(setting) < 3)]
