"""Processors: which one this is, and which devices multiply bfloat16."""

import platform
from pathlib import Path

import torch


def processor_name() -> str:
    """The processor by its maker's name, as far as the system tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 itself, faster than float32.

    A processor without such instructions (AMX; ARM's BF16) imitates them, a hundred times slower than float32 without
    AVX-512. oneDNN's own answer counts AVX-512 alone as enough; but even with AVX-512-BF16, which multiplies pairs into
    float32, a step of configs/mini/mae.py took 1.9 times as long as in float32 (1.08 against 0.56 s, torch 2.14.1).

    Args:
        device: Or its type.
    """
    if torch.device(device).type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ('x86_64', 'AMD64'):
        return torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
