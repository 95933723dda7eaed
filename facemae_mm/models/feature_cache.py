"""φ(original) of faces seen before."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmpretrain.structures import DataSample

DIGEST_BYTES = 16
CRC_BYTES = 4


class FeatureCache:
    """Features of a training set in a file that all processes of a run share, and that outlives them.

    Record 2·sample_idx + flip holds the digest of the pixels (`HashFace`), CRC-32 of what follows, and D float32. A
    record of other pixels, of a half-written one or of none is unknown: so a set that changed, or an augmentation
    beyond the flip, costs time but never gives a wrong feature; two sets take each other's places. A feature that
    another run computed, in another batch, may differ in its last bits: a run that must repeat them all takes its own
    folder.
    Embeddings of faces are personal data: the owner alone reads the file.

    Args:
        folder: Where the file is; made where it is absent.
        fingerprint: What features depend on beside the pixels; names the file.
        dim: D.

    Raises:
        ValueError: Samples that lack what they are known by.
    """

    def __init__(self, folder: str | Path, fingerprint: str, dim: int) -> None:
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f'{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.features'
        self.dim = dim
        self.size = DIGEST_BYTES + CRC_BYTES + 4 * dim
        os.close(self._open())

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

    @staticmethod
    def _record(sample: DataSample) -> tuple[int, bytes]:
        """Number of the record of a sample, and what it must begin with."""
        if 'img_digest' not in sample or 'sample_idx' not in sample:
            raise ValueError(
                "IRMLoss: its cache knows faces by 'img_digest' and 'sample_idx', which a sample lacks. Put "
                "dict(type='HashFace') before PackInputs, and 'img_digest', 'sample_idx' and 'flip' into the meta_keys "
                'of that; or set cache=None.'
            )
        return 2 * sample.sample_idx + bool(sample.get('flip', False)), bytes.fromhex(sample.img_digest)

    def read(self, data_samples: Sequence[DataSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, D) float32, and which of them (N,) are known; the others are 0."""
        features = np.zeros((len(data_samples), self.dim), '<f4')
        known = np.zeros(len(data_samples), bool)
        file = self._open()
        try:
            for i, sample in enumerate(data_samples):
                number, digest = self._record(sample)
                record = os.pread(file, self.size, number * self.size)
                data = record[DIGEST_BYTES + CRC_BYTES :]
                if record.startswith(digest + _crc(data)) and len(record) == self.size:
                    features[i], known[i] = np.frombuffer(data, '<f4'), True
        finally:
            os.close(file)
        return torch.from_numpy(features), torch.from_numpy(known)

    def write(self, data_samples: Sequence[DataSample], features: torch.Tensor, which: torch.Tensor) -> None:
        """Keeps some features.

        Args:
            data_samples: N samples.
            features: (N, D).
            which: (N,) bool, those to keep.
        """
        file = self._open()
        try:
            for i in which.nonzero().ravel().tolist():
                number, digest = self._record(data_samples[i])
                data = features[i].float().numpy().astype('<f4').tobytes()
                os.pwrite(file, digest + _crc(data) + data, number * self.size)
        finally:
            os.close(file)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CRC_BYTES, 'little')
