"""Faces as an audit sees them."""

from ..evaluation.embedded_faces import EmbeddedFaces

__all__ = ['EmbeddedFaces']
