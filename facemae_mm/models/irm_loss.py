"""L_dc of Eq. 2: instance relation matching in the feature space of a frozen φ."""

import logging
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModule
from mmpretrain.models import PixelReconstructionLoss
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.functional import normalize

from .class_shard import rows_of_all
from .feature_cache import FeatureCache

EPS = 1e-12

NEEDS_PIXELS = (
    'φ needs faces: take a model whose head reconstructs pixels (MAE, MAE-HiViT, SimMIM, MixMIM, iTPN-pixel), without '
    'target_generator and with head.norm_pix=False.'
)


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; the gradient of each row comes from the losses of all of them."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return rows_of_all(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd's own stays as it is
        dist.all_reduce(grad)  # DDP's mean over processes divides by what this sums
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def row_distance(a: Tensor, b: Tensor, squared: bool = False) -> Tensor:
    """Δ of Eq. 2: mean over i of ‖a_i − b_i‖₂, rows (N, D), or of its square.

    Paper gap: 'averaged pairwise Euclidean distance' is read as a distance row by row. 1e-12 under the root keeps the
    gradient finite where rows are equal.
    """
    squares = (a - b).square().sum(1)
    return (squares if squared else (squares + EPS).sqrt()).mean()


@MODELS.register_module()
class IRMLoss(BaseModule):
    """Instance relation matching, L = w_im · Δ(F, F̂) + β · Δ(FFᵀ, F̂F̂ᵀ) + w_mse · MSE (Eq. 2, Table 2).

    F = φ(original) and F̂ = φ(reconstruction) are (N, D), L2-normalised row by row unless `normalize` is off. Called
    as MMPretrain's heads call `PixelReconstructionLoss`. The gradient goes through F̂ alone; the loss runs in float32
    under any autocast, and so does φ unless its own `precision` says otherwise.

    To MessageHub, and so to every log, go the terms, unweighted, as `train/irm_im`, `train/irm_rm`, `train/irm_mse`;
    the rows related as `train/irm_n`; `train/phi_similarity`, the mean cosine of a reconstruction and its original; and
    `train/leak_top1`, a quick probe of leakage: the share of reconstructions whose nearest of these N originals is
    their own (chance 1 / N).

    Paper gap: N is the batch of one process. The distance of relation rows grows as √N, so a β belongs to an N: with
    another N than the paper's 256, β · √(256 / N) weighs the same.

    Args:
        phi: Config of φ, a `FaceEmbedder`, which keeps itself out of the model's parameters, checkpoints and copies.
            Built at the first use, so that a model predicts where φ's weights are absent; its SHA-256 goes to
            MessageHub as `phi_sha256`, and so into every checkpoint. A list takes several. None where MSE alone has
            weight.
        beta: β, weight of relation matching, ≥ 0.
        im_weight: Weight of instance matching, ≥ 0.
        mse_weight: Weight of the mean squared error, normalised units, ≥ 0.
        mse_visible: The squared error covers visible pixels too, as a start for IRM needs; else the removed ones alone.
        mean: What the data preprocessor subtracts, [0, 255], in the order of the channels.
        std: What it divides by.
        channel_order: Order of the channels that the preprocessor hands out, 'rgb' or 'bgr'.
        patch_size: Side of a patch where predictions come as tokens.
        normalize: L2-normalise features before both terms.
        squared: Squared distances in both terms.
        scale_relations: Divide the relation term by √N (by N where `squared`).
        gather: Relate the faces of all processes, with gradient; else those of one process.
        phi_coefficients: Of several φ, the weight of each one's terms, ≥ 0; equal and 1 in all by default.
        cache: Folder in which φ(original) is kept once computed, for models that hand their samples over (`FaceMAE`):
            see `FeatureCache`. It pays where faces come again as they were, flips apart. A φ without file has none.

    Raises:
        ValueError: A weight below 0 or none above it, terms that need a φ without one, as many weights as there are no
            φ, or an unknown channel order.
    """

    def __init__(
        self,
        phi: dict | Sequence[dict] | None,
        beta: float = 1.0,
        im_weight: float = 1.0,
        mse_weight: float = 0.0,
        mse_visible: bool = False,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
        channel_order: str = 'rgb',
        patch_size: int = 16,
        normalize: bool = True,
        squared: bool = False,
        scale_relations: bool = False,
        gather: bool = False,
        phi_coefficients: Sequence[float] | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        weights = dict(im_weight=im_weight, beta=beta, mse_weight=mse_weight)
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise ValueError(f'IRMLoss: weights must be ≥ 0 and one of them above, not {weights}.')
        self.phi_cfgs = [] if phi is None else [phi] if isinstance(phi, dict) else list(phi)
        if not self.phi_cfgs and (im_weight or beta):
            raise ValueError('IRMLoss: instance and relation matching need a φ. Set phi, or im_weight=0 and beta=0.')
        if phi_coefficients is None:
            phi_coefficients = [1 / len(self.phi_cfgs) for _ in self.phi_cfgs]
        elif len(phi_coefficients) != len(self.phi_cfgs) or min(phi_coefficients) < 0 or max(phi_coefficients) == 0:
            raise ValueError(
                f'IRMLoss: phi_coefficients must be a weight ≥ 0 for each of {len(self.phi_cfgs)} φ, '
                f'one of them above 0, not {phi_coefficients}.'
            )
        if channel_order not in ('rgb', 'bgr'):
            raise ValueError(f"IRMLoss: channel_order is 'rgb' or 'bgr', not {channel_order!r}.")
        self.phi_coefficients = list(phi_coefficients)
        self.phis = None
        self.beta = beta
        self.im_weight = im_weight
        self.mse_weight = mse_weight
        self.mse_visible = mse_visible
        self.pixel_loss = PixelReconstructionLoss(criterion='L2')
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(3, 1, 1), persistent=False)
        self.channel_order = channel_order
        self.patch_size = patch_size
        self.normalize = normalize
        self.squared = squared
        self.scale_relations = scale_relations
        self.gather = gather
        self.cache = cache
        self._caches = {}
        self._seen_target = False

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        data_samples: Sequence[DataSample] | None = None,
    ) -> Tensor:
        """Weighted sum of the terms.

        Args:
            pred: Reconstruction, normalised: tokens (N, L, patch_size² · 3) in the order 'nchpwq->nhwpqc', or images
                (N, 3, H, W).
            target: Original, of the same shape.
            mask: 1 = removed: (N, L) for tokens, (N, 1, H, W) or (N, H, W) for images. Only MSE looks at it.
            data_samples: N samples, by which `cache` knows the originals; without them it is not used.

        Returns:
            Scalar, float32.

        Raises:
            ValueError: Targets that are no images (`norm_pix`, features), shapes that differ, or fewer than two rows to
                relate.
        """
        if pred.shape != target.shape or pred.ndim not in (3, 4):
            raise ValueError(
                f'IRMLoss: pred {tuple(pred.shape)} and target {tuple(target.shape)} are not two images, nor tokens of '
                f'two. {NEEDS_PIXELS}'
            )
        with torch.autocast(pred.device.type, enabled=False):
            pred, target = pred.float(), target.detach().float()
            if pred.ndim == 3 and not self._seen_target:
                self._refuse_normalised(target)
                self._seen_target = True
            terms = dict(mse=self._pixel_error(pred, target, mask))
            if self.im_weight or self.beta:
                faces, originals = self._images(pred), lambda: self._images(target)
                terms |= self._match(faces, originals, data_samples if self.cache else None)
            self._publish({f'irm_{name}': term for name, term in terms.items()})
            weights = dict(im=self.im_weight, rm=self.beta, mse=self.mse_weight)
            return sum(weights[name] * term for name, term in terms.items() if weights[name])

    def embedders(self, device: torch.device | str = 'cpu') -> Sequence[nn.Module]:
        """Every φ, built at the first call."""
        if self.phis is None:
            with torch.random.fork_rng():  # building draws numbers, which training must not notice
                self.phis = nn.ModuleList(MODELS.build(cfg) for cfg in self.phi_cfgs).to(device)
            hub, now = MessageHub.get_current_instance(), ', '.join(str(phi.sha256) for phi in self.phis)
            before = hub.get_info('phi_sha256', now)
            if before != now:
                text = f'φ is another one than before: its SHA-256 is {now}, the checkpoint was trained with {before}.'
                print_log(text, logger='current', level=logging.WARNING)
            hub.update_info('phi_sha256', now)
        return self.phis

    def _match(
        self, faces: Tensor, originals: Callable[[], Tensor], data_samples: Sequence[DataSample] | None
    ) -> dict[str, Tensor]:
        """Instance and relation matching in the space of every φ; images (N, 3, H, W), RGB in [0, 255]."""
        terms = dict(im=0.0, rm=0.0)
        similarity = leak = torch.zeros((), device=faces.device)
        for phi, weight in zip(self.embedders(faces.device), self.phi_coefficients, strict=True):
            f = self._original_features(phi, originals, data_samples, faces)
            f_hat = phi(faces)[-1]
            if self.normalize:
                f, f_hat = normalize(f, dim=1), normalize(f_hat, dim=1)
            if self.gather and dist.is_initialized():
                f, f_hat = _GatherRows.apply(f), _GatherRows.apply(f_hat)
            n = len(f)
            if self.beta and n < 2:
                raise ValueError(
                    f'IRMLoss: relation matching needs two faces or more, not {n}. '
                    'Raise the batch size, set drop_last=True, or set beta=0.'
                )
            rm = row_distance(f_hat @ f_hat.T, f @ f.T, self.squared)
            if self.scale_relations:
                rm = rm / (n if self.squared else n**0.5)
            terms['im'] = terms['im'] + weight * row_distance(f_hat, f, self.squared)
            terms['rm'] = terms['rm'] + weight * rm
            with torch.no_grad():
                cosine = normalize(f_hat, dim=1) @ normalize(f, dim=1).T  # (N, N): reconstructions × originals
                similarity = similarity + weight * cosine.diagonal().mean()
                own = torch.arange(n, device=cosine.device)
                own_nearest = (cosine.argmax(1) == own).float().mean()
                leak = torch.maximum(leak, own_nearest)  # of the best-informed φ
        MessageHub.get_current_instance().update_scalar('train/irm_n', n)
        self._publish(dict(phi_similarity=similarity / sum(self.phi_coefficients), leak_top1=leak))
        return terms

    @torch.no_grad()
    def _original_features(
        self,
        phi: nn.Module,
        originals: Callable[[], Tensor],
        data_samples: Sequence[DataSample] | None,
        like: Tensor,
    ) -> Tensor:
        """φ(original), (N, D), raw: from the cache where all are in it."""
        if data_samples is None or phi.sha256 is None:  # random, and so another one in each run
            return phi(originals())[-1]
        if phi not in self._caches:
            shown = self.mean.flatten().tolist(), self.std.flatten().tolist(), self.channel_order
            depends_on = f'{phi.fingerprint(like.device)} {tuple(like.shape[1:])} {self.patch_size} {shown}'
            self._caches[phi] = FeatureCache(self.cache, depends_on, phi.embedding_dim)
        cache = self._caches[phi]
        features, known = cache.read(data_samples)
        if not known.all():
            fresh = phi(originals())[-1]  # the whole batch, so that what a row gives depends on nothing kept before
            cache.write(data_samples, fresh.cpu(), ~known)
            features = torch.where(known[:, None], features, fresh.cpu())
        return features.to(like.device)

    def _pixel_error(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean squared error over removed pixels; over all where visible ones count or no mask is given."""
        if self.mse_visible:
            mask = None
        if pred.ndim == 4 and mask is not None:
            mask = mask.reshape(len(mask), 1, *mask.shape[-2:]).expand_as(pred)
        return self.pixel_loss(pred, target, mask)

    def _images(self, x: Tensor) -> Tensor:
        """Tokens or images, normalised → (N, 3, H, W), RGB in [0, 255], not clamped."""
        if x.ndim == 3:
            n, side, p = len(x), round(x.shape[1] ** 0.5), self.patch_size
            if side * side != x.shape[1] or x.shape[2] != 3 * p * p:
                raise ValueError(
                    f'IRMLoss: tokens of shape {tuple(x.shape)} are no square image in patches of {p}×{p}×3. If they '
                    'are pixels, set patch_size to that of the head. If they are features, as HOG or those of CLIP: '
                    f'{NEEDS_PIXELS}'
                )
            x = x.reshape(n, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4)
            x = x.reshape(n, 3, side * p, side * p)
        x = x * self.std + self.mean
        return x if self.channel_order == 'rgb' else x.flip(1)

    @staticmethod
    def _refuse_normalised(target: Tensor) -> None:
        """Patch-normalised targets are no images: every token has mean 0, and variance 1 or, of one colour, 0."""
        if (target.mean(-1).abs() < 1e-3).all() and ((target.var(-1) - 1).abs() < 1e-3).any():
            raise ValueError(
                'IRMLoss: head.norm_pix must be False: every target patch has mean 0 and variance 1, '
                'so φ would see a normalised signal and not a face.'
            )

    @staticmethod
    def _publish(terms: dict[str, Tensor]) -> None:
        """Hands the terms to MMEngine's log; names without 'loss', which the runner would add to the total."""
        hub = MessageHub.get_current_instance()
        values = torch.stack([term.detach() for term in terms.values()]).cpu()  # a GPU is waited for once
        for name, value in zip(terms, values, strict=True):
            hub.update_scalar(f'train/{name}', value)
