"""Export: the released set of reconstructed faces, with a manifest, and the links that the owner alone keeps."""

import hashlib
import json
import platform
import shutil
from collections import Counter
from pathlib import Path

import cv2
import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..datasets import FaceMask, FaceRecordDataset
from ..datasets.masked_dataset import MaskedSource
from ..datasets.resumable import sha256_file, write_private

MANIFEST_FORMAT = 'facemae-release-1'

CARD = """\
---
license: other
task_categories:
- image-feature-extraction
tags:
- face-recognition
- privacy-preserving
---
# Faces reconstructed by FaceMAE

{images:,} images of {identities:,} identities, {size}×{size} PNG, one folder an identity; labels are opaque numbers.

Made by FaceMAE-MM {version}: {ratio:.0%} of the {patch}×{patch} patches of each {stored}-pixel face were removed, and a
masked autoencoder reconstructed the face from what was left. {pasted}
The manifest's SHA-256 is the name of this release.

**What it does not do.** Reconstruction reduces how often a real photo finds its owner in this set; it does not remove
it. Leakage: not measured yet. Utility: not measured yet. Distance to the originals: not checked.

**Licence.** To be stated by the publisher; the licence of the source faces still binds.
"""


@HOOKS.register_module()
class ReconstructionExportHook(Hook):
    """Writes what `FaceMAE` reconstructs in the test loop as a released set.

    `out_dir` appears under its name only when it is complete: until then it is `out_dir.partial`. It holds identity
    folders of PNGs named by opaque numbers, `manifest.json` and `README.md`. Beside it, `out_dir.private/links.csv`
    (mode 0600) says which face came from which: for the owner alone, who needs it for an audit.

    Every process writes the faces that it reconstructs; the sampler must not repeat any (`round_up=False`).

    Args:
        out_dir: Folder of the release.

    Raises:
        FileExistsError: The release exists already.
        ValueError: The test pipeline has no fixed `FaceMask`, or the sampler repeats samples.
        RuntimeError: Faces are missing at the end.
    """

    def __init__(self, out_dir: str) -> None:
        self.release = Path(out_dir)
        self.partial = self.release.with_name(f'{self.release.name}.partial')
        self.private = self.release.with_name(f'{self.release.name}.private')

        self.phi_sha256 = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes from the training's records which φ it matched."""
        records = checkpoint.get('message_hub', {}).get('runtime_info', {})
        self.phi_sha256 = records.get('phi_sha256')

    def before_test(self, runner: Runner) -> None:
        """Names every face before the first is made, and refuses what cannot become a release."""
        if self.release.exists():
            raise FileExistsError(
                f'Release {self.release} exists and is complete. Choose another out_dir, or remove it to export anew.'
            )
        loader = runner.test_dataloader
        masks = [t for t in loader.dataset.pipeline.transforms if isinstance(t, FaceMask)]
        if len(masks) != 1 or masks[0].fresh:
            raise ValueError(
                'ReconstructionExportHook: the test pipeline needs one FaceMask with fresh=False and a secret, '
                f'not {masks}. A release has one mask an image.'
            )
        if getattr(loader.sampler, 'round_up', False) and runner.world_size > 1:
            raise ValueError(
                'ReconstructionExportHook: the sampler repeats samples to fill the last batch, so two processes would '
                "write one file. Set test_dataloader.sampler = dict(type='DefaultSampler', shuffle=False, "
                'round_up=False).'
            )
        self.mask = masks[0]
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.links = self._name_all(loader.dataset)
        if self.model.paste_visible:
            runner.logger.warning('paste_visible is on: this release holds the real pixels of every visible patch.')
        if is_main_process():
            shutil.rmtree(self.partial, ignore_errors=True)
            for folder in {Path(path).parent for path in self.links.values()}:
                (self.partial / folder).mkdir(parents=True, exist_ok=True)
        barrier()

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        """Writes the faces of one batch."""
        for sample in outputs:
            face = sample.reconstruction.permute(1, 2, 0).flip(-1).contiguous().cpu().numpy()  # RGB -> BGR
            path = self.partial / self.links[sample.img_key]
            if not cv2.imwrite(str(path), face):
                raise OSError(f'{path} could not be written. Is the disk full?')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Checks that every face is there, writes manifest, card and links, and gives the release its name."""
        barrier()
        if is_main_process():
            missing = [path for path in self.links.values() if not (self.partial / path).is_file()]
            if missing:
                raise RuntimeError(
                    f'{len(missing)} of {len(self.links)} faces are missing in {self.partial}, the first is '
                    f'{missing[0]}. Start the export again.'
                )
            manifest = self._manifest(runner)
            (self.partial / 'manifest.json').write_text(json.dumps(manifest, indent=1) + '\n')
            (self.partial / 'README.md').write_text(self._card(manifest))
            self._write_links(runner.test_dataloader.dataset)
            self.partial.rename(self.release)
            runner.logger.info(
                f'Release {self.release}: {len(self.links)} faces, manifest SHA-256 '
                f'{sha256_file(self.release / "manifest.json")}. Its links lie in {self.private}: for you alone.'
            )
        barrier()

    def _name_all(self, dataset: FaceRecordDataset) -> dict[str, str]:
        """img_key → released path; order and names come from the mask secret and carry nothing of the source."""
        faces = list(dataset.names())
        masked = isinstance(dataset.source, MaskedSource)  # keys and names are pseudonyms already
        identities = sorted({name for _, name in faces}, key=int if masked else self.mask.identity_pseudonym)
        label = {name: number for number, name in enumerate(identities)}
        names, count = {}, Counter()
        order = str if masked else self.mask.image_pseudonym
        for key, identity in sorted(faces, key=lambda face: order(face[0])):
            names[key] = f'{label[identity]:06d}/{count[identity]:06d}.png'
            count[identity] += 1
        return names

    def _manifest(self, runner: Runner) -> dict:
        """What was released and how it was made; no time, host, path or source name."""
        checkpoint = runner._load_from
        counts = Counter(str(Path(path).parent) for path in self.links.values())
        listing = ''.join(f'{sha256_file(self.partial / path)}  {path}\n' for path in sorted(self.links.values()))
        return dict(
            format=MANIFEST_FORMAT,
            versions=self._versions(),
            model_sha256=sha256_file(checkpoint) if checkpoint else None,
            phi_sha256=self.phi_sha256,
            mask=self._describe_mask(runner.test_dataloader.dataset),
            paste_visible=self.model.paste_visible,
            image=dict(format='png', size=self.model.output_size),
            images=len(self.links),
            identities=len(counts),
            images_by_identity=dict(sorted(counts.items())),
            files_sha256=hashlib.sha256(listing.encode()).hexdigest(),
            errors_skipped=0,
            originals='not checked',
        )

    def _describe_mask(self, dataset: FaceRecordDataset) -> dict:
        if isinstance(dataset.source, MaskedSource):
            return dataset.source.info['mask']
        return self.mask.describe(round(self.model.backbone.num_patches**0.5) * self.mask.patch_size)

    @staticmethod
    def _versions() -> dict[str, str]:
        from facemae_mm import __version__

        return dict(
            facemae_mm=__version__,
            python=platform.python_version(),
            torch=torch.__version__,
            mmengine=mmengine.__version__,
            mmpretrain=mmpretrain.__version__,
            numpy=np.__version__,
            opencv=cv2.__version__,
        )

    @staticmethod
    def _card(manifest: dict) -> str:
        pasted = (
            '**The visible patches of the real faces were pasted back.**'
            if manifest['paste_visible']
            else 'The whole output is the decoder’s; no real pixel was pasted back.'
        )
        return CARD.format(
            images=manifest['images'],
            identities=manifest['identities'],
            size=manifest['image']['size'],
            version=manifest['versions']['facemae_mm'],
            ratio=manifest['mask']['ratio'],
            patch=manifest['mask']['patch_size'],
            stored=manifest['mask']['stored_size'],
            pasted=pasted,
        )

    def _write_links(self, dataset: FaceRecordDataset) -> None:
        """links.csv, readable by its owner alone."""
        rows = [['released_path', 'released_label', 'source_key', 'source_label']]
        for key, identity in dataset.names():
            path = self.links[key]
            rows.append([path, int(Path(path).parent.name), key, identity])
        write_private(self.private / 'links.csv', rows)
