"""A GAN conditioned on identity, for SynFace's rows of Table 1 in miniature."""

from .discriminator import FaceDiscriminator
from .generator import FaceGenerator
from .identity_gan import IdentityGAN, mix_codes

__all__ = ['FaceDiscriminator', 'FaceGenerator', 'IdentityGAN', 'mix_codes']
