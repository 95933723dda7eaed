"""The audit: how much a released set of faces leaks, measured as attackers would."""

from . import attackers

__all__ = ['attackers']
