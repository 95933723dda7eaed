"""FaceMAE (E, D), IRM, φ, and the recogniser trained on what is released."""

from .embedders import DlibFaceResNet, FaceEmbedder, IResNet
from .face_mae import FaceMAE
from .face_preprocessor import FacePreprocessor
from .irm_loss import IRMLoss
from .recogniser import ArcFaceHead, EmbeddingHead, FaceRecognizer

__all__ = [
    'ArcFaceHead',
    'DlibFaceResNet',
    'EmbeddingHead',
    'FaceEmbedder',
    'FaceMAE',
    'FacePreprocessor',
    'FaceRecognizer',
    'IRMLoss',
    'IResNet',
]
