"""Networks that embed faces, and φ: one of them frozen, fed with aligned faces as they come."""

from .dlib_resnet import DlibFaceResNet, read_dlib_face_resnet
from .face_embedder import FaceEmbedder, resolve_checkpoint
from .iresnet import IResNet

__all__ = [
    'DlibFaceResNet',
    'FaceEmbedder',
    'IResNet',
    'read_dlib_face_resnet',
    'resolve_checkpoint',
]
