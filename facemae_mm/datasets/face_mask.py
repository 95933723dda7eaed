"""γ of Eq. 1: which patches of a face are removed."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ..alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE

SCHEME = 'facemae-mask-v1'
SECRET_BYTES = 32

#: Value of a removed pixel: the middle of [0, 255], which is 0 after (x − 127.5) / 127.5.
BLANK = 127.5

#: Ellipses of each region (Table 7): the points of `ARCFACE_TEMPLATE` whose mean is the centre, and half axes along and
#: across the line of the eyes, in distances between the eyes (35 of 112 pixels). Eyes with brows, mouth with lips.
REGIONS = dict(
    eyes=(((0,), 0.42, 0.30), ((1,), 0.42, 0.30)),
    nose=(((2,), 0.30, 0.30),),
    mouth=(((3, 4), 0.60, 0.32),),
)


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
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())  # on the disk before anything that it decides about
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
    secret: bytes,
    img_key: str,
    num_patches: int,
    mask_ratio: float,
    epoch: int | None = None,
    always: Sequence[int] = (),
) -> np.ndarray:
    """Draws the patches to remove from one image, by a counter-based generator (Philox) keyed by the image.

    Args:
        secret: Mask secret, or the bytes that stand for a seed.
        img_key: Key of the image in its set.
        num_patches: L.
        mask_ratio: r in [0, 1); ``int(L · (1 − r))`` patches stay, as in facebookresearch/mae.
        epoch: Draws another mask in each epoch; None for the one mask of deployment.
        always: Patches that are removed whatever is drawn; random ones fill up to the ratio.

    Returns:
        (L,) uint8, row by row over the image; 1 = removed.

    Raises:
        ValueError: More patches are always removed than the ratio removes.
    """
    parts = (img_key,) if epoch is None else (img_key, str(epoch))
    key = np.frombuffer(keyed_digest(secret, *parts)[:16], '<u8')
    noise = np.random.Philox(key=key).random_raw(num_patches)  # raw words: the same in every NumPy
    order = np.argsort(noise, kind='stable')
    order = order[~np.isin(order, always)]
    kept = int(num_patches * (1 - mask_ratio))
    if kept > len(order):
        raise ValueError(
            f'{img_key!r}: its regions are {num_patches - len(order)} of {num_patches} patches, more than the '
            f'{num_patches - kept} that mask_ratio {mask_ratio} removes. Raise mask_ratio, name fewer regions, or '
            'check the landmarks of this image.'
        )
    mask = np.ones(num_patches, np.uint8)
    mask[order[:kept]] = 0
    return mask


def region_distance(regions: Sequence[str], points: np.ndarray, size: int, patch_size: int) -> np.ndarray:
    """How far each patch is from the nearest of some regions of a face, in half axes of its ellipse.

    Args:
        regions: Names of `REGIONS`.
        points: The five points of the face (5, 2), pixels (x, y), pixel centres at integers.
        size: Side of the face, pixels.
        patch_size: Side of a patch, pixels.

    Returns:
        (L,): the least over 3 × 3 points of a patch, corners included; at most 1 where it touches a region.
    """
    eyes = points[1] - points[0]
    scale = np.hypot(*eyes)
    along = eyes / scale
    across = np.array([-along[1], along[0]])
    starts = np.arange(0, size, patch_size) - 0.5
    line = (starts[:, None] + np.array([0, 0.5, 1]) * patch_size).ravel()  # 3 a patch
    grid = np.stack(np.meshgrid(line, line), -1)  # (3 · G, 3 · G, 2), (x, y)
    distances = []
    for corners, half_along, half_across in (ellipse for region in regions for ellipse in REGIONS[region]):
        offset = grid - points[list(corners)].mean(0)
        distances.append(np.hypot(offset @ along / (half_along * scale), offset @ across / (half_across * scale)))
    patches = len(starts)
    nearest = np.min(distances, 0).reshape(patches, 3, patches, 3)
    return nearest.min((1, 3)).ravel()


def blank_removed(img: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """The image (H, H, 3) as float32 with the pixels of removed patches at `BLANK`."""
    grid = len(img) // patch_size
    removed = mask.reshape(grid, grid).repeat(patch_size, 0).repeat(patch_size, 1).astype(bool)
    return np.where(removed[..., None], np.float32(BLANK), img.astype(np.float32))


@TRANSFORMS.register_module()
class FaceMask(BaseTransform):
    """Draws the patch mask γ of Eq. 1 at the size at which faces are stored.

    In training (`fresh`) the mask is a function of (seed, epoch, image key) and the image is left whole, as the target
    of the loss. In deployment it is a function of (secret or seed, image key) alone, whatever the batch, the worker or
    the number of processes, and the removed pixels are blanked here, so that nothing behind the mask goes any further.
    With regions it depends on the image's landmarks too, or on the template's where these are unknown.

    A face of a masked dataset has its mask already: it is checked against the options here and kept.

    Paper gap: the paper enlarges to 224 and then masks. Patches are cut at the stored size here (112: patch 8, which
    is patch 16 at 224), since enlarging first mixes removed pixels into visible patches. Put a Resize before this
    transform for the paper's order.

    **Required Keys:**

    - img (H, W, 3)
    - img_key
    - epoch (where `fresh`)
    - landmarks (5, 2), pixels, or None (where `regions`, optional)
    - flip (optional; landmarks follow a horizontal flip)

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
        regions: Names of `REGIONS` whose patches are always removed (Table 7); random ones fill up to the ratio.
        region_only: Removes the regions alone, whatever the ratio: in each image as many patches as the regions have
            on the template, those nearest to them.

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
        regions: Sequence[str] = (),
        region_only: bool = False,
    ) -> None:
        if not 0 <= mask_ratio < 1:
            raise ValueError(f'FaceMask: mask_ratio {mask_ratio} is not in [0, 1). The paper uses 0.75.')
        if patch_size < 1:
            raise ValueError(f'FaceMask: patch_size {patch_size} is less than a pixel. It is 8 for 112 pixels.')
        if (secret is None) == (seed is None):
            raise ValueError(
                f'FaceMask: give either a seed or a secret file, not {seed=} and {secret=}. '
                'A release takes a secret; training, tests and tables take a seed.'
            )
        if fresh and secret is not None:
            raise ValueError('FaceMask: fresh masks are for training and take a seed; set fresh=False to use a secret.')
        regions = (regions,) if isinstance(regions, str) else tuple(sorted(set(regions)))
        unknown = [region for region in regions if region not in REGIONS]
        if unknown or (region_only and not regions):
            raise ValueError(
                f'FaceMask: regions={regions} with {region_only=}. Choose regions among {", ".join(REGIONS)}.'
            )
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio
        self.fresh = fresh
        self.seed = seed
        self.regions = regions
        self.region_only = region_only
        self._secret_file = secret
        if secret is not None and Path(secret).exists():
            self._secret  # a damaged file is told at once  # noqa: B018

    @cached_property
    def _secret(self) -> bytes:
        """Of a masked dataset's faces it is never asked for, so none is drawn."""
        return f'seed {self.seed}'.encode() if self._secret_file is None else load_mask_secret(self._secret_file)

    @property
    def needs_landmarks(self) -> bool:
        """Whether samples should carry the landmarks of the face."""
        return bool(self.regions)

    @property
    def commitment(self) -> str:
        """What a manifest may say of the secret: HMAC-SHA256(secret, 'facemae-mask-v1'), hexadecimal."""
        return keyed_digest(self._secret).hex()

    def describe(self, size: int) -> dict:
        """What a manifest says of the masks of faces stored at `size` pixels; the secret itself stays out."""
        return dict(
            scheme=SCHEME,
            ratio=float(self.draw('', size).mean()) if self.region_only else self.mask_ratio,
            patch_size=self.patch_size,
            stored_size=size,
            regions=list(self.regions),
            region_only=self.region_only,
            commitment=self.commitment,
            public_seed=self.seed,
        )

    def image_pseudonym(self, img_key: str) -> str:
        """HMAC-SHA256(secret, img_key), hexadecimal: what only the owner can compute; sorts at random."""
        return hmac.new(self._secret, img_key.encode(), hashlib.sha256).hexdigest()

    def identity_pseudonym(self, name: str) -> str:
        """The same for the name of an identity."""
        return keyed_digest(self._secret, 'identity', name).hex()

    def draw(
        self, img_key: str, size: int, landmarks: np.ndarray | None = None, epoch: int | None = None
    ) -> np.ndarray:
        """The mask (L,) of an image of `size` pixels; 1 = removed.

        Args:
            img_key: Its key.
            size: Its side, divisible by the patch.
            landmarks: Its five points (5, 2), pixels; None for the template's.
            epoch: Of training; None in deployment.
        """
        num_patches = (size // self.patch_size) ** 2
        if not self.regions:
            return patch_mask(self._secret, img_key, num_patches, self.mask_ratio, epoch)
        template = (ARCFACE_TEMPLATE + 0.5) * (size / ARCFACE_SIZE) - 0.5
        distance = region_distance(self.regions, template if landmarks is None else landmarks, size, self.patch_size)
        if not self.region_only:
            always = np.flatnonzero(distance <= 1)
            return patch_mask(self._secret, img_key, num_patches, self.mask_ratio, epoch, always)
        count = int((region_distance(self.regions, template, size, self.patch_size) <= 1).sum())
        mask = np.zeros(num_patches, np.uint8)
        mask[np.argsort(distance, kind='stable')[:count]] = 1
        return mask

    def transform(self, results: dict) -> dict:
        """Adds the mask; blanks the removed patches where it is a mask for deployment."""
        img, p = results['img'], self.patch_size
        h, w = img.shape[:2]
        if h % p or w % p or h != w:
            raise ValueError(
                f'FaceMask: image size {(h, w)} of {results["img_key"]!r} is not a square that patch_size {p} divides. '
                'Align and resize the faces (112×112 for ArcFace), or change patch_size.'
            )
        if 'mask' in results:
            self._check_own_mask(results)
            return results
        landmarks = results.get('landmarks')
        if landmarks is not None and results.get('flip'):
            landmarks = np.stack([w - 1 - landmarks[:, 0], landmarks[:, 1]], 1)[[1, 0, 2, 4, 3]]
        results['mask'] = self.draw(results['img_key'], h, landmarks, results['epoch'] if self.fresh else None)
        if not self.fresh:
            results['img'] = blank_removed(img, results['mask'], p)
        return results

    def _check_own_mask(self, results: dict) -> None:
        """A face of a masked dataset must have been masked as the options say, and stand as it was stored."""
        key, mask, size = results['img_key'], results['mask'], len(results['img'])
        if self.fresh or results.get('flip'):
            raise ValueError(
                f'FaceMask: {key} comes from a masked dataset, which holds no original to train on, nor one to flip. '
                'Set fresh=False and take RandomFlip out; training needs the original faces.'
            )
        num_patches = (size // self.patch_size) ** 2
        expected = num_patches - int(num_patches * (1 - self.mask_ratio))
        if len(mask) != num_patches or (mask.sum() != expected and not self.region_only):
            raise ValueError(
                f'FaceMask: {key} was masked in {len(mask)} patches of which {mask.sum()} are removed; '
                f'patch_size={self.patch_size} and mask_ratio={self.mask_ratio} would remove {expected} of '
                f'{num_patches}. Set both to what facemasked.json says.'
            )
