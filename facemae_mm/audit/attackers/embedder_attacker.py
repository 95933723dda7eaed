"""The paper's attacker: an embedder as it is."""

from mmpretrain.registry import TASK_UTILS

from .attacker import Attacker


@TASK_UTILS.register_module()
class EmbedderAttacker(Attacker):
    """Embeds photos and released faces by one network that others trained, as section 3.4 does; learns nothing.

    Args:
        embedder: Arguments of `open_embedder`: checkpoint, config, channel_order, mean, std.
    """
