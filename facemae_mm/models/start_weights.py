"""Start weights: masked autoencoders that others trained, under the names of this project's networks."""

import re
from collections.abc import Mapping

import torch

#: Names of facebookresearch/mae as patterns, and what takes their place in those of MMPretrain's MAE.
NAMES = (
    (r'\.norm([12])\.', r'.ln\1.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
    (r'^(cls_token|pos_embed)$', r'backbone.\1'),
    (r'^blocks\.', 'backbone.layers.'),
    (r'^norm\.', 'backbone.ln1.'),
    (r'^decoder_norm\.', 'neck.ln1.'),
    (r'^(decoder_|mask_token$)', r'neck.\1'),
)

#: Published files that hold encoder and decoder and predict pixels.
WITH_DECODER = 'mae_visualize_vit_base.pth or mae_visualize_vit_large.pth of facebookresearch/mae'


def state_of(checkpoint: Mapping) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint: under 'state_dict' (MMEngine), 'model' (facebookresearch/mae), or bare.

    The prefix 'module.' of wrapped models is taken off.

    Raises:
        ValueError: It holds none.
    """
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    if not isinstance(state, Mapping) or not state or not all(map(torch.is_tensor, state.values())):
        raise ValueError(
            f"it holds no weights under 'state_dict' or 'model', but {', '.join(map(str, list(checkpoint)[:5]))}. "
            "Save the model's state_dict() with torch.save."
        )
    return {key.removeprefix('module.'): value for key, value in state.items()}


def convert_mae_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names the weights of facebookresearch/mae as MMPretrain's MAE, and so `FaceMAE`, does; values stay.

    Position embeddings come along: those that MMPretrain computes have the two halves of the channels swapped. Weights
    in MMPretrain's own names, or of any other network, are given back as they are.
    """
    if 'patch_embed.proj.weight' not in state or not any(key.startswith('blocks.') for key in state):
        return dict(state)
    converted = {}
    for key, value in state.items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        converted[key] = value
    return converted


def check_start_weights(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Compares weights with those that a model has; MMEngine would load what fits and log the rest.

    Args:
        state: Weights to load, names converted.
        own: State dict of the model.

    Raises:
        ValueError: Names or shapes differ; the first three of each difference, and what to do.
    """
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f'{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}'
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    found = [
        f'{len(keys)} {kind} ({"; ".join(keys[:3])})'
        for kind, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if not found:
        return
    needs_decoder = any(key.startswith('neck.decoder_') for key in own)
    if needs_decoder and not any('decoder_' in key for key in state):
        kind = 'is a classifier' if any('head.' in key for key in state) else 'has an encoder alone'
        remedy = f'It {kind}, no decoder to reconstruct with. Take {WITH_DECODER}'
    elif shapes:
        remedy = 'Set the sizes of backbone and neck to those that were trained, or take the checkpoint of this size'
    else:
        remedy = (
            'Take the checkpoint of this model; to start a part of it alone, give that part '
            "init_cfg=dict(type='Pretrained', checkpoint=…, prefix=…) in place of load_from"
        )
    raise ValueError(f'weights differ from those of the model: {", ".join(found)}. {remedy}.')
