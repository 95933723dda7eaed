"""Export: the released set of reconstructed faces, with manifest and card, and the links that the owner alone keeps."""

import datetime
import hashlib
import json
import os
import shutil
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import all_gather_object, barrier, broadcast_object_list, get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS, MODELS
from tqdm import tqdm

from ..datasets import FaceMask, FaceRecordDataset, open_faces
from ..datasets.landmarks import landmarks_digest
from ..datasets.masked_dataset import MaskedSource
from ..datasets.release_source import FOLDERS, FORMAT, LAYOUTS, MANIFEST, RECORDS, VERSION
from ..datasets.resumable import (
    PartialFolder,
    differences,
    keys_digest,
    resumable_writing,
    sha256_file,
    write_private,
)
from ..evaluation.links import LINK_COLUMNS, LINKS
from ..launch import own_cores, refuse
from ..models.face_mae import FaceMAE
from ..open_embedder import open_embedder
from ..precision import processor_name
from ..release.audit import CARD
from ..release.card import draw_card
from ..release.check import SAMPLES
from ..release.chunk_files import ChunkFiles, EncodedChunk
from ..release.layouts import MOST_RECORDS, ReleaseWriter, name_digits
from ..release.manifest import check_manifest, describe_config, flat, left_out_strings, manifest_text, versions
from ..release.originals import OriginalsCheck, summarise
from ..release.plan import ReleasePlan
from .chunk_test_loop import ChunkTestLoop

SKIPPED = 'skipped.csv'
LOG = 'export.log'

#: OpenCV's file type and option of the quality, by format.
FORMATS = dict(png=('.png', None), jpeg=('.jpg', cv2.IMWRITE_JPEG_QUALITY))

#: The most threads that encode and write, in each process.
MOST_WRITERS = 8


@HOOKS.register_module()
class ReconstructionExportHook(Hook):
    """Writes what `FaceMAE` reconstructs in `ChunkTestLoop` as a released set.

    `out_dir` appears under its name only when it is complete. Until then there is `out_dir.partial`, to which every
    process adds the chunks that it computes; the same command goes on with it after whatever end, and the release has
    the bytes of one that was never interrupted. A complete one is left alone. Beside it, `out_dir.private`, for the
    owner alone: `links.csv`, which face came from which; `skipped.csv`; `export.log`, when and where it was made.

    Args:
        out_dir: Directory of the release; seen by all processes.
        image_format: 'png' or 'jpeg'.
        quality: Of JPEG, 1 to 100.
        layout: 'folders' of identities, or 'records' (`train.rec`, `.idx`, `property`).
        shard_size: Bytes of faces after which a shard ends; None for one piece.
        samples: Faces to show on the card, in `samples.png`.
        on_error: 'raise', or 'skip' source faces that cannot be read; they are counted.
        originals: The real faces, to say how close the released ones are to them; None does not look.
        phi: Embedder for that, as `open_embedder` takes it; None takes the recipe's φ.

    Raises:
        FileExistsError: The directory holds a release, or a part of one, of another model, mask or recipe.
        ValueError: A recipe that makes no release: normalised output, fresh masks, another loop or model.
        ConnectionError: Another process ended by itself.
        OSError: A full disk, and the like.
    """

    def __init__(
        self,
        out_dir: str,
        image_format: str = 'png',
        quality: int = 95,
        layout: str = FOLDERS,
        shard_size: float | None = None,
        samples: int = 0,
        on_error: str = 'raise',
        originals: str | None = None,
        phi: str | None = None,
    ) -> None:
        for name, value, choices in (
            ('image_format', image_format, tuple(FORMATS)),
            ('layout', layout, LAYOUTS),
            ('on_error', on_error, ('raise', 'skip')),
        ):
            if value not in choices:
                raise ValueError(f'ReconstructionExportHook: {name}={value!r} is none of {", ".join(choices)}.')
        if not 1 <= quality <= 100 or samples < 0 or (shard_size is not None and shard_size < 1):
            raise ValueError(
                f'ReconstructionExportHook: {quality=} must be 1 to 100, {samples=} 0 or more, {shard_size=} bytes or '
                'None.'
            )
        if phi is not None and originals is None:
            raise ValueError(
                'ReconstructionExportHook: phi compares with originals. Give them too (--originals FACES).'
            )
        self.release = Path(out_dir)
        self.image_format = image_format
        self.quality = quality if image_format == 'jpeg' else None
        self.layout = layout
        self.shard_size = None if shard_size is None else int(shard_size)
        self.samples = samples
        self.on_error = on_error
        self.originals = originals
        self.phi = phi

        self.phi_sha256 = None
        self._folder: PartialFolder | None = None  # of the first process
        self._phi: torch.nn.Module | None = None
        self._check: OriginalsCheck | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._writing: deque[Future] = deque()

    @property
    def partial(self) -> Path:
        """Where the release grows."""
        return self.release.with_name(f'{self.release.name}.partial')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes from the training's records which φ it matched."""
        records = checkpoint.get('message_hub', {}).get('runtime_info', {})
        self.phi_sha256 = records.get('phi_sha256')

    def before_test(self, runner: Runner) -> None:
        """Refuses what cannot become a release, gives every face its place, and takes up what is written already."""
        try:
            self._prepare(runner)
        except (OSError, ValueError):
            if local_rank := int(os.environ.get('LOCAL_RANK', 0)):
                refuse('', local_rank)  # the first process of this machine says why
            raise

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        """Hands one chunk over to be encoded and written; it counts once it is on the disk."""
        notes = data_batch['notes']
        fault = next(filter(None, notes), None)
        if fault is not None and self.on_error == 'raise':
            raise ValueError(f'{fault} Or leave out what cannot be read (--cfg-options on_error=skip).')
        faces = torch.stack([sample.reconstruction for sample in outputs]) if outputs else None
        self._writing.append(self._pool.submit(self._write_chunk, data_batch['chunk'], faces, notes))
        while len(self._writing) > 2 * self._writers or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Puts the chunks of all processes together and gives the release its name."""
        while self._writing:
            self._writing.popleft().result()
        self._pool.shutdown()
        try:
            barrier()
        except RuntimeError as error:
            raise ConnectionError(
                f'Another process of this export ended by itself. What is finished is kept in {self.partial}: the same '
                'command goes on.'
            ) from error
        if self._folder is not None and not self._folder.complete:
            with self._folder.writing():
                self._assemble(runner)

    # Before ------------------------------------------------------------------------------------------------------

    def _prepare(self, runner: Runner) -> None:
        """What all processes agree on, then what is still to come."""
        try:
            own: dict | Exception = self._settle(runner)
        except (OSError, ValueError) as error:
            own = error
        seen = all_gather_object(own)
        if fault := next((found for found in seen if isinstance(found, Exception)), None):
            raise fault
        for rank, settings in enumerate(seen):
            if changed := differences(seen[0], settings):
                told = '; '.join(f'{key}: {first} there, {other} here' for key, (first, other) in changed.items())
                raise ValueError(
                    f'Process {rank} of this export sees something else than process 0: {told}. Give all of them the '
                    'same faces, checkpoint, mask secret, programs and kind of device.'
                )
        loop = runner.test_loop
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        self.chunks = ChunkFiles(self.partial / 'chunks', digest)
        found = [self._begin(runner, own) if get_dist_info()[0] == 0 else None]
        broadcast_object_list(found)
        error, loop.todo = found[0]
        if error is not None:
            raise error
        if len(loop.todo) and not self.partial.is_dir():
            raise FileNotFoundError(
                f'{self.partial} was made by the first process, and this machine ({socket.gethostname()}) does not see '
                'it. Put the release on a file system that all machines share.'
            )
        if self._phi is not None and len(loop.todo):
            self._check = OriginalsCheck(open_faces(self.originals), self.plan, self._phi, self.mask, self.chunk_size)
        self._writers = min(own_cores(), MOST_WRITERS)
        self._pool = ThreadPoolExecutor(self._writers, initializer=torch.set_num_threads, initargs=(loop.threads,))

    def _settle(self, runner: Runner) -> dict:
        """Gives every face its place, and says what decides about the bytes."""
        loop, dataset = runner.test_loop, runner.test_dataloader.dataset
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.mask = self._check_recipe(runner)
        dataset.test_mode, dataset.on_error = True, 'raise'  # a face that cannot be read is not replaced by another
        self.plan = ReleasePlan.of(dataset, self.mask)
        loop.order = self.plan.order
        self.chunk_size = loop.chunk_size
        if self.layout == RECORDS and self.shard_size is None and len(self.plan) >= MOST_RECORDS:
            raise ValueError(
                f'ReconstructionExportHook: a train.rec of {len(self.plan):,} images has a header that float32 does '
                f'not hold ({MOST_RECORDS:,}), so trainers would read past its end. Set shard_size, such as 2e11 bytes.'
            )
        self.head = self._describe(runner)
        if self.model.paste_visible:
            runner.logger.warning('paste_visible is on: this release holds the real pixels of every visible patch.')
        self._phi = self._open_phi(runner) if self.originals else None
        self.phi_used = None if self._phi is None else self._phi.sha256
        landmarks = None if isinstance(dataset.source, MaskedSource) else dataset.landmarks
        settings = dict(flat(self.head)) | left_out_strings(runner.cfg)
        settings |= dict(
            weights_sha256=_weights_digest(self.model),
            processor=processor_name() if loop.device.type == 'cpu' else None,
            images=len(self.plan),
            names_sha256=keys_digest(map(repr, self.plan.names(range(len(self.plan))))),
            landmarks_sha256=landmarks_digest(landmarks),
            shard_size=self.shard_size,
            samples=self.samples,
            originals_phi_sha256=self.phi_used,
        )
        return settings

    def _check_recipe(self, runner: Runner) -> FaceMask:
        """The one mask of a recipe that can make a release."""
        if not isinstance(self.model, FaceMAE):
            raise ValueError(
                f'ReconstructionExportHook: the model is a {type(self.model).__name__}; a FaceMAE reconstructs faces.'
            )
        self.model.check_norm_pix()
        if not isinstance(runner.test_loop, ChunkTestLoop):
            raise ValueError(
                f'ReconstructionExportHook: test_cfg makes a {type(runner.test_loop).__name__}, whose outputs depend '
                "on batch size and processes. Set test_cfg = dict(type='ChunkTestLoop')."
            )
        dataset = runner.test_dataloader.dataset
        if not isinstance(dataset, FaceRecordDataset):
            raise ValueError(
                f'ReconstructionExportHook: the test dataset is a {type(dataset).__name__}; a release is made of one '
                'FaceRecordDataset.'
            )
        transforms = dataset.pipeline.transforms
        masks = [transform for transform in transforms if isinstance(transform, FaceMask)]
        if len(masks) != 1 or masks[0].fresh:
            raise ValueError(
                'ReconstructionExportHook: the test pipeline needs one FaceMask with fresh=False and a secret, '
                f'not {masks}. A release has one mask an image.'
            )
        return masks[0]

    def _describe(self, runner: Runner) -> dict:
        """The head of the manifest: all that decides about the bytes of the faces."""
        source, checkpoint = self.plan.dataset.source, runner._load_from
        mask = (
            source.info['mask']
            if isinstance(source, MaskedSource)
            else self.mask.describe(round(self.model.backbone.num_patches**0.5) * self.mask.patch_size)
        )
        described = dict(
            format=FORMAT,
            version=VERSION,
            versions=versions(),
            config=describe_config(runner.cfg),
            model_sha256=sha256_file(checkpoint) if checkpoint else None,
            phi_sha256=self.phi_sha256,
            compute=runner.test_loop.describe(),
            mask=mask,
            paste_visible=self.model.paste_visible,
            image=dict(format=self.image_format, quality=self.quality, size=self.model.output_size),
            layout=self.layout,
        )
        head = json.loads(json.dumps(described))
        check_manifest(head, 'The head of the manifest', whole=False)
        return head

    def _open_phi(self, runner: Runner) -> torch.nn.Module:
        """The embedder that compares released faces with their originals."""
        if self.phi is not None:
            phi = open_embedder(self.phi)
        else:
            config = runner.cfg.model.get('head', {}).get('loss', {}).get('phi')
            remedy = 'Name an embedder (--phi dlib, a pack, a checkpoint).'
            if not isinstance(config, dict) or not config.get('checkpoint'):
                raise ValueError(f'--originals: the recipe has no φ of its own. {remedy}')
            try:
                phi = MODELS.build(config)
            except FileNotFoundError as error:
                raise ValueError(f"--originals: the recipe's φ is not at hand: {error} {remedy}") from error
        return phi.to(runner.test_loop.device).eval()

    def _begin(self, runner: Runner, settings: dict) -> tuple[Exception | None, list[int]]:
        """What forbids to begin or go on, and the chunks that are still to come."""
        try:
            self._folder = PartialFolder(self.release, settings, LINKS, accept_complete=True)
        except (OSError, ValueError) as error:
            return error, []
        if self._folder.complete:
            self._folder.close()
            runner.logger.info(
                f'Release {self.release} is complete (manifest SHA-256 {sha256_file(self.release / MANIFEST)}): '
                'nothing to do. tools/release.py --verify holds it against its manifest.'
            )
            return None, []
        chunks = -(-len(self.plan) // self.chunk_size)
        todo = np.flatnonzero(~self.chunks.written(chunks)).tolist()
        self._log = self._folder.log(LOG, ['time', 'host', 'what'])
        _, processes = get_dist_info()
        self._note(
            f'{"goes on" if self._folder.begun else "begins"}: {len(todo)} of {chunks} chunks of {self.chunk_size} '
            f'faces to do, {processes} processes, batch size {runner.test_dataloader.batch_size}'
        )
        return None, todo

    # Each chunk --------------------------------------------------------------------------------------------------

    def _write_chunk(self, chunk: int, faces: torch.Tensor | None, notes: list[str]) -> None:
        """Encodes the faces of a chunk (n, 3, H, H) uint8 RGB and writes them; `notes` says of others why not."""
        read = [number for number, note in enumerate(notes) if not note]
        images, closeness = [b''] * len(notes), None
        if faces is not None:
            pictures = faces.permute(0, 2, 3, 1).flip(-1).contiguous().cpu().numpy()  # RGB -> BGR
            for number, picture in zip(read, pictures, strict=True):
                images[number] = self._encode(picture)
        if self._check is not None:
            closeness = np.full((len(notes), 4), np.nan, np.float32)
            if read:
                first = chunk * self.chunk_size
                closeness[read] = self._check.compare([first + number for number in read], faces)
        with resumable_writing(self.partial):
            self.chunks.write(chunk, EncodedChunk(images, notes, closeness))

    def _encode(self, picture: np.ndarray) -> bytes:
        extension, option = FORMATS[self.image_format]
        ok, data = cv2.imencode(extension, picture, [] if option is None else [option, self.quality])
        if not ok:
            raise ValueError(f'A face {picture.shape} could not be encoded as {self.image_format}.')
        return data.tobytes()

    # At the end --------------------------------------------------------------------------------------------------

    def _assemble(self, runner: Runner) -> None:
        """Copies the encoded faces into the release, from the first on, and completes it."""
        folder, content = self._folder, self.partial / 'release'
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        digits, extension = name_digits(self.plan.labels), FORMATS[self.image_format][0]
        writer = ReleaseWriter(content, self.layout, extension, self.model.output_size, digits, self.shard_size)
        skipped: list[tuple[str, str]] = []
        sheet: dict[int, bytes] = {}
        closeness: list[np.ndarray] = []
        write_private(folder.private / LINKS, self._release_faces(writer, skipped, sheet, closeness))
        writer.close()
        (folder.private / SKIPPED).unlink(missing_ok=True)
        if skipped:
            write_private(folder.private / SKIPPED, [['source_key', 'note'], *skipped])
        manifest = self.head | dict(
            images=sum(writer.images_by_identity),
            identities=len(writer.images_by_identity),
            images_by_identity=writer.images_by_identity,
            errors_skipped=len(skipped),
            shards=writer.shards,
            samples=_write_samples(content / SAMPLES, list(sheet.values())),
            originals='not checked',
        )
        if self.phi_used is not None:
            manifest['originals'] = dict(phi_sha256=self.phi_used, **summarise(np.concatenate(closeness)))
        check_manifest(manifest, 'The manifest that this export made')
        (content / MANIFEST).write_text(manifest_text(manifest), encoding='utf-8')
        name = sha256_file(content / MANIFEST)
        (content / CARD).write_text(draw_card(manifest, name), encoding='utf-8')
        folder.finish(content)
        self._note(f'complete: {name}')
        left_out = f', {len(skipped)} that could not be read left out ({folder.private / SKIPPED})' * bool(skipped)
        runner.logger.info(
            f'Release {self.release}: {manifest["images"]:,} faces of {manifest["identities"]:,} identities{left_out}; '
            f'manifest SHA-256 {name}. Its links lie in {folder.private}: for you alone.'
        )
        if self.model.paste_visible:
            runner.logger.warning(f'{self.release} holds real pixels: paste_visible was on.')

    def _release_faces(
        self, writer: ReleaseWriter, skipped: list, sheet: dict[int, bytes], closeness: list[np.ndarray]
    ) -> Iterator[list]:
        """Rows of the links, as the faces are written one by one."""
        yield list(LINK_COLUMNS)
        shown = set(np.linspace(0, len(self.plan) - 1, self.samples, dtype=int).tolist())
        last = -1
        for start in tqdm(range(0, len(self.plan), self.chunk_size), desc='merging', unit='chunk', mininterval=1):
            places = range(start, min(start + self.chunk_size, len(self.plan)))
            chunk = start // self.chunk_size
            if not self.chunks.path(chunk).is_file():
                raise ValueError(f'Chunk {chunk} is missing in {self.partial}. The same command makes it and goes on.')
            encoded = self.chunks.read(chunk, len(places))
            if encoded.closeness is not None:
                closeness.append(encoded.closeness)
            rows = zip(places, self.plan.names(places), encoded.images, encoded.notes, strict=True)
            for place, (key, identity), image, note in rows:
                if note and self.on_error == 'raise':  # a run before this one skipped it
                    raise ValueError(
                        f'{note} So it was left out before, with on_error=skip. Give that again, or delete '
                        f'{self.chunks.path(chunk)}: the same command makes it anew and goes on.'
                    )
                if note:
                    skipped.append((key, note))
                    continue
                person = int(self.plan.labels[place])
                path, label = writer.write(person != last, image)
                last = person
                if place in shown:
                    sheet[place] = image
                yield [path, label, key, identity]
        if not writer.images_by_identity:
            raise ValueError(
                f'None of {len(self.plan)} faces could be read, the first: {skipped[0][1]} Nothing is released; delete '
                f'{self.partial} before the next try.'
            )

    def _note(self, text: str) -> None:
        """A line of the owner's log."""
        self._log.append(
            [datetime.datetime.now().astimezone().isoformat(timespec='seconds'), socket.gethostname(), text]
        )


def _weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, wherever they come from."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _write_samples(path: Path, images: list[bytes]) -> dict | None:
    """Some released faces on one sheet; what the manifest says of it."""
    if not images:
        return None
    faces = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) for image in images]
    columns = int(np.ceil(len(faces) ** 0.5))
    faces += [np.full_like(faces[0], 255)] * (-len(faces) % columns)
    rows = [np.hstack(faces[start : start + columns]) for start in range(0, len(faces), columns)]
    path.write_bytes(cv2.imencode(path.suffix, np.vstack(rows))[1].tobytes())  # cv2.imwrite is silent on a full disk
    return dict(images=len(images), sha256=sha256_file(path))
