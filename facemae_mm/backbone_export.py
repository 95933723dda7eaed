"""A trained recogniser as its peers read it: weights for arcface_torch or AdaFace, ONNX for InsightFace, classes."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .models.embedders import AdaFaceIR, ArcFaceViT, IResNet, MobileFaceNet
from .models.embedders.arcface_vit import ARCHITECTURES
from .models.embedders.face_embedder import load_strictly, read_torch_checkpoint, resolve_checkpoint
from .models.embedders.iresnet import STAGE_BLOCKS
from .models.recogniser import FaceRecognizer
from .whole_file import whole_file

#: Largest difference to torch that an ONNX file may have, in standard deviations of the embedding's values.
TOLERANCE = 1e-4

#: Operator set of the ONNX files: the first with what attention needs.
OPSET = 14

#: What InsightFace feeds: RGB, (x − 127.5) / 127.5.
FED = 127.5

#: Networks that peers know by name.
PEERS = {
    **{f'r{depth}': (IResNet, dict(depth=depth)) for depth in STAGE_BLOCKS},
    'mbf': (MobileFaceNet, {}),
    'mbf_large': (MobileFaceNet, dict(blocks=(2, 8, 12, 4), scale=4)),
    **{arch: (ArcFaceViT, dict(arch=arch)) for arch in ARCHITECTURES},
    **{f'ir_{depth}': (AdaFaceIR, dict(depth=depth)) for depth in (18, 34, 50, 101)},
    'ir_se_50': (AdaFaceIR, dict(depth=50, squeeze_excite=True)),
}


def load_recogniser(config: Config, checkpoint: str | Path) -> FaceRecognizer:
    """The recogniser of a recipe with trained weights, in eval mode, without its classes.

    Args:
        config: Recipe; its `model` is a `FaceRecognizer`.
        checkpoint: Its checkpoint, or a bare state dict of the backbone, as peers publish it.

    Raises:
        ValueError: The recipe trains no recogniser, or the weights do not fit it key by key.
        FileNotFoundError: No such checkpoint.
    """
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    if MODELS.get(config.get('model', {}).get('type', '')) is not FaceRecognizer:
        raise ValueError(
            f'{config.filename}: its model is no FaceRecognizer, so it gives no embeddings. Give the recipe that the '
            'recogniser was trained with, such as configs/arcface_r50_casia.py.'
        )
    model = MODELS.build({**config.model, 'head': dict(type='EmbeddingHead')})
    path = resolve_checkpoint(checkpoint)
    read = getattr(model.backbone, 'read_checkpoint', None)
    state = read_torch_checkpoint(path, strip_backbone=False)
    if any(key.startswith('backbone.') for key in state):
        state = {key: value for key, value in state.items() if not key.startswith(('head.', 'data_preprocessor.'))}
    else:
        state = {f'backbone.{key}': value for key, value in (read(path) if read else state).items()}
    load_strictly(model, state, path)
    return model.requires_grad_(False).eval()


def preprocessing(model: FaceRecognizer) -> tuple[str, list[float], list[float]]:
    """Channel order ('rgb' or 'bgr'), mean and std [0, 255] with which a recogniser was trained.

    Raises:
        ValueError: A mean and std of another number of channels than 3.
    """
    shown = model.data_preprocessor
    order = 'rgb' if shown.to_rgb else 'bgr'  # LoadFace gives BGR
    if getattr(shown, 'mean', None) is None:
        return order, [0.0] * 3, [1.0] * 3
    mean, std = (value.flatten().tolist() for value in (shown.mean, shown.std))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f'data_preprocessor: mean {mean} and std {std} are not of three channels. Give three values.')
    return order, mean, std


def peer_names(backbone: nn.Module) -> list[str]:
    """Names under which arcface_torch, or AdaFace for `AdaFaceIR`, builds a network of these keys and shapes."""
    own = {key: value.shape for key, value in backbone.state_dict().items()}
    names = []
    for name, (kind, options) in PEERS.items():
        if type(backbone) is kind:
            with torch.device('meta'):
                theirs = kind(**options, embedding_dim=backbone.embedding_dim).state_dict()
            names += [name] if {key: value.shape for key, value in theirs.items()} == own else []
    return names


def save_state_dict(model: FaceRecognizer, out: str | Path) -> str:
    """Writes the backbone's weights as its peer loads them strictly.

    That is arcface_torch's bare state dict, or for `AdaFaceIR` AdaFace's ``dict(state_dict={'model.…': …})``.

    Args:
        model: What `load_recogniser` gives.
        out: A .pth, .pt or .ckpt file, which appears when it is complete.

    Returns:
        What was written, in a line.

    Raises:
        ValueError: No peer has such a network, or its peer would feed it other colours or another normalisation.
    """
    backbone, out = model.backbone, Path(out)
    names = peer_names(backbone)
    if not names or model.with_neck:
        reason = 'with a neck' if model.with_neck else f'{type(backbone).__name__} of this size'
        raise ValueError(f'{out}: neither arcface_torch nor AdaFace has a network {reason}. Export ONNX (OUT.onnx).')
    trained, fed = preprocessing(model), (backbone.channel_order, list(backbone.mean), list(backbone.std))
    if trained != fed:
        raise ValueError(
            f'{out}: trained with {_describe(*trained)}, but who loads it would feed {_describe(*fed)}, and a state '
            'dict cannot say so. Export ONNX (OUT.onnx), which takes the difference in.'
        )
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    adaface = isinstance(backbone, AdaFaceIR)
    content = dict(state_dict={f'model.{key}': value for key, value in state.items()}) if adaface else state
    with whole_file(out) as file:
        torch.save(content, file)
    peer = 'AdaFace' if adaface else 'arcface_torch'
    return f'{out}: {" or ".join(names)} of {peer}, {len(state)} tensors, {out.stat().st_size:,} B'


def _describe(order: str, mean: list[float], std: list[float]) -> str:
    return f'{order.upper()}, (x − {mean}) / {std}'


class InsightFaceInput(nn.Module):
    """A recogniser behind what InsightFace feeds: RGB, (x − 127.5) / 127.5; its embedding comes out, raw."""

    def __init__(self, model: FaceRecognizer) -> None:
        super().__init__()
        self.model = model
        order, mean, std = preprocessing(model)
        self.flip = order == 'bgr'
        mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (mean, std))
        self.same = bool((mean == FED).all() and (std == FED).all())
        self.register_buffer('scale', (FED / std).float())
        self.register_buffer('shift', ((FED - mean) / std).float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, D)."""
        x = x.flip(1) if self.flip else x
        x = x if self.same else self.shift + x * self.scale
        return self.model.head.pre_logits(self.model.extract_feat(x))


def save_onnx(model: FaceRecognizer, out: str | Path) -> str:
    """Writes a recogniser as the recognition model of an InsightFace pack, with an open batch.

    InsightFace tells a recognition model by one output and a square input of 112 pixels, and feeds RGB, (x − 127.5) /
    127.5, unless a Sub… and a Mul… are among the names of the first eight nodes. A recogniser that was trained
    otherwise gets its own order of channels, mean and std inside the graph. Before the file has its name, InsightFace
    itself embeds random faces with it, alone and at once, and must agree with torch.

    Args:
        model: What `load_recogniser` gives.
        out: An .onnx file, which appears when it is complete.

    Returns:
        What was written, and the largest difference to torch, in a line.

    Raises:
        ImportError: onnx or insightface is not installed.
        ValueError: More than 2 GiB of weights, an input that InsightFace takes for another kind of model, an operator
            that ONNX lacks, or embeddings that differ.
    """
    try:
        import onnx  # noqa: F401  the exporter needs it
        from insightface.model_zoo import get_model
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX
    except ImportError as error:
        raise ImportError('ONNX needs onnx and insightface: `pip install onnx insightface`.') from error
    out, size = Path(out), getattr(model.backbone, 'input_size', 112)
    if size < 112 or size % 16 or size == 192:
        raise ValueError(
            f'{out}: faces of {size} pixels. InsightFace takes a multiple of 16 from 112 on for a recogniser, and 192 '
            'for landmarks. Train at 112.'
        )
    weights = sum(value.nbytes for value in model.state_dict().values())
    if weights > 2**31 - 2**20:
        raise ValueError(f'{out}: {weights:,} bytes of weights; an ONNX file holds 2 GiB. Export a state dict (.pth).')
    network, buffer = InsightFaceInput(model).eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that sizes become constants (the batch does not); that this exporter will go
        try:
            torch.onnx.export(
                network,
                (torch.zeros(2, 3, size, size),),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=['data'],
                output_names=['embedding'],
                dynamic_axes=dict(data={0: 'N'}, embedding={0: 'N'}),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f'{out}: {type(model.backbone).__name__} cannot be written as ONNX: {reason}') from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        draft = Path(folder, 'model.onnx')
        draft.write_bytes(buffer.getvalue())
        theirs = get_model(str(draft), providers=['CPUExecutionProvider'])
        if not isinstance(theirs, ArcFaceONNX) or theirs.input_mean != FED or theirs.input_std != FED:
            raise ValueError(f'{out}: InsightFace takes it for {type(theirs).__name__}, or feeds other values.')
        difference = largest_difference(model, theirs)
    if not difference <= TOLERANCE:
        raise ValueError(
            f'{out}: InsightFace and torch differ by {difference:.1e} standard deviations on the same faces, more than '
            f'{TOLERANCE:g}. Nothing was written; the network may hold what ONNX cannot say.'
        )
    with whole_file(out) as file:
        file.write(buffer.getvalue())
    return f'{out}: InsightFace embeds as torch does, to {difference:.1e} of its deviation; {out.stat().st_size:,} B'


@torch.no_grad()
def largest_difference(model: FaceRecognizer, theirs: object, faces: np.ndarray | None = None) -> float:
    """Between embeddings by a recogniser and by InsightFace, of faces alone and at once, in standard deviations.

    Args:
        model: As it was trained, with its data preprocessor.
        theirs: InsightFace's `ArcFaceONNX`.
        faces: (N, S, S, 3) BGR uint8; four random pictures where None.
    """
    size = theirs.input_size[0]
    if faces is None:
        faces = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    inputs = torch.from_numpy(np.ascontiguousarray(faces.transpose(0, 3, 1, 2)))
    data = model.data_preprocessor(dict(inputs=inputs), False)
    own = model.head.pre_logits(model.extract_feat(data['inputs'])).numpy()
    at_once = theirs.get_feat(list(faces))
    alone = np.concatenate([theirs.get_feat(face) for face in faces])
    return float(max(np.abs(found - own).max() for found in (at_once, alone)) / own.std())


def save_class_weights(checkpoint: str | Path, out: str | Path) -> str:
    """Writes the class weights of all processes as one array, (C, D) float32, row by label, as they are trained: raw.

    Normalised, they are a centre of each training identity: to name faces of these, or to be merged with those of
    another training. `numpy.load(OUT, mmap_mode='r')` reads single rows.

    Args:
        checkpoint: Of a training with `ArcFaceHead` or `PartialFCHead`.
        out: An .npy file, which appears when it is complete.

    Returns:
        What was written, in a line.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: It is damaged or holds no class weights.
    """
    path, out = resolve_checkpoint(checkpoint), Path(out)
    weight = read_torch_checkpoint(path, strip_backbone=False).get('head.weight')
    if weight is None or weight.ndim != 2:
        raise ValueError(f'{path} holds no class weights (head.weight). Give a checkpoint of the training itself.')
    with whole_file(out) as file:
        np.save(file, weight.float().numpy(), allow_pickle=False)
    return f'{out}: {len(weight):,} classes of {weight.shape[1]} channels, {out.stat().st_size:,} B'
