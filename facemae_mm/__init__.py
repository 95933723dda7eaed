"""FaceMAE-MM: train face recognisers on faces that a masked autoencoder reconstructed, not on the originals."""

from . import stack

stack.apply()

from . import datasets, engine, evaluation, models  # noqa: E402

__version__ = '0.1.0'

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models']
