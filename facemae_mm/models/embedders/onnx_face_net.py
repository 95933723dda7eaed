"""A recognition network as InsightFace's packs hold it: an ONNX graph, as a differentiable torch module."""

import warnings
from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import MODELS
from torch import nn

#: Oldest operator set that onnx2torch knows all of; older graphs, as MXNet's export wrote, are brought to it.
OPSET = 13

REMEDY = (
    'Give the recognition model of an InsightFace pack (w600k_r50.onnx, glintr100.onnx, …) or the folder of the pack.'
)


def find_recognition_model(folder: str | Path) -> Path:
    """The one recognition model among the files of an InsightFace pack, told by input and output as InsightFace does.

    Args:
        folder: Folder with .onnx files.

    Raises:
        FileNotFoundError: None of them, or several, are.
        ValueError: A file is no ONNX model.
    """
    files = sorted(Path(folder).glob('*.onnx'))
    found = [file for file in files if _describe(_read(file)) is None]
    if len(found) != 1:
        names = ', '.join(file.name for file in found or files) or 'no .onnx file'
        raise FileNotFoundError(
            f'{folder} has {len(found)} recognition models ({names}), not one. Give the path of the .onnx file itself.'
        )
    return found[0]


def _read(path: Path):
    """The graph of a file with its weights."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError('An ONNX φ needs onnx and onnx2torch: `pip install onnx onnx2torch`.') from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
        tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            raise ValueError(
                f'{path} keeps its weights in another file, which its SHA-256 would not cover. Store it as one: '
                "python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'one_file.onnx')\"."
            )
        if not model.graph.node:  # what bytes of another kind may parse as
            raise DecodeError('it holds no graph')
        onnx.checker.check_model(model)  # a part of a file may parse too
    except (DecodeError, onnx.checker.ValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f'{path} is no ONNX model, or is damaged or cut off ({reason}). {REMEDY}') from error
    return model


def _inputs(model) -> list:
    weights = {tensor.name for tensor in model.graph.initializer}  # old exports list them among the inputs
    return [value for value in model.graph.input if value.name not in weights]


def _shape(value) -> list[int]:
    """Sizes of an input or output; 0 where left open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _describe(model) -> str | None:
    """What a model is, if not a recognition network."""
    inputs, outputs = _inputs(model), model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        return f'{len(inputs)} inputs and {len(outputs)} outputs (a detector has many outputs), not one each'
    shape = _shape(inputs[0])
    # InsightFace's router: 192 are landmarks, 96 gender and age; faces have at least 112, a multiple of 16.
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] < 112 or shape[2] % 16 or shape[2] == 192:
        return f'input {shape}, not (N, 3, S, S) with S of at least 112, a multiple of 16 and not 192 (landmarks)'
    if len(_shape(outputs[0])) not in (0, 2):
        return f'output {_shape(outputs[0])}, not (N, D)'
    return None


@MODELS.register_module()
class OnnxFaceNet(nn.Module):
    """Embeds ArcFace-aligned faces by an ONNX recognition network, differentiable in the face.

    onnx2torch turns the graph into torch modules. A graph made for one face runs on any number: what its Reshape nodes
    fix as a batch of one is left open, and two faces at once are compared with each alone when it is built.

    Input is RGB, normalised as InsightFace's `ArcFaceONNX` decides: a graph among whose first 8 nodes one named Sub… or
    _minus… and one named Mul… or _mul… does it itself (mean 0, std 1), any other expects (x − 127.5) / 127.5. A network
    that was trained with other values (nothing in a graph says so) needs them as `mean` and `std` of `FaceEmbedder`.

    Args:
        checkpoint: The .onnx file, weights inside. `FaceEmbedder` hands its own on.

    Raises:
        ImportError: onnx or onnx2torch is not installed.
        ValueError: No file given; no ONNX file, damaged, with weights in another file; another model than one for
            recognition; operators that onnx2torch lacks; or a graph that holds for one face alone.
    """

    #: `FaceEmbedder` hands its checkpoint to the constructor: the network itself is in the file.
    from_checkpoint = True
    channel_order = 'rgb'
    template = None

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        super().__init__()
        if checkpoint is None:
            raise ValueError(f'OnnxFaceNet: checkpoint is not set, and the network is in that file. {REMEDY}')
        model = _read(Path(checkpoint))
        if other := _describe(model):
            raise ValueError(f'{checkpoint} is no recognition model: {other}. {REMEDY}')
        self.input_size = _shape(_inputs(model)[0])[2]
        first = [node.name for node in model.graph.node[:8]]
        inside = all(any(name.startswith(kind) for name in first) for kind in (('Sub', '_minus'), ('Mul', '_mul')))
        self.mean, self.std = ((0.0,) * 3, (1.0,) * 3) if inside else ((127.5,) * 3, (127.5,) * 3)
        self.graph = _to_torch(model, checkpoint)
        self.embedding_dim = self._embed_two(checkpoint)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, input_size, input_size) RGB, normalised by `mean` and `std`.

        Returns:
            The embedding (N, D) alone in a tuple, raw.
        """
        return (self.graph(x),)

    @torch.no_grad()
    def _embed_two(self, checkpoint: str | Path) -> int:
        """Length of an embedding, of two faces at once as of each alone."""
        noise = np.random.default_rng(0).uniform(-1, 1, (2, 3, self.input_size, self.input_size))
        faces = torch.from_numpy(noise).float() * torch.tensor(self.std).view(3, 1, 1) + torch.tensor(self.mean).view(
            3, 1, 1
        )
        alone = torch.cat([self.graph(face[None]) for face in faces])
        try:
            together = self.graph(faces)
            same = together.shape == alone.shape and torch.allclose(
                together, alone, rtol=0, atol=1e-3 * float(alone.abs().max())
            )
        except RuntimeError:
            same = False
        if alone.ndim != 2 or not same:
            raise ValueError(
                f'{checkpoint}: the graph gives another result for two faces than for each alone, so its batch size '
                'is fixed in other places than Reshape nodes. Export it anew with a dynamic batch axis.'
            )
        return alone.shape[1]


def _to_torch(model, checkpoint: str | Path) -> nn.Module:
    """The graph as torch modules, in eval mode, its batch left open."""
    try:
        import onnx
        from onnx2torch import convert
    except ImportError as error:
        raise ImportError('An ONNX φ needs onnx and onnx2torch: `pip install onnx onnx2torch`.') from error
    _open_batch(model)
    try:
        if next(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')) < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of arrays that cannot be written, which nothing writes
            return convert(model).eval()
    except Exception as error:  # a converter raises whatever an operator leads to
        raise ValueError(
            f'{checkpoint} cannot be turned into torch modules: {error}. Export it with operators of ONNX itself, '
            'or give the network as a torch checkpoint.'
        ) from error


def _open_batch(model) -> None:
    """Leaves the first size of every Reshape to its input, and of the graph's input and output open, in place."""
    from onnx import numpy_helper

    (image,) = _inputs(model)
    if _shape(image)[0] == 1:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == 'Constant':
                tensors |= {name: a.t for name in node.output for a in node.attribute if a.name == 'value'}
        for node in model.graph.node:
            shape = tensors.get(node.input[1]) if node.op_type == 'Reshape' else None
            sizes = None if shape is None else numpy_helper.to_array(shape).copy()
            if sizes is not None and len(sizes) and sizes[0] == 1:
                sizes[0] = 0  # as in the input
                shape.CopyFrom(numpy_helper.from_array(sizes, shape.name))
    for value in (image, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = 'N'
    del model.graph.value_info[:]  # sizes of one face
