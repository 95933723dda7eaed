"""Faces in: sources, datasets, their order, and the transforms that load and mask."""

from .domain_pairs import DomainPairs, mix_domains
from .face_dataset import FaceRecordDataset
from .face_distortion import FaceDistortion
from .face_mask import FaceMask
from .face_source import FaceSource, open_faces
from .hash_face import HashFace
from .ijb_faces import IJBFaces
from .ijb_protocol import IJBProtocol
from .load_face import LoadFace
from .resumable_sampler import ResumableSampler
from .verification_pairs import VerificationPairs

__all__ = [
    'DomainPairs',
    'FaceDistortion',
    'FaceMask',
    'FaceRecordDataset',
    'FaceSource',
    'HashFace',
    'IJBFaces',
    'IJBProtocol',
    'LoadFace',
    'ResumableSampler',
    'VerificationPairs',
    'mix_domains',
    'open_faces',
]
