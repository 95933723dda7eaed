"""From a face to numbers about it: the discriminator, and the encoder of the same layers."""

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


@MODELS.register_module()
class FaceDiscriminator(BaseModule):
    """Convolutions of stride 2, then a linear layer.

    Args:
        size: Side of the faces, pixels.
        channels: Of each convolution's output.
        outputs: Numbers a face: 1 as a discriminator, twice the dimension of z as an encoder.
        spectral: Divide every weight by its largest singular value, as suits the hinge loss (Miyato et al., 2018).
    """

    def __init__(
        self,
        size: int = 56,
        channels: tuple[int, ...] = (32, 64, 128, 128),
        outputs: int = 1,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        norm = spectral_norm if spectral else nn.Identity()
        layers, width = [], 3
        for channel in channels:
            layers += [norm(nn.Conv2d(width, channel, 4, 2, 1)), nn.LeakyReLU(0.2)]
            width, size = channel, size // 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), norm(nn.Linear(width * size**2, outputs)))

    def forward(self, faces: Tensor) -> Tensor:
        """(N, 3, size, size) in [−1, 1] -> (N, outputs)."""
        return self.layers(faces)
