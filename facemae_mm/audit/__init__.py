"""The audit: how much a released set of faces leaks, measured as attackers would."""

from . import attackers
from .embedded_faces import EmbeddedFaces

__all__ = ['EmbeddedFaces', 'attackers']
