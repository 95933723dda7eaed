"""What is measured: utility (verification) and privacy leakage (retrieval)."""

from .embedding_metric import EmbeddingMetric
from .face_verification import FaceVerification
from .ijb_metric import IJBMetric
from .retrieval_leakage import RetrievalLeakage

__all__ = ['EmbeddingMetric', 'FaceVerification', 'IJBMetric', 'RetrievalLeakage']
