"""Margins: what a head makes of the cosine between an embedding and its own class."""

import math

import torch
from mmengine.dist import get_world_size
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .class_shard import rows_of_all


@MODELS.register_module()
class CombinedMargin(nn.Module):
    r""":math:`\cos(m_1\theta + m_2) - m_3`, ArcFace's combined margin (Deng et al., 2019, Eq. 4).

    ArcFace is (1, 0.5, 0), CosFace (1, 0, 0.4). Past :math:`m_1\theta + m_2 = \pi` the cosine rises again: no
    fallback, as in `arcface_torch`.

    Args:
        m1: Factor of the angle.
        m2: Added to the angle, radians.
        m3: Taken from the cosine.

    Attributes:
        bound: Largest magnitude of a cosine; larger ones count as this one, without gradient.
    """

    bound = 1.0

    def __init__(self, m1: float = 1.0, m2: float = 0.5, m3: float = 0.0) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = m1, m2, m3

    def observe(self, norm: Tensor, of_all: bool) -> None:
        """Learns nothing from the norms of a batch."""

    def forward(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine with its margin, differentiable, with a finite gradient at both ends.

        The derivative sin(θ + m) / sin θ has no limit at |cos θ| = 1; there sin θ counts as constant.

        Args:
            cosine: Of embeddings with their own classes, in [−1, 1], (N,).
            norm: Of the embeddings, (N,); unused.
        """
        squared_sine = (1 - cosine) * (1 + cosine)
        inside = squared_sine > 0
        sine = torch.where(inside, squared_sine, 1).sqrt() * inside
        if self.m1 != 1:
            angle = self.m1 * torch.atan2(sine, cosine)
            cosine, sine = angle.cos(), angle.sin()
        return cosine * math.cos(self.m2) - sine * math.sin(self.m2) - self.m3

    def extra_repr(self) -> str:
        return f'm1={self.m1}, m2={self.m2}, m3={self.m3}'


@MODELS.register_module()
class AdaFaceMargin(nn.Module):
    r"""AdaFace's margin (Kim et al., 2022, Eqs. 12 to 14): the norm of an embedding says how good its image is.

    :math:`\cos(\theta - m\hat z) - m(1 + \hat z)`, where :math:`\hat z` in [−1, 1] is h times the norm, standardised by
    running mean and deviation of the norms of batches. As in AdaFace's own code cosines are kept within ±0.999 and
    angles 0.001 away from 0 and π, and norms within [0.001, 100].

    Args:
        m: Margin.
        h: How far norms spread the margin.
        t_alpha: Share of a new batch in the running mean and deviation.
    """

    eps = 1e-3
    bound = 1 - eps

    def __init__(self, m: float = 0.4, h: float = 0.333, t_alpha: float = 0.01) -> None:
        super().__init__()
        self.m, self.h, self.t_alpha = m, h, t_alpha
        self.register_buffer('batch_mean', torch.tensor(20.0))
        self.register_buffer('batch_std', torch.tensor(100.0))

    @torch.no_grad()
    def observe(self, norm: Tensor, of_all: bool) -> None:
        """Takes the norms of all processes' batches into the running values, so that these are the same on each.

        Args:
            norm: Of a batch, (N,).
            of_all: Whether they are of all processes already.
        """
        if not of_all and get_world_size() > 1:
            norm = rows_of_all(norm)
        norm = norm.clamp(1e-3, 100)
        self.batch_mean.lerp_(norm.mean().to(self.batch_mean.dtype), self.t_alpha)
        if len(norm) > 1:
            self.batch_std.lerp_(norm.std().to(self.batch_std.dtype), self.t_alpha)

    def forward(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine with its margin; differentiable in the cosine.

        Args:
            cosine: Of embeddings with their own classes, in [−1, 1], (N,).
            norm: Of the embeddings, (N,).
        """
        z = (norm.detach().clamp(1e-3, 100) - self.batch_mean) / (self.batch_std + self.eps)
        z = (self.h * z).clamp(-1, 1)
        angle = cosine.clamp(-self.bound, self.bound).acos() - self.m * z
        return angle.clamp(self.eps, math.pi - self.eps).cos() - self.m * (1 + z)

    def extra_repr(self) -> str:
        return f'm={self.m}, h={self.h}, t_alpha={self.t_alpha}'
