"""γ of Eq. 1: which patches of a face are removed."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

SCHEME = 'facemae-mask-v1'
SECRET_BYTES = 32

#: Value of a removed pixel: the middle of [0, 255], which is 0 after (x − 127.5) / 127.5.
BLANK = 127.5


def keyed_digest(secret: bytes, *parts: str) -> bytes:
    """HMAC-SHA256 of the scheme's name and `parts`; with no parts, the public commitment to the secret.

    Args:
        secret: Key of the HMAC.
        parts: What the digest is for; joined by NUL, which no image key holds.

    Returns:
        32 bytes.
    """
    return hmac.new(secret, '\0'.join((SCHEME, *parts)).encode(), hashlib.sha256).digest()


def load_mask_secret(path: str | Path) -> bytes:
    """Reads the owner's mask secret; draws one where the file does not exist yet.

    Args:
        path: File of 32 random bytes, created with mode 0600.

    Returns:
        The secret. It belongs in no log, config or manifest.

    Raises:
        ValueError: The file does not hold 32 bytes.
    """
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        try:
            os.link(draft, path)  # fails where another process was first: then its secret counts
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(
            f'Mask secret {path} holds {len(secret)} bytes, not {SECRET_BYTES}. '
            'Restore the file, or remove it to draw a new secret (and new masks).'
        )
    return secret


def patch_mask(
    secret: bytes, img_key: str, num_patches: int, mask_ratio: float, epoch: int | None = None
) -> np.ndarray:
    """Draws the patches to remove from one image, by a counter-based generator (Philox) keyed by the image.

    Args:
        secret: Mask secret, or the bytes that stand for a seed.
        img_key: Key of the image in its set.
        num_patches: L.
        mask_ratio: r in [0, 1); ``int(L · (1 − r))`` patches stay, as in facebookresearch/mae.
        epoch: Draws another mask in each epoch; None for the one mask of deployment.

    Returns:
        (L,) uint8, row by row over the image; 1 = removed.
    """
    parts = (img_key,) if epoch is None else (img_key, str(epoch))
    key = np.frombuffer(keyed_digest(secret, *parts)[:16], '<u8')
    noise = np.random.Philox(key=key).random_raw(num_patches)  # raw words: the same in every NumPy
    mask = np.ones(num_patches, np.uint8)
    mask[np.argsort(noise, kind='stable')[: int(num_patches * (1 - mask_ratio))]] = 0
    return mask


@TRANSFORMS.register_module()
class FaceMask(BaseTransform):
    """Draws the patch mask γ of Eq. 1 at the size at which faces are stored.

    In training (`fresh`) the mask is a function of (seed, epoch, image key) and the image is left whole, as the target
    of the loss. In deployment it is a function of (secret or seed, image key) alone, whatever the batch, the worker or
    the number of processes, and the removed pixels are blanked here, so that nothing behind the mask goes any further.

    Paper gap: the paper enlarges to 224 and then masks. Patches are cut at the stored size here (112: patch 8, which
    is patch 16 at 224), since enlarging first mixes removed pixels into visible patches. Put a Resize before this
    transform for the paper's order.

    **Required Keys:**

    - img (H, W, 3)
    - img_key
    - epoch (where `fresh`)

    **Modified Keys:**

    - img (float32, removed pixels at 127.5; only where not `fresh`)

    **Added Keys:**

    - mask (L,) uint8; 1 = removed

    Args:
        patch_size: Side of a patch in stored pixels.
        mask_ratio: Share of patches to remove, [0, 1).
        fresh: True for training, False for deployment.
        secret: File of the mask secret, drawn where it does not exist. Deployment only.
        seed: Stands for the secret in training, tests and tables; whoever guesses it knows the masks.

    Raises:
        ValueError: Options that contradict each other, or an image that the patch does not divide.
    """

    def __init__(
        self,
        patch_size: int = 8,
        mask_ratio: float = 0.75,
        fresh: bool = True,
        secret: str | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0 <= mask_ratio < 1:
            raise ValueError(f'FaceMask: mask_ratio {mask_ratio} is not in [0, 1). The paper uses 0.75.')
        if (secret is None) == (seed is None):
            raise ValueError(
                f'FaceMask: give either a seed or a secret file, not {seed=} and {secret=}. '
                'A release takes a secret; training, tests and tables take a seed.'
            )
        if fresh and secret is not None:
            raise ValueError('FaceMask: fresh masks are for training and take a seed; set fresh=False to use a secret.')
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio
        self.fresh = fresh
        self.seed = seed
        self._secret = load_mask_secret(secret) if seed is None else f'seed {seed}'.encode()

    @property
    def commitment(self) -> str:
        """What a manifest may say of the secret: HMAC-SHA256(secret, 'facemae-mask-v1'), hexadecimal."""
        return keyed_digest(self._secret).hex()

    def opaque(self, kind: str, name: str) -> str:
        """A pseudonym of a source name that only the owner of the secret can compute; sorts at random."""
        return keyed_digest(self._secret, kind, name).hex()

    def transform(self, results: dict) -> dict:
        """Adds the mask; blanks the removed patches where it is a mask for deployment."""
        img, p = results['img'], self.patch_size
        h, w = img.shape[:2]
        if h % p or w % p or h != w:
            raise ValueError(
                f'FaceMask: image size {(h, w)} of {results["img_key"]!r} is not a square that patch_size {p} divides. '
                'Align and resize the faces (112×112 for ArcFace), or change patch_size.'
            )
        epoch = results['epoch'] if self.fresh else None
        mask = patch_mask(self._secret, results['img_key'], (h // p) * (w // p), self.mask_ratio, epoch)
        results['mask'] = mask
        if not self.fresh:
            removed = mask.reshape(h // p, w // p).repeat(p, 0).repeat(p, 1).astype(bool)
            results['img'] = np.where(removed[..., None], np.float32(BLANK), img.astype(np.float32))
        return results
