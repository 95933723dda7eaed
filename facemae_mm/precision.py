"""Which devices multiply bfloat16."""

import platform

import torch


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 itself.

    A processor without such instructions (AVX-512-BF16, AMX; ARM's BF16) imitates them, a hundred times slower than
    float32 without AVX-512. oneDNN's own answer counts AVX-512 alone as enough.

    Args:
        device: Or its type.
    """
    if torch.device(device).type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ('x86_64', 'AMD64'):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
