"""FaceMAE (E, D), IRM, φ, and the recogniser trained on what is released."""

from .arcface_head import ArcFaceHead
from .domain_mixup_head import DomainMixupHead
from .embedders import DlibFaceResNet, FaceEmbedder, IResNet
from .face_mae import FaceMAE
from .face_preprocessor import FacePreprocessor
from .gan import FaceDiscriminator, FaceGenerator, IdentityGAN
from .irm_loss import IRMLoss
from .margins import AdaFaceMargin, CombinedMargin
from .partial_fc_head import PartialFCHead
from .recogniser import EmbeddingHead, FaceRecognizer

__all__ = [
    'AdaFaceMargin',
    'ArcFaceHead',
    'CombinedMargin',
    'DlibFaceResNet',
    'DomainMixupHead',
    'EmbeddingHead',
    'FaceDiscriminator',
    'FaceEmbedder',
    'FaceGenerator',
    'FaceMAE',
    'FacePreprocessor',
    'FaceRecognizer',
    'IRMLoss',
    'IResNet',
    'IdentityGAN',
    'PartialFCHead',
]
