"""A small GAN that draws faces of given identities: SynFace's generator in miniature."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ...alignment import ARCFACE_SIZE
from ..feature_cache import FeatureCache


@MODELS.register_module()
class IdentityGAN(BaseModel):
    r"""G(z, c) and the networks that train it; c is the identity code of a face, made of the embedder φ.

    c(x) = (φ(x) − m) / ‖φ(x) − m‖, where m is the mean of φ over all training faces so far. A step on faces x, their
    codes c, and codes c′ that mix two of them (`mix_codes`, ratio uniform in [0, 1] and drawn for each face), with z
    standard normal and E(x) = (μ, log σ²):

    - discriminator (hinge, Lim and Ye, 2017): mean max(0, 1 − D(x)) + mean max(0, 1 + D(G(z, c′)));
    - adversarial: −mean D(G(z, c′));
    - identity: mean 1 − c(G(z, c′)) · c′, over `identity_faces` of them, φ being slow;
    - reconstruction: mean \|x − G(μ + σε, c)\|, in [−1, 1];
    - prior: mean over faces of KL(N(μ, σ²) ‖ N(0, 1)).

    The last two make it a CVAE-GAN (Bao et al., ICCV 2017), which does not collapse and learns from thousands of faces;
    no encoder is needed to draw. One optimiser steps all networks: the discriminator's loss reaches the discriminator
    alone, the others' never do.

    Paper gap: SynFace takes a published DiscoFaceGAN (StyleGAN with a 3-D face model); its identity coefficient is here
    c, its other coefficients are z.

    Args:
        generator: Config or module, `FaceGenerator`.
        discriminator: Config or module, faces -> (N, 1).
        encoder: Config or module, faces -> (N, 2 · z_dim): μ and log σ².
        phi: Config or module, `FaceEmbedder`.
        cache: Folder in which φ of training faces is kept once computed, as `IRMLoss` keeps it; None keeps none.
        drawn_faces: Faces that a step draws from z, at most the batch.
        identity_faces: Those of them whose identity loss is computed.
        adversarial_weight: Of the adversarial loss.
        identity_weight: Of the identity loss.
        reconstruction_weight: Of the reconstruction loss.
        prior_weight: Of the prior loss.
        data_preprocessor: Gives RGB in [−1, 1].
        init_cfg: MMEngine's initialisation config.
    """

    def __init__(
        self,
        generator: dict | nn.Module,
        discriminator: dict | nn.Module,
        encoder: dict | nn.Module,
        phi: dict | nn.Module,
        cache: str | None = None,
        drawn_faces: int = 8,
        identity_faces: int = 4,
        adversarial_weight: float = 0.3,
        identity_weight: float = 2.0,
        reconstruction_weight: float = 20.0,
        prior_weight: float = 4e-3,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.generator, self.discriminator, self.encoder, self.phi = (
            part if isinstance(part, nn.Module) else MODELS.build(part)
            for part in (generator, discriminator, encoder, phi)
        )
        if self.generator.code_dim != self.phi.embedding_dim:
            raise ValueError(
                f'IdentityGAN: the generator takes codes of {self.generator.code_dim} values, φ gives '
                f'{self.phi.embedding_dim}. Set generator.code_dim={self.phi.embedding_dim}.'
            )
        self.cache, self._cache = cache, None
        self.drawn_faces, self.identity_faces = drawn_faces, identity_faces
        self.adversarial_weight, self.identity_weight = adversarial_weight, identity_weight
        self.reconstruction_weight, self.prior_weight = reconstruction_weight, prior_weight
        self.register_buffer('code_mean', torch.zeros(self.phi.embedding_dim))
        self.register_buffer('faces_seen', torch.zeros((), dtype=torch.int64))

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[DataSample] | Tensor:
        """Losses of a batch ('loss'), or the faces' identity codes, in every sample ('predict') or bare ('tensor').

        Args:
            inputs: (N, 3, H, H) RGB in [−1, 1], H ≥ the generator's side.
            data_samples: N samples, by which `cache` knows the faces.
            mode: As above.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        codes = self.code(inputs)
        if mode == 'tensor':
            return codes
        for sample, code in zip(data_samples, codes, strict=True):
            sample.set_field(code, 'code', dtype=Tensor)
        return data_samples

    def loss(self, inputs: Tensor, data_samples: list[DataSample] | None = None) -> dict[str, Tensor]:
        """Weighted losses of a batch; the mean of φ goes on."""
        codes = self._learn_codes(inputs, data_samples)
        faces = F.interpolate(inputs, size=self.generator.size, mode='area')
        ratio = torch.rand(len(codes), 1, device=codes.device)
        mixed = mix_codes(codes, codes.roll(1, 0), ratio)[: self.drawn_faces]
        drawn = self.generator(torch.randn(len(mixed), self.generator.z_dim, device=codes.device), mixed)
        mean, log_variance = self.encoder(faces).chunk(2, 1)
        rebuilt = self.generator(mean + (0.5 * log_variance).exp() * torch.randn_like(mean), codes)

        with frozen(self.discriminator):
            adversarial = -self.discriminator(drawn).mean()
        own = slice(self.identity_faces)
        return dict(
            loss_discriminator=hinge_loss(self.discriminator(faces), self.discriminator(drawn.detach())),
            loss_adversarial=self.adversarial_weight * adversarial,
            loss_identity=self.identity_weight * (1 - (self.code(drawn[own]) * mixed[own]).sum(1)).mean(),
            loss_reconstruction=self.reconstruction_weight * (faces - rebuilt).abs().mean(),
            loss_prior=self.prior_weight * kl_to_standard_normal(mean, log_variance),
        )

    def code(self, faces: Tensor) -> Tensor:
        """Identity codes c, unit rows (N, D), of faces (N, 3, H, H) in [−1, 1]; differentiable in the faces."""
        return F.normalize(self.phi(faces * 127.5 + 127.5)[-1] - self.code_mean)

    def draw(self, z: Tensor, codes: Tensor) -> Tensor:
        """Aligned faces of codes, (N, 3, 112, 112) RGB in [0, 255], float32; enlarged bilinearly."""
        faces = F.interpolate(self.generator(z, codes), size=ARCFACE_SIZE, mode='bilinear', align_corners=False)
        return (faces * 127.5 + 127.5).clamp(0, 255)

    @torch.no_grad()
    def _learn_codes(self, inputs: Tensor, data_samples: list[DataSample] | None) -> Tensor:
        """Codes of training faces, once their embeddings are in the mean."""
        embedding = self._embed(inputs, data_samples)
        self.faces_seen += len(embedding)
        self.code_mean += (embedding - self.code_mean).sum(0) / self.faces_seen
        return F.normalize(embedding - self.code_mean)

    def _embed(self, inputs: Tensor, data_samples: list[DataSample] | None) -> Tensor:
        """φ of training faces, (N, D), raw: from the cache where all are in it."""
        if self.cache is None or self.phi.sha256 is None:  # random, and so another one in each run
            return self.phi(inputs * 127.5 + 127.5)[-1]
        if self._cache is None:
            self._cache = FeatureCache(self.cache, self.phi.fingerprint(inputs.device), self.phi.embedding_dim)
        embedding, known = self._cache.read(data_samples)
        if not known.all():
            fresh = self.phi(inputs * 127.5 + 127.5)[-1].cpu()
            self._cache.write(data_samples, fresh, ~known)
            embedding = torch.where(known[:, None], embedding, fresh)
        return embedding.to(inputs.device)


def mix_codes(first: Tensor, second: Tensor, ratio: Tensor | float) -> Tensor:
    """Identity mixup (SynFace, section 3.2): ratio · first + (1 − ratio) · second, at unit length, (N, D)."""
    return F.normalize(ratio * first + (1 - ratio) * second)


def hinge_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """What a discriminator minimises, from what it says of real and of drawn faces."""
    return F.relu(1 - real).mean() + F.relu(1 + drawn).mean()


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) ‖ N(0, 1)), summed over dimensions, mean over rows; nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """What is computed in the block sends no gradient into a network's parameters, only through it."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
