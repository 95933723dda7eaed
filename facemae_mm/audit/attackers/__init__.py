"""Attackers, by what they learn.

One more is a class of its own file, registered in `TASK_UTILS` and imported here: `LearningAttacker` shows one.
"""

from .attacker import Attacker, CannotLearn
from .demasking_attacker import DemaskingAttacker
from .embedder_attacker import EmbedderAttacker
from .fine_tuned_attacker import FineTunedAttacker
from .learning_attacker import LearningAttacker
from .learning_pairs import LearningPairs
from .linear_map_attacker import LinearMapAttacker

__all__ = [
    'Attacker',
    'CannotLearn',
    'DemaskingAttacker',
    'EmbedderAttacker',
    'FineTunedAttacker',
    'LearningAttacker',
    'LinearMapAttacker',
    'LearningPairs',
]
