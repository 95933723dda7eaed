"""Hooks of training and export, and the optimiser wrapper."""

from .autocast_optim_wrapper import AutocastOptimWrapper
from .face_epoch_hook import FaceEpochHook
from .invalid_loss_hook import InvalidLossHook
from .preprocessor_check_hook import PreprocessorCheckHook
from .reconstruction_export_hook import ReconstructionExportHook
from .reconstruction_show_hook import ReconstructionShowHook
from .start_weights_hook import StartWeightsHook

__all__ = [
    'AutocastOptimWrapper',
    'FaceEpochHook',
    'InvalidLossHook',
    'PreprocessorCheckHook',
    'ReconstructionExportHook',
    'ReconstructionShowHook',
    'StartWeightsHook',
]
