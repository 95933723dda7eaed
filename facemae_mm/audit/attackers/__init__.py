"""Attackers, by what they learn."""

from .attacker import Attacker

__all__ = ['Attacker']
