"""One function opens every embedder of faces that a command line can name."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from .config import load_config
from .models.embedders.adaface_ir import read_adaface_checkpoint
from .models.embedders.face_embedder import FaceEmbedder, load_strictly, resolve_checkpoint
from .models.embedders.iresnet import STAGE_BLOCKS

#: Short for dlib's face ResNet where a Python package brought it.
DLIB = 'package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat'

#: First byte of what torch.save writes: of a .zip, or of a pickle.
TORCH_MAGIC = (b'P', b'\x80')


def open_embedder(
    checkpoint: str | Path,
    config: str | Path | None = None,
    channel_order: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> FaceEmbedder:
    """Opens an embedder of any kind, told apart by content.

    - the folder of an InsightFace pack, or an ONNX recognition model;
    - dlib's face ResNet: its `.dat`, or 'dlib' for that of the package face_recognition_models;
    - a checkpoint of torch: of a recogniser trained here, of arcface_torch, AdaFace or CVLface. Its network is found
      from its keys; where its own recipe or class declares another input, `config` or the rest of the arguments say so;
    - with `config`, a checkpoint of that recipe: of a `FaceRecognizer`, of an ImageClassifier of MMPretrain's, or of a
      model that is itself a `FaceEmbedder`. Normalisation is that of its data_preprocessor.

    Args:
        checkpoint: As `FaceEmbedder` takes it, or 'dlib'.
        config: Recipe of the network, where the file does not tell.
        channel_order: 'rgb' or 'bgr', in place of the network's own.
        mean: Subtracted, [0, 255], in place of the network's own.
        std: Divided by, in place of the network's own.

    Raises:
        FileNotFoundError: The checkpoint or the recipe does not exist.
        ValueError: Another file, damaged, weights that do not fit, or a network that neither keys nor recipe tell.
    """
    checkpoint = DLIB if checkpoint == 'dlib' else checkpoint
    if config is not None:
        options = _embedder_of(load_config(config), config)
    else:
        options = dict(backbone=_backbone_of(resolve_checkpoint(checkpoint)))
    given = dict(channel_order=channel_order, mean=mean, std=std)
    return FaceEmbedder(
        **{**options, 'checkpoint': checkpoint} | {key: value for key, value in given.items() if value is not None}
    )


def _backbone_of(path: Path) -> dict:
    """Config of the network in a file."""
    with path.open('rb') as file:
        head = file.read(1)
    if path.suffix == '.dat':
        return dict(type='DlibFaceResNet')
    if head not in TORCH_MAGIC or path.suffix == '.onnx':
        return dict(type='OnnxFaceNet')
    state = read_adaface_checkpoint(path)  # reads those of the others too
    network = _network(state)
    if network is None:
        raise ValueError(
            f'{path}: no network known by its keys (IResNet, MobileFaceNet, ArcFaceViT, AdaFaceIR) has '
            f'{", ".join(list(state)[:3])}, …. Give the recipe that it was trained by too (--config), or one whose '
            'model is a FaceEmbedder with a backbone.'
        )
    # Sizes come from the file, so nothing is allocated by them before all of them fit what the file really holds.
    promised = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if promised > path.stat().st_size:
        raise ValueError(f'{path} promises {promised:,} bytes of weights, more than it has. Fetch it again.')
    with torch.device('meta'):
        load_strictly(MODELS.build(network), {key: tensor.to('meta') for key, tensor in state.items()}, path)
    return network


def _network(state: Mapping[str, torch.Tensor]) -> dict | None:
    """Config of the network whose keys a state dict has; whether they fit is left to loading."""

    def places(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    def size(key: str, axis: int = 0) -> int:
        return max((*state[key].shape, 1, 1)[axis], 1)  # a damaged file is refused when its weights do not fit

    keys = state.keys()
    if {'conv1.weight', 'layer1.0.bn1.weight', 'fc.weight', 'features.weight'} <= keys:
        blocks = tuple(places(rf'layer{stage}\.(\d+)\.') for stage in (1, 2, 3, 4))
        depth = next((depth for depth, known in STAGE_BLOCKS.items() if known == blocks), None)
        options = dict(base_channels=size('conv1.weight'), embedding_dim=size('fc.weight'))
        return depth and dict(type='IResNet', depth=depth, **options)
    if {'input_layer.0.weight', 'body.0.res_layer.0.weight', 'output_layer.3.weight'} <= keys:
        count = places(r'body\.(\d+)\.')
        depth = next((depth for depth, known in STAGE_BLOCKS.items() if sum(known) == count), None)
        options = dict(squeeze_excite=any('.se_block.' in key for key in keys))
        options |= dict(base_channels=size('input_layer.0.weight'), embedding_dim=size('output_layer.3.weight'))
        return depth and dict(type='AdaFaceIR', depth=101 if depth == 100 else depth, **options)
    if {'mask_token', 'patch_embed.proj.weight', 'feature.2.weight'} <= keys:
        options = dict(embed_dims=size('patch_embed.proj.weight'), embedding_dim=size('feature.2.weight'))
        return dict(type='ArcFaceViT', depth=places(r'blocks\.(\d+)\.'), **options)
    if {'conv_sep.layers.0.weight', 'features.layers.2.weight'} <= keys:
        blocks = [places(rf'layers\.{stage}\.layers\.(\d+)\.layers\.') or 1 for stage in (1, 3, 5, 7)]
        options = dict(scale=size('conv_sep.layers.0.weight', 1) // 128, embedding_dim=size('features.layers.2.weight'))
        return dict(type='MobileFaceNet', blocks=blocks, **options)
    return None


def _embedder_of(config: Config, path: str | Path) -> dict:
    """Arguments of `FaceEmbedder`, but for the checkpoint, for the model of a recipe."""
    model = config.get('model') or {}
    if model.get('type') == 'FaceEmbedder':
        return _without(model, 'type', 'checkpoint')
    backbone = model.get('backbone') or {}
    if model.get('type') not in ('FaceRecognizer', 'ImageClassifier') or 'type' not in backbone:
        raise ValueError(
            f'{path}: its model is {model.get("type")}, which embeds no face. Give the recipe of a FaceRecognizer, an '
            'ImageClassifier or a FaceEmbedder.'
        )
    if backbone['type'] == 'FaceEmbedder':
        return _without(backbone, 'type', 'checkpoint')
    shown = model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    kind = backbone['type'] if isinstance(backbone['type'], type) else MODELS.get(backbone['type'])
    if model.get('neck') or not hasattr(kind, 'template'):
        model = dict(backbone=backbone, neck=model.get('neck'), data_preprocessor=shown)
        return dict(backbone=dict(type='ClassifierEmbedder', model=model, input_size=_input_size(config)))
    order = dict(channel_order='rgb' if shown.get('to_rgb') else 'bgr') if shown else {}
    normalisation = {key: tuple(shown[key]) for key in ('mean', 'std') if shown.get(key) is not None}
    return dict(backbone=_without(backbone, 'init_cfg'), **order, **normalisation)


def _input_size(config: Config) -> int:
    """Side of the images that a recipe tests its network on, pixels."""
    for loader in ('test_dataloader', 'val_dataloader'):
        pipeline = ((config.get(loader) or {}).get('dataset') or {}).get('pipeline') or ()
        for step in reversed(pipeline):
            size = step.get('crop_size') or step.get('size') or step.get('scale')
            if isinstance(size, int):
                return size
            if size:
                return size[0]
    return 224


def _without(config: Mapping, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}
