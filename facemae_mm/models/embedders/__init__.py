"""Networks that embed faces, and φ: one of them frozen, fed with aligned faces as they come."""

from .adaface_ir import AdaFaceIR
from .arcface_vit import ArcFaceViT
from .classifier_embedder import ClassifierEmbedder
from .dlib_resnet import DlibFaceResNet, read_dlib_face_resnet
from .face_embedder import FaceEmbedder, resolve_checkpoint
from .iresnet import IResNet
from .mobile_facenet import MobileFaceNet
from .onnx_face_net import OnnxFaceNet

__all__ = [
    'AdaFaceIR',
    'ArcFaceViT',
    'ClassifierEmbedder',
    'DlibFaceResNet',
    'FaceEmbedder',
    'IResNet',
    'MobileFaceNet',
    'OnnxFaceNet',
    'read_dlib_face_resnet',
    'resolve_checkpoint',
]
