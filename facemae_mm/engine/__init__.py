"""Hooks of training and export, the loops of both, and the optimiser wrapper."""

from .autocast_optim_wrapper import AutocastOptimWrapper
from .chunk_test_loop import ChunkTestLoop
from .divergence_hook import DivergenceHook
from .embedder_check_hook import EmbedderCheckHook
from .irm_target_check_hook import IRMTargetCheckHook
from .keyed_randomness_hook import KeyedRandomnessHook
from .reconstruction_export_hook import ReconstructionExportHook
from .reconstruction_panel_hook import ReconstructionPanelHook
from .reconstruction_show_hook import ReconstructionShowHook
from .resumable_train_loop import ResumableTrainLoop
from .row_sparse_sgd import RowSparseSGD
from .start_weights_hook import StartWeightsHook
from .synthesis_loop import SynthesisLoop
from .whole_checkpoint_hook import WholeCheckpointHook

__all__ = [
    'AutocastOptimWrapper',
    'ChunkTestLoop',
    'DivergenceHook',
    'EmbedderCheckHook',
    'IRMTargetCheckHook',
    'KeyedRandomnessHook',
    'ReconstructionExportHook',
    'ReconstructionPanelHook',
    'ReconstructionShowHook',
    'ResumableTrainLoop',
    'RowSparseSGD',
    'StartWeightsHook',
    'SynthesisLoop',
    'WholeCheckpointHook',
]
