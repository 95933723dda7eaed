"""What is fuzzed: genuine files, how they are built with a few wrong fields, and what reads them."""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris
import cv2
import numpy as np

from facemae_mm.datasets.face_mask import FaceMask
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.datasets.ijb_protocol import IJBProtocol
from facemae_mm.datasets.landmarks import read_landmarks
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.masked_dataset import decode_masked, encode_masked
from facemae_mm.datasets.recordio import RecordWriter
from facemae_mm.datasets.verification_pairs import read_pairs
from facemae_mm.evaluation.links import read_links
from facemae_mm.release.audit import read_audit
from facemae_mm.release.card import draw_card
from facemae_mm.release.check import check_release
from facemae_mm.release.layouts import FolderShard, RecordShard
from facemae_mm.release.manifest import read_manifest

Provider = atheris.FuzzedDataProvider  # gives 0, and the first of a list, where its bytes are used up
Files = dict[Path, bytes]
BUILT = 255

#: Seeds, and what to do with an input.
Target = tuple[list[bytes], Callable[[bytes], None]]


def make_target(
    genuine: Files, read: Callable[[int], None], build: Callable[[Provider], Files] | None = None
) -> Target:
    """Genuine files, one of them changed, or some of them built.

    Args:
        genuine: The files.
        read: Reads them, given which one was changed.
        build: Makes those to be exchanged.
    """
    paths = list(genuine)
    for path, content in genuine.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def test(data: bytes) -> None:
        kind = sum(data[:1])
        built = build is not None and kind == BUILT
        kind = 0 if built else kind % len(paths)
        changed = build(Provider(data[1:])) if built else {paths[kind]: data[1:]}
        for path, content in changed.items():
            path.write_bytes(content)
        try:
            read(kind)
        finally:
            for path in changed:
                path.write_bytes(genuine[path])

    seeds = [bytes([i]) + content for i, content in enumerate(genuine.values())]
    return seeds + [bytes([BUILT, *bytes(99), i % 2, i]) for i in range(16 if build else 0)], test


def mostly(fdp: Provider, usual: object, *others: object) -> object:
    """The usual value, or rarely one of the others."""
    return fdp.PickValueInList([usual] * 5 * (1 + len(others)) + list(others))


def picture(extension: str = '.jpg', *flags: int) -> bytes:
    """A small encoded image."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return cv2.imencode(extension, cv2.resize(pixels, (16, 16)), flags)[1].tobytes()


def read_all(path: Path) -> None:
    """What a data loader does with a set, for its first images."""
    source = open_faces(path)
    for i in range(min(len(source), 8)):
        source.keys[i]
        source.read(i)


def packed(folder: Path) -> Files:
    """A genuine .rec and its .idx: three identities, one image in parts."""
    with RecordWriter(folder / 'seed.rec', (16, 16)) as writer:
        for number in range(6):
            writer.write(number // 2, picture() + struct.pack('<I', 0xCED7230A) * (number == 3))
    return {folder / f'fuzzed.{kind}': (folder / f'seed.{kind}').read_bytes() for kind in ('rec', 'idx')}


def build_records(fdp: Provider) -> tuple[bytes, bytes]:
    """A .rec and its .idx, with identity header and ranges or without."""
    images = fdp.ConsumeIntInRange(1, 8)
    people = (images + 1) // 2
    records = [[i // 2] for i in range(images)]  # a label, or several for an array
    if fdp.ConsumeBool():
        starts = [*range(1, images + 1, 2), images + 1]
        records = [[images + 1, images + 1 + people], *records, *(starts[i : i + 2] for i in range(people))]
    rec, idx = b'', b''
    for key, labels in enumerate(records):
        labels = [mostly(fdp, x, x + 1, -1, 0.5, 2.0**24, 3e38, math.nan) for x in labels]
        flag = len(labels) if len(labels) > 1 else mostly(fdp, 0, 1, (1 << 32) - 1)
        data = struct.pack('<IfQQ', flag, labels[0], key, 0) + struct.pack(f'<{len(labels)}f', *labels) + b'data'
        data = data[: mostly(fdp, len(data), 0, 20, 24, 28)]
        cut = mostly(fdp, None, 0, 4, 24, len(data))
        idx += b'%d\t%d\n' % (mostly(fdp, key, key + 1, -1, 1 << 62), mostly(fdp, len(rec), 0, len(rec) - 4, 1 << 62))
        for cflag, part in ((0, data),) if cut is None else ((1, data[:cut]), (2, b''), (3, data[cut:])):
            word = mostly(fdp, cflag, *range(8)) << 29 | mostly(fdp, len(part), 0, len(part) + 4, (1 << 29) - 1)
            rec += struct.pack('<II', mostly(fdp, 0xCED7230A, 0x3ED7230A, 0), word) + part + bytes(-len(part) % 4)
    return rec[: mostly(fdp, len(rec), 8, len(rec) - 4)], idx


def fuzz_rec(folder: Path) -> Target:
    """A .rec and its .idx."""
    files = packed(folder)
    return make_target(
        files, lambda _: read_all(folder / 'fuzzed.rec'), lambda fdp: dict(zip(files, build_records(fdp), strict=True))
    )


def fuzz_idx(folder: Path) -> Target:
    """The .idx of a genuine .rec."""
    rec, idx = packed(folder).items()
    rec[0].write_bytes(rec[1])
    return make_target(dict([idx]), lambda _: read_all(rec[0]))


def fuzz_bin(folder: Path) -> Target:
    """A verification .bin, by the pickle protocols there are; built: opcodes added, left out and exchanged."""
    arrays = [np.frombuffer(b'image', np.uint8)] * 4
    contents = [(images, [True, False]) for images in ([b'image'] * 4, arrays)] + [
        (os.system, ['true']),
        ([[1]], {2: 1.5}),
    ]
    pickles = [pickle.dumps(content, protocol) for content in contents for protocol in range(2, 6)]
    codes = []
    for data in pickles:
        at = [position for _, _, position in pickletools.genops(data)]
        codes.append([data[start:end] for start, end in zip(at, [*at[1:], len(data)], strict=True)])
    pool = sorted({code for program in codes for code in program}) + [bytes([i]) for i in range(256)]
    files = {folder / f'fuzzed{i}.bin': data for i, data in enumerate(pickles)}
    paths = list(files)

    def build(fdp: Provider) -> Files:
        program = list(fdp.PickValueInList(codes))
        for _ in range(fdp.ConsumeIntInRange(0, 4)):
            at, drop = fdp.ConsumeIntInRange(1, len(program)), fdp.ConsumeIntInRange(0, 2)
            program[at : at + drop] = [fdp.PickValueInList(pool) for _ in range(fdp.ConsumeIntInRange(0, 2))]
        return {paths[0]: b''.join(program)}

    return make_target(files, lambda kind: read_all(paths[kind]), build)


def fuzz_pairs(folder: Path) -> Target:
    """Lists of pairs: LFW's, by key, by path, and of CFP's protocol the numbered images and a fold."""
    cfp = folder / 'fuzzed'
    for fold in range(1, 11):
        (cfp / f'Split/FF/{fold:02d}').mkdir(parents=True)
        for name in ('same', 'diff'):
            (cfp / f'Split/FF/{fold:02d}/{name}.txt').write_text('1,2\n')
    files = {
        folder / 'fuzzed_lfw.txt': b'2 1\nA\t1\t2\nA\t1\tB\t1\nC\t1\t2\nA\t1\tC\t1\n',
        folder / 'fuzzed.csv': b'key1,key2,same\nA/1,A/2,1\nA/1,"B/1",0\n',
        folder / 'fuzzed_paths.txt': b'A/1.jpg A/2.jpg 1\nA/1.jpg B/1.jpg 0\n',
        cfp / 'Pair_list_F.txt': b'1 ../a/001/frontal/01.jpg\n2 a/001/frontal/02.jpg\n',
        cfp / 'Split/FF/03/same.txt': b'1,2\n',
    }
    paths = list(files)
    return make_target(files, lambda kind: read_pairs(cfp, 'FF') if kind > 2 else read_pairs(paths[kind]))


def fuzz_ijb(folder: Path) -> Target:
    """The lists of IJB-C: faces, templates, pairs, a gallery and the probes."""
    points = b' 1 2 3 4 5 6 7 8 9.5 10 0.999\n'
    meta = folder / 'fuzzed' / 'meta'
    files = {
        meta / 'ijbc_name_5pts_score.txt': b'1.jpg' + points + b'2.jpg' + points + b'3.jpg' + points,
        meta / 'ijbc_face_tid_mid.txt': b'1.jpg 1 69544\n2.jpg 1 3720\n3.jpg 7 9\n',
        meta / 'ijbc_template_pair_label.txt': b'1 7 0\n1 1 1\n',
        meta / 'ijbc_1N_gallery_G1.csv': b'TEMPLATE_ID,SUBJECT_ID\n1,5\n1,5\n',
        meta / 'ijbc_1N_gallery_G2.csv': b'TEMPLATE_ID,SUBJECT_ID\n7,8\n',
        meta / 'ijbc_1N_probe_mixed.csv': b'TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,5,"a,b"\n7,8,c\n',
    }

    def read(_: int) -> None:
        protocol = IJBProtocol(folder / 'fuzzed')
        protocol.read_pairs()
        protocol.read_search()

    return make_target(files, read)


def build_zip(fdp: Provider) -> bytes:
    """An archive of which names, methods and what its directory says of an entry may be wrong."""
    file = io.BytesIO()
    names = ('set/A/1.jpg', 'set/A/2.jpg', 'set/B/ü.jpg', 'set/note.txt')
    with zipfile.ZipFile(file, 'w') as archive:
        for name in names[: fdp.ConsumeIntInRange(1, 4)]:
            name = mostly(
                fdp, name, names[0], '../1.jpg', '/1.jpg', 'a\\1.jpg', 'c:/1.jpg', '.jpg', 'a/\1.png', 'a//1.jpg'
            )
            archive.writestr(zipfile.ZipInfo(name), b'data' * 9, mostly(fdp, fdp.PickValueInList([0, 8]), 12, 14))
            entry = archive.filelist[-1]
            for field in ('file_size', 'compress_size', 'header_offset', 'CRC', 'external_attr'):
                setattr(entry, field, mostly(fdp, getattr(entry, field), 0, 5, 99, 1 << 28, 0xA1FF << 16))
            entry.compress_type = mostly(fdp, entry.compress_type, 0, 8, 12, 14, 255)
            entry.flag_bits = mostly(fdp, entry.flag_bits, 1, 8, 32, 0x41, 0x800)
    return file.getvalue()


def fuzz_zip(folder: Path) -> Target:
    """A .zip of a folder of faces."""
    path = folder / 'fuzzed.zip'
    return make_target(
        {path: build_zip(Provider(b'\x63'))}, lambda _: read_all(path), lambda fdp: {path: build_zip(fdp)}
    )


def fuzz_masked(folder: Path) -> Target:
    """A masked face, and the description and the keys of a masked dataset."""
    image = cv2.imdecode(np.frombuffer(picture(), np.uint8), cv2.IMREAD_COLOR)
    face, fuzzed = folder / 'face', folder / 'fuzzed'
    info = dict(format='facemae-masked', version=1, images=1, identities=1, skipped=0, mask={})
    files = {
        face: encode_masked(image, np.array([1, 0, 1, 1], np.uint8), 8),
        fuzzed / 'facemasked.json': json.dumps(info).encode(),
        fuzzed / 'keys.bin': bytes(32),
    }
    target = make_target(files, lambda kind: read_all(fuzzed) if kind else decode_masked(face.read_bytes(), 'fuzzed'))
    with RecordWriter(fuzzed / 'faces.rec', (16, 16)) as writer:
        writer.write(0, files[face])
    return target


def described(folder: Path, layout: str, names: tuple[str, ...]) -> dict:
    """A genuine release of three faces of two identities a shard, and its manifest."""
    shards = []
    for number, name in enumerate(names):
        path = folder / name
        path.mkdir(parents=True)
        shard = FolderShard(path, '.png', 6) if layout == 'folders' else RecordShard(path, 16, 2 * number)
        for label in (0, 0, 1):
            shard.write(2 * number + label, picture('.png'))
        about = dict(path=name, first_label=2 * number, identities=2, images=3, bytes=3 * len(picture('.png')))
        shards.append(about | dict(sha256=shard.close()))
    digest = 'a' * 64
    return dict(
        format='facemae-release',
        version=1,
        versions=dict(facemae_mm='1', torch='2', opencv='5'),
        config=dict(model={}, pipeline=[]),
        model_sha256=digest,
        phi_sha256=None,
        compute=dict(device='CPU', threads=1, precision='float32', chunk_size=64),
        mask=FaceMask(patch_size=8, fresh=False, seed=0).describe(112),
        paste_visible=False,
        image=dict(format='png', quality=None, size=16),
        layout=layout,
        images=3 * len(names),
        identities=2 * len(names),
        images_by_identity=[2, 1] * len(names),
        errors_skipped=0,
        shards=shards,
        samples=None,
        originals='not checked',
    )


def fuzz_release(folder: Path) -> Target:
    """Manifest, checksums and audit of a release; built: fields of a manifest, and lines of checksums that fit it."""
    fuzzed, sharded = folder / 'fuzzed', folder / 'fuzzed_shards'
    manifest = described(fuzzed, 'folders', ('.',))
    shards = described(sharded, 'records', ('shard_00000', 'shard_00001'))
    closeness = dict(images=1, minimum=1, quantile_01=1, median=1, quantile_99=1, maximum=1)
    closeness = dict(own=closeness, other=dict(images=0))
    originals = dict(phi_sha256='a' * 64, psnr=closeness, phi_similarity=closeness)
    data = json.dumps(manifest).encode()
    audit = dict(
        release=hashlib.sha256(data).hexdigest(),
        leakage=dict(R50=dict(top1_with=0.5, top1_with_lo=0.4, top1_with_hi=0.6, chance_top1_with=0.1)),
        utility=dict(R50=dict(lfw=dict(accuracy=0.9, accuracy_lo=0.8, accuracy_hi=1, pairs=6000))),
    )
    files = {
        fuzzed / 'manifest.json': data,
        fuzzed / 'SHA256SUMS': (fuzzed / 'SHA256SUMS').read_bytes(),
        fuzzed / 'audit.json': json.dumps(audit).encode(),
        sharded / 'manifest.json': json.dumps(shards).encode(),
    }
    odd = [None, True, -1, 0, 2**53, 10**400, 1e300, 'x', '../x', '/etc', 'shard_00000', '.', [], {}, [[]], [{}]]

    def build(fdp: Provider) -> Files:
        made = json.loads(data) | dict(originals=mostly(fdp, 'not checked', originals))
        lines = files[fuzzed / 'SHA256SUMS'].split(b'\n')
        for _ in range(fdp.ConsumeIntInRange(0, 3)):
            at = fdp.ConsumeIntInRange(0, len(lines) - 1)
            names = [b'000000/000000.png', b'../x', b'/etc/passwd', b'x\0', b'\xff', b'.', b'0' * 300]
            lines[at] = fdp.PickValueInList([lines[at], lines[0], b'', b'a' * 64 + b'  ' + fdp.PickValueInList(names)])
        sums = b'\n'.join(lines)
        made['shards'][0]['sha256']['SHA256SUMS'] = hashlib.sha256(sums).hexdigest()
        for _ in range(fdp.ConsumeIntInRange(0, 3)):
            node, key = made, fdp.PickValueInList(list(made))
            while isinstance(node[key], dict | list) and node[key] and fdp.ConsumeBool():
                node = node[key]
                key = fdp.PickValueInList(list(node) if isinstance(node, dict) else list(range(len(node))))
            node[key] = copy.deepcopy(fdp.PickValueInList(odd))
        return {fuzzed / 'manifest.json': json.dumps(made).encode(), fuzzed / 'SHA256SUMS': sums}

    def read(kind: int) -> None:
        release = sharded if kind == 3 else fuzzed
        found, name = read_manifest(release)
        draw_card(found, name, read_audit(release, name) if kind == 2 else None)
        read_all(release)
        check_release(release)

    return make_target(files, read, build)


def fuzz_tables(folder: Path) -> Target:
    """landmarks5.csv and keys.csv beside a folder of faces, and the links of a release."""
    fuzzed = folder / 'fuzzed'
    points = b'path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy\nA/1.jpg,1,2,3,4,5,6,7,8,9,10\nB/1,1,2,3,4,5,6,7.5,8e0,9,10\n'
    files = {fuzzed / 'landmarks5.csv': points, fuzzed / 'keys.csv': b'key,source_key\nA/1,x/1\nA/2,"x, y/2"\nB/1,z\n'}
    head = b'released_path,released_label,source_key,source_label\n'
    files[fuzzed / 'links.csv'] = head + b'A/1.jpg,0,x/1,x\nA/2,0,"x, y/2",x\nB/1.png,1,z,"z"\n'
    for name in ('A/1', 'A/2', 'B/1'):
        (fuzzed / name).parent.mkdir(parents=True, exist_ok=True)
        (fuzzed / f'{name}.jpg').write_bytes(picture())

    def read(_: int) -> None:
        source = open_faces(fuzzed)
        read_landmarks(source)
        source.keys[:]
        read_links(fuzzed / 'links.csv', ['B/1', 'A/2', 'A/1'])

    return make_target(files, read)


def with_checksums(data: bytes) -> bytes:
    """A PNG's chunks with the checksums that belong to them, other files as they are."""
    if data[1:4] != b'PNG':
        return data
    out, at = data[:8], 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], 'big')
        out += data[at:end] + struct.pack('>I', zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return out


def fuzz_image(folder: Path) -> Target:
    """An encoded face; built: other numbers in a header, such as sides and chroma subsampling."""
    images = [picture(extension) for extension in ('.jpg', '.png', '.bmp', '.webp', '.ppm', '.tiff')]
    images += [picture('.jpg', cv2.IMWRITE_JPEG_PROGRESSIVE, 1), picture('.webp', cv2.IMWRITE_WEBP_QUALITY, 101)]
    images += [images[0][:2] + b'\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08' + images[0][2:]]

    def build(fdp: Provider) -> Files:
        data = fdp.PickValueInList(images)
        frame = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'), 0)  # of a JPEG
        head = data[frame : frame + 20] if frame else data
        sides = fdp.PickValueInList([(b'', b''), (b'\0\x10', b'\x75\x30'), (b'\x10\0', b'\x30\x75')])
        head = bytearray(head.replace(*sides) if sides[0] else head)  # 16 becomes 30,000 in either order of bytes
        for _ in range(fdp.ConsumeIntInRange(0, 3)):
            at = fdp.ConsumeIntInRange(0, min(len(head), 60))
            head[at : at + 1] = bytes([fdp.PickValueInList([0, 1, 0x12, 0x14, 0x22, 0x31, 0x44, 0xFF])])
        return {folder / '0': data[:frame] + bytes(head) + data[frame + len(head) :]}

    files = {folder / str(i): image for i, image in enumerate(images)}
    return make_target(
        files, lambda kind: decode_face(with_checksums((folder / str(kind)).read_bytes()), 'fuzzed'), build
    )


#: Name → function that prepares a folder, and returns seeds and what to do with an input.
TARGETS = {name.removeprefix('fuzz_'): function for name, function in list(globals().items()) if name[:5] == 'fuzz_'}
