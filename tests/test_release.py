"""A finished release: manifest, card, audit, checks and shards; nothing of the source in it, nothing read outside."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import cv2
import jsonschema
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from processes import PRELOAD
from tiny import small_recipe

from facemae_mm.datasets import FaceMask, FaceRecordDataset, open_faces
from facemae_mm.datasets.release_source import MAX_MANIFEST
from facemae_mm.datasets.resumable import sha256_file
from facemae_mm.evaluation import RetrievalLeakage
from facemae_mm.release import layouts
from facemae_mm.release.audit import add_measurements, read_audit, read_leakage, read_utility
from facemae_mm.release.card import draw_card
from facemae_mm.release.check import check_release
from facemae_mm.release.chunk_files import ChunkFiles, EncodedChunk
from facemae_mm.release.layouts import ReleaseWriter
from facemae_mm.release.manifest import (
    LEFT_OUT,
    SCHEMA,
    SHOWN_STRINGS,
    check_manifest,
    describe_config,
    manifest_text,
    read_manifest,
    redact,
    versions,
)
from facemae_mm.release.originals import HIGHEST_PSNR, OriginalsCheck, _next_of_same, summarise
from facemae_mm.release.plan import ReleasePlan

COUNTS = (3, 2, 4, 1)
SIZE = 24
LAYOUTS = [(layout, shards) for layout in ('folders', 'records') for shards in (False, True)]


def add_files(release, leakage=MappingProxyType({}), utility=MappingProxyType({})):
    """As tools/release.py does."""
    leakage = {name: read_leakage(file) for name, file in leakage.items()}
    return add_measurements(release, leakage, {name: read_utility(file) for name, file in utility.items()})


def picture(rng, size=SIZE, extension='.png'):
    return cv2.imencode(extension, rng.integers(0, 256, (size, size, 3)).astype(np.uint8))[1].tobytes()


@pytest.fixture(scope='session')
def config():
    """What a manifest says of configs/export_casia.py."""
    return describe_config(small_recipe(Path(__file__).resolve().parents[1], 'export_casia'))


def quantiles(images, *values):
    names = ('minimum', 'quantile_01', 'median', 'quantile_99', 'maximum')
    return dict(images=images) | dict(zip(names, values, strict=False))


ORIGINALS = dict(
    phi_sha256='c' * 64,
    psnr=dict(own=quantiles(10, 9.1, 9.25, 14.0, 21.5, 22.0), other=quantiles(9, 8, 8, 9, 9.5, 9.75)),
    phi_similarity=dict(own=quantiles(10, -0.1, 0.0, 0.5, 0.9, 0.91), other=quantiles(0)),
)


def write_release(folder, config, layout='folders', shards=False, counts=COUNTS, image_format='png', **changes):
    """A release as an export completes it, of random pictures; `changes` to its manifest."""
    rng = np.random.default_rng(0)
    extension = dict(png='.png', jpeg='.jpg')[image_format]
    folder.mkdir()
    one = len(picture(np.random.default_rng(0), SIZE, extension))
    writer = ReleaseWriter(folder, layout, extension, SIZE, 6, int(one * 4.5) if shards else None)
    for count in counts:
        for number in range(count):
            writer.write(number == 0, picture(rng, SIZE, extension))
    writer.close()
    manifest = dict(
        format='facemae-release',
        version=1,
        versions=versions(),
        config=config,
        model_sha256='a' * 64,
        phi_sha256=None,
        compute=dict(device='CPU AVX2', threads=1, precision='float32', chunk_size=64),
        mask=FaceMask(patch_size=8, fresh=False, seed=0).describe(112) | dict(public_seed=None),
        paste_visible=False,
        image=dict(format=image_format, quality=95 if image_format == 'jpeg' else None, size=SIZE),
        layout=layout,
        images=sum(writer.images_by_identity),
        identities=len(writer.images_by_identity),
        images_by_identity=writer.images_by_identity,
        errors_skipped=0,
        shards=writer.shards,
        samples=None,
        originals='not checked',
    )
    manifest |= changes
    (folder / 'manifest.json').write_text(manifest_text(manifest), encoding='utf-8')
    card = draw_card(manifest, sha256_file(folder / 'manifest.json'))
    (folder / 'README.md').write_text(card, encoding='utf-8')
    return folder


@pytest.fixture
def release(tmp_path, config):
    return write_release(tmp_path / 'release', config)


def change_manifest(release, change):
    """Another manifest, as one who forges a release writes it."""
    manifest = json.loads((release / 'manifest.json').read_text())
    change(manifest)
    (release / 'manifest.json').write_text(json.dumps(manifest))


def resum(release, shard=0):
    """The manifest's SHA-256 of a shard's SHA256SUMS, made to fit."""

    def change(manifest):
        about = manifest['shards'][shard]
        about['sha256']['SHA256SUMS'] = sha256_file(release / about['path'] / 'SHA256SUMS')

    change_manifest(release, change)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# The check


@pytest.mark.parametrize(('layout', 'shards'), LAYOUTS)
@pytest.mark.parametrize('image_format', ['png', 'jpeg'])
def test_an_intact_release_passes(tmp_path, config, layout, shards, image_format):
    release = write_release(tmp_path / 'release', config, layout, shards, image_format=image_format)
    manifest, name = read_manifest(release)
    assert [shard['path'] for shard in manifest['shards']] == (['shard_00000', 'shard_00001'] if shards else ['.'])
    assert name == hashlib.sha256((release / 'manifest.json').read_bytes()).hexdigest()
    assert check_release(release) == f'{release}: all 10 faces of 4 identities are as the manifest {name} says.'
    if layout == 'folders':  # the user's other way
        for shard in manifest['shards']:
            done = subprocess.run(['sha256sum', '--check', '--quiet', 'SHA256SUMS'], cwd=release / shard['path'])
            assert done.returncode == 0


def change_face(release):
    path = release / '000002/000001.png'
    path.write_bytes(path.read_bytes()[:-1] + b'\0')


def change_face_and_sums(release):
    change_face(release)
    path = release / '000002/000001.png'
    lines = (release / 'SHA256SUMS').read_text().splitlines()
    lines = [f'{sha256_file(path)}  000002/000001.png' if '000002/000001' in line else line for line in lines]
    (release / 'SHA256SUMS').write_text('\n'.join(lines) + '\n')


def add_line(line, place=None):
    def damage(release):
        lines = (release / 'SHA256SUMS').read_bytes().split(b'\n')[:-1]
        lines.insert(len(lines) if place is None else place, line)
        (release / 'SHA256SUMS').write_bytes(b'\n'.join(lines) + b'\n')
        resum(release)

    return damage


def link_face(release):
    path = release / '000000/000001.png'
    path.rename(release.parent / 'elsewhere.png')
    path.symlink_to(release.parent / 'elsewhere.png')


def link_person(release):
    (release / '000001').rename(release.parent / 'elsewhere')
    (release / '000001').symlink_to(release.parent / 'elsewhere')


def swap_counts(manifest):
    manifest['images_by_identity'][:2] = manifest['images_by_identity'][1::-1]


DAMAGE = {
    'another byte': (change_face, r"'000002/000001.png' has other bytes\. Get it again"),
    'face and its line of SHA256SUMS': (change_face_and_sums, r"says: 'SHA256SUMS' has other bytes; "),
    'missing': (lambda r: (r / '000001/000000.png').unlink(), "'000001/000000.png' is missing"),
    'missing sums': (lambda r: (r / 'SHA256SUMS').unlink(), "'SHA256SUMS' is missing"),
    'additional file': (lambda r: (r / '000001/note.txt').touch(), "'000001/note.txt' does not belong to it"),
    'additional face': (
        lambda r: (r / '000001/000002.png').write_bytes((r / '000001/000001.png').read_bytes()),
        "'000001/000002.png' does not belong to it",
    ),
    'samples that it has not': (lambda r: (r / 'samples.png').touch(), "'samples.png' does not belong to it"),
    'hidden file': (lambda r: (r / '.git').touch(), "'.git' does not belong to it"),
    'empty folder': (lambda r: (r / 'A name').mkdir(), "'A name' is an empty folder"),
    'too deep': (lambda r: (r / '000001/a/b').mkdir(parents=True), "'000001/a/b' does not belong to it"),
    'linked face': (link_face, "'000000/000001.png' is a link"),
    'linked identity': (link_person, "'000001' is a link"),
    'link to a folder': (lambda r: (r / 'x').symlink_to('/'), "'x' is a link"),
    'dead link': (lambda r: (r / 'x').symlink_to('/nowhere'), "'x' is a link"),
    'pipe': (lambda r: os.mkfifo(r / '000001/000002.png'), "'000001/000002.png' does not belong to it"),
    'pipe for a face': (
        lambda r: ((r / '000001/000001.png').unlink(), os.mkfifo(r / '000001/000001.png')),
        "'000001/000001.png' is missing",
    ),
    'line that leads outside': (add_line(b'0' * 64 + b'  ../secret.png'), r"'SHA256SUMS' says '0{64}  \.\./secret"),
    'absolute line': (add_line(b'0' * 64 + b'  /etc/passwd'), 'is not the SHA-256 of the next face'),
    'line with NUL': (add_line(b'0' * 64 + b'  000003/00000\x00.png'), 'is not the SHA-256 of the next face'),
    'line of another encoding': (add_line('é'.encode('latin-1')), r"says '\\\\xe9\\n', which is not"),
    'long line': (add_line(b'0' * 1_000_000), 'is not the SHA-256 of the next face'),
    'line of a missing face': (add_line(b'0' * 64 + b'  000003/000001.png'), "'000003/000001.png' is missing"),
    'line twice': (
        lambda r: add_line((r / 'SHA256SUMS').read_bytes().split(b'\n')[0], 0)(r),
        'is not the SHA-256 of the next face',
    ),
    'counts': (lambda r: change_manifest(r, swap_counts), 'the numbers of images by identity are others'),
    'images': (
        lambda r: change_manifest(r, lambda m: m.update(images=11)),
        'images: 11 in the manifest, 10 in the set',
    ),
    'identities': (
        lambda r: change_manifest(r, lambda m: m.update(identities=5)),
        'identities: 5 in the manifest, 4 in the set',
    ),
    'label': (
        lambda r: change_manifest(r, lambda m: m['shards'][0].update(first_label=1)),
        r'shard \.: first_label: 1 in the manifest, 0 in the set',
    ),
    'size': (
        lambda r: change_manifest(r, lambda m: m['image'].update(size=112)),
        'faces are 24×24 pixels, not 112×112',
    ),
    'another release': (
        lambda r: change_manifest(r, lambda m: m.update(version=2)),
        'manifest.json has version 2; this program reads 1. Install the FaceMAE-MM that wrote it',
    ),
    'schema': (
        lambda r: change_manifest(r, lambda m: m['mask'].update(ratio=75)),
        'manifest.json does not fit manifest.schema.json: mask.ratio: 75 is greater than the maximum of 1',
    ),
    'two faults': (
        lambda r: (change_face(r), (r / 'x').touch()),
        r"'000002/000001.png' has other bytes; 'x' does not belong to it\. Get",
    ),
    'twelve faults': (
        lambda r: [(r / f'x{i:02d}').touch() for i in range(12)],
        "'x09' does not belong to it, and 2 more. Get",
    ),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_each_kind_of_damage_is_named(release, kind):
    damage, message = DAMAGE[kind]
    damage(release)
    with pytest.raises(ValueError, match=message) as error:
        check_release(release)
    assert str(release) in str(error.value)


@pytest.mark.parametrize('layout', ['folders', 'records'])
def test_damage_of_shards_is_named(tmp_path, config, layout):
    release = write_release(tmp_path / 'release', config, layout, shards=True)
    for shard in json.loads((release / 'manifest.json').read_text())['shards']:
        for file in shard['sha256']:
            path = release / shard['path'] / file
            before = path.read_bytes()
            path.write_bytes(before[:-1] + b'x')
            with pytest.raises(ValueError, match=f"'{shard['path']}/{file}' has other bytes"):
                check_release(release)
            path.write_bytes(before)
    check_release(release)

    original = (release / 'manifest.json').read_bytes()

    def moved(manifest):
        for shard, one in zip(manifest['shards'], (1, -1), strict=True):
            shard['identities'] += one

    change_manifest(release, moved)
    with pytest.raises(ValueError, match='shard shard_00001: identities: 1 in the manifest, 2 in the set'):
        check_release(release)
    (release / 'manifest.json').write_bytes(original)
    change_manifest(release, lambda manifest: manifest['shards'][1].update(first_label=3))
    with pytest.raises(ValueError, match='shard shard_00001: first_label: 3 in the manifest, 2 in the set'):
        check_release(release)


def test_the_sheet_of_samples_is_held_against_the_manifest(tmp_path, config):
    sheet = picture(np.random.default_rng(1), 48)
    samples = dict(images=4, sha256=hashlib.sha256(sheet).hexdigest())
    release = write_release(tmp_path / 'release', config, samples=samples)
    with pytest.raises(ValueError, match="'samples.png' is missing"):
        check_release(release)
    (release / 'samples.png').write_bytes(sheet)
    check_release(release)
    (release / 'samples.png').write_bytes(picture(np.random.default_rng(2), 48))
    with pytest.raises(ValueError, match="'samples.png' has other bytes"):
        check_release(release)


# What comes from outside


@contextlib.contextmanager
def opened_files():
    """Every file that this process opens meanwhile."""
    paths, watching = [], [True]

    def watch(event, args):
        if watching and event in ('open', 'os.scandir') and isinstance(args[0], str | bytes | os.PathLike):
            paths.append(os.path.realpath(os.fsdecode(args[0])))

    sys.addaudithook(watch)
    yield paths
    watching.clear()


def link_shard(release):
    (release / 'shard_00001').rename(release.parent / 'elsewhere')
    (release / 'shard_00001').symlink_to(release.parent / 'elsewhere')


def link_in_shard(name):
    def link(release):
        (release / 'shard_00001' / name).rename(release.parent / 'elsewhere')
        (release / 'shard_00001' / name).symlink_to(release.parent / 'elsewhere')

    return link


@pytest.mark.parametrize(
    ('layout', 'damage'),
    [
        ('folders', link_shard),
        ('folders', link_in_shard('000002')),
        ('folders', link_in_shard('000002/000001.png')),
        ('records', link_shard),
        ('records', link_in_shard('train.rec')),
        ('records', link_in_shard('train.idx')),
    ],
)
def test_nothing_outside_of_a_release_is_read(tmp_path, config, layout, damage):
    release = write_release(tmp_path / 'release', config, layout, shards=True)
    damage(release)
    elsewhere = os.path.realpath(tmp_path / 'elsewhere')
    with opened_files() as paths:
        with pytest.raises(ValueError, match=r"'shard_00001.* is a link"):
            check_release(release)
        with pytest.raises(ValueError, match=r'release/shard_00001.* is a link or a device'):
            open_faces(release)
    assert str(release / 'manifest.json') in paths and not [path for path in paths if path.startswith(elsewhere)]


def test_a_linked_manifest_or_audit_is_not_read(release):
    (release / 'audit.json').symlink_to('/etc/passwd')
    with pytest.raises(ValueError, match=r'audit\.json is a link'):
        add_files(release)
    (release / 'audit.json').unlink()
    (release / 'manifest.json').rename(release.parent / 'elsewhere.json')
    (release / 'manifest.json').symlink_to(release.parent / 'elsewhere.json')
    with opened_files() as paths:
        for read in (check_release, read_manifest, open_faces):
            with pytest.raises(ValueError, match=r'manifest\.json is a link'):
                read(release)
    assert str(release.parent / 'elsewhere.json') not in paths


def test_a_pipe_in_a_release_hangs_nobody(tmp_path, config):
    release = write_release(tmp_path / 'folders', config)
    os.mkfifo(release / '000001/000002.png')
    with pytest.raises(ValueError, match=r'000001/000002\.png is a link or a device'):
        open_faces(release)
    release = write_release(tmp_path / 'records', config, 'records')
    (release / 'train.rec').unlink()
    os.mkfifo(release / 'train.rec')
    with pytest.raises(ValueError, match=r'train\.rec is a link or a device'):
        open_faces(release)
    with pytest.raises(ValueError, match="'train.rec' does not belong to it; 'train.rec' is missing"):
        check_release(release)


def hostile(**changes):
    return lambda manifest: manifest | changes


def hostile_shards(*paths):
    def change(manifest):
        about = manifest['shards'][0]
        return manifest | dict(shards=[about | dict(path=path) for path in paths])

    return change


SHARDS = [
    ('../release',),
    ('/etc',),
    ('shard_00000', '../x'),
    ('shard_00000', 'shard_00000'),
    ('shard_00001', 'shard_00000'),
    ('shard_00001',),
    ('.', '.'),
    ('.', 'shard_00001'),
    ('shard_00000\n',),
    ('shard_\0',),
    ('shard_٠٠٠٠٠',),
    (None,),
    (0,),
    ([],),
    (),
]


@pytest.mark.parametrize('paths', SHARDS, ids=repr)
def test_shards_of_other_names_are_refused_by_every_reader(release, paths):
    manifest = hostile_shards(*paths)(json.loads((release / 'manifest.json').read_text()))
    (release / 'manifest.json').write_text(json.dumps(manifest))
    for read in (check_release, read_manifest, open_faces):
        with pytest.raises(ValueError, match=r'manifest\.json names no shards of a release'):
            read(release)


@pytest.mark.parametrize('shards', [5, True, None, 'shard_00000', dict(path='.'), [5], [[]], 1e300], ids=repr)
def test_shards_that_are_no_list_are_refused_by_every_reader(release, shards):
    manifest = json.loads((release / 'manifest.json').read_text()) | dict(shards=shards)
    (release / 'manifest.json').write_text(json.dumps(manifest))
    for read in (check_release, read_manifest, open_faces):
        with pytest.raises(ValueError, match=r'manifest\.json (names no shards|does not fit .*: shards:)'):
            read(release)


def test_manifests_that_are_no_json_are_refused(release):
    path = release / 'manifest.json'
    text = path.read_text()
    for data in (
        b'',
        b'{',
        b'\xff\xfe{\0}\0',
        b'\xef\xbb\xbf' + text.encode(),
        text.encode('utf-16'),
        b'[' * 200_000,
        b'{"a":' * 200_000,
        text.replace('"images": 10', '"images": ' + '9' * 5000).encode(),
        text.replace('"images": 10', '"images": NaN').encode(),
        text.replace('"images": 10', '"images": Infinity').encode(),
    ):
        path.write_bytes(data)
        for read in (read_manifest, check_release, add_measurements):
            with pytest.raises(ValueError, match=r'manifest\.json is no JSON: '):
                read(release)
    with path.open('wb') as file:
        file.truncate(MAX_MANIFEST + 1)
    with pytest.raises(ValueError, match=r'manifest\.json has more than 64 MiB'):
        read_manifest(release)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='Give the directory of a release'):
        check_release(release)


@pytest.mark.parametrize('key', ['samples', 'originals', 'images', 'version', 'shards'])
def test_a_deep_manifest_is_refused(release, key):
    """At every depth: some are read as JSON, but cannot be shown in a message from a deeper place in the stack."""
    manifest = json.loads((release / 'manifest.json').read_text())
    for depth in [*range(820, 1000), 5000]:
        text = json.dumps(manifest | {key: '%'}).replace('"%"', '[' * depth + ']' * depth)
        (release / 'manifest.json').write_text(text)
        with pytest.raises(ValueError, match=r'manifest\.json (is no JSON|does not fit|has version|names no)'):
            check_release(release)


def test_huge_numbers_are_refused(release):
    manifest = json.loads((release / 'manifest.json').read_text())
    for number in (10**4000, 1e300, 2**53, -1, 0.5):
        for key in ('images', 'identities'):
            (release / 'manifest.json').write_text(json.dumps(manifest | {key: number}))
            with pytest.raises(ValueError, match=f'does not fit .*: {key}: '):
                check_release(release)
    for key in ('images', 'identities'):  # the largest that is let through, seen by the bar that shows progress
        (release / 'manifest.json').write_text(json.dumps(manifest | {key: 2**53 - 1}))
        with pytest.raises(ValueError, match=f'{key}: 9007199254740991 in the manifest'):
            check_release(release)


# The manifest


def described(schema, value, defs, where=''):
    """Keys of a value that a schema has no word for."""
    if '$ref' in schema:
        schema = schema | defs[schema['$ref'].rpartition('/')[2]]
    for one in schema.get('oneOf', ()):
        if jsonschema.Draft202012Validator(one | {'$defs': defs}).is_valid(value):
            schema = one
    if isinstance(value, list):
        return [key for item in value for key in described(schema.get('items', {}), item, defs, f'{where}[]')]
    if not isinstance(value, dict) or where in ('.config', '.versions') or '.sha256' in where:
        return []
    unknown = [f'{where}.{key}' for key in value if key not in schema.get('properties', {})]
    if unknown or schema.get('additionalProperties') is not False:
        return unknown or [f'{where}: additionalProperties']
    return [
        key for name in value for key in described(schema['properties'][name], value[name], defs, f'{where}.{name}')
    ]


def objects(node, where=()):
    """Every dict of a JSON, with its place."""
    if isinstance(node, dict):
        yield where, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from objects(value, (*where, key))


def test_every_key_of_a_manifest_is_in_the_schema_and_no_other_fits(tmp_path, config):
    samples = dict(images=4, sha256='b' * 64)
    release = write_release(tmp_path / 'release', config, shards=True, originals=ORIGINALS, samples=samples)
    manifest = read_manifest(release)[0]
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert described(schema, manifest, schema['$defs']) == []
    count = 0
    for where, _ in objects(manifest):
        if where[:1] in (('config',), ('versions',)):
            continue
        changed = json.loads(json.dumps(manifest))
        node = changed
        for key in where:
            node = node[key]
        node['host'] = 'a-machine'
        with pytest.raises(ValueError, match="'host'|originals"):
            check_manifest(changed, 'x')
        count += 1
    assert count > 10


def at(manifest, path):
    *way, last = path.split('.')
    for key in way:
        manifest = manifest[int(key) if key.isdigit() else key]
    return manifest, last


@pytest.mark.parametrize(
    ('key', 'values'),
    {
        'format': ['facemae-masked', None],
        'versions.torch': [2, None],
        'config': [[], 'left out'],
        'model_sha256': ['a' * 63, 'A' * 64, 'a' * 64 + '\n', 5],
        'phi_sha256': [5],
        'compute.device': [None],
        'compute.threads': [0, 1.5, '1', True],
        'compute.precision': ['float16'],
        'compute.chunk_size': [0],
        'mask.scheme': ['facemae-mask-v2'],
        'mask.ratio': [-0.1, 1.1, '0.75', None],
        'mask.patch_size': [0],
        'mask.regions.0': ['ears', 5],
        'mask.region_only': ['no', 0],
        'mask.commitment': ['secret', None, 'a' * 64 + '\n'],
        'mask.public_seed': ['seed', 0.5],
        'paste_visible': [0, None],
        'image.format': ['webp'],
        'image.quality': [0, 101],
        'image.size': [0, '112'],
        'layout': ['tar'],
        'images': [0, -1, '10', None],
        'identities': [0],
        'images_by_identity': [[], 5],
        'images_by_identity.1': [0, 1.5],
        'errors_skipped': [-1],
        'shards.0.first_label': [-1],
        'shards.0.bytes': [0],
        'shards.0.sha256': [{}, {'../x': 'a' * 64}, {'SHA256SUMS': 'a'}],
        'samples': [5, {}, dict(images=0, sha256='a' * 64)],
        'originals': ['checked', None, {}],
    }.items(),
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_wrong_and_missing_values_are_refused_by_key(tmp_path, config, key, values):
    mask = FaceMask(patch_size=8, regions=['eyes'], fresh=False, seed=0).describe(112)
    release = write_release(tmp_path / 'release', config, mask=mask)
    manifest = read_manifest(release)[0]
    for value in values:
        changed = json.loads(json.dumps(manifest))
        node, last = at(changed, key)
        node[int(last) if last.isdigit() else last] = value
        with pytest.raises(ValueError, match=rf'x does not fit manifest\.schema\.json: {re.escape(key)}'):
            check_manifest(changed, 'x')
    changed = json.loads(json.dumps(manifest))
    node, last = at(changed, key)
    if not last.isdigit():
        del node[last]
        with pytest.raises(ValueError, match=f"'{last}' is a required property|names no shards"):
            check_manifest(changed, 'x')


def test_originals_without_their_quantiles_are_refused(tmp_path, config):
    release = write_release(tmp_path / 'release', config, originals=ORIGINALS)
    change_manifest(release, lambda manifest: manifest['originals']['psnr']['own'].pop('median'))
    with pytest.raises(ValueError, match=r'does not fit manifest\.schema\.json: originals'):
        read_manifest(release)


def test_the_recipe_is_shown_without_its_places(repository):
    names = dict(deploy_faces='/home/me/secret_people', mask_secret='/home/me/mask_secret', release_dir='/home/me/out')
    recipe = small_recipe(repository, 'export_casia', **names)
    recipe.test_dataloader.dataset.subset = dict(identities=['Ann Bee', 'Cy Dee'])
    text = json.dumps(describe_config(recipe))
    assert not any(found in text for found in ('/home', 'secret_people', 'mask_secret', 'Ann', 'Dee'))
    shown = json.loads(text)
    assert shown['model']['type'] == 'FaceMAE' and shown['subset'] == dict(identities=LEFT_OUT)
    mask = next(step for step in shown['pipeline'] if step['type'] == 'FaceMask')
    assert (mask['mask_ratio'], mask['patch_size'], mask['secret']) == (0.75, 8, LEFT_OUT)


def nested(rng, depth):
    """A random piece of a recipe, with a marker wherever a string may stand."""
    kind = rng.choice(['dict', 'list', 'tuple', 'ConfigDict', 'leaf', 'leaf']) if depth else 'leaf'
    if kind in ('dict', 'ConfigDict'):
        keys = ['source', 'secret', 'identities', 'checkpoint', 'prefix', 'name', 'host', 'classes', 'a/MARK', 'MARK x']
        keys += ['-MARK', 'MARK.png']
        made = {key: nested(rng, depth - 1) for key in rng.sample(keys, 4)}
        return Config(dict(inner=made)).inner if kind == 'ConfigDict' else made
    if kind in ('list', 'tuple'):
        made = [nested(rng, depth - 1) for _ in range(rng.randint(0, 4))]
        return tuple(made) if kind == 'tuple' else made
    leaves = ['MARK', '/data/MARK', b'MARK', Path('/MARK'), {'MARK'}, np.array(['MARK']), 5, -0.5, True, None]
    return rng.choice([*leaves, re.compile('MARK')])


@pytest.mark.parametrize('seed', range(40))
def test_no_name_survives_in_a_manifest(seed):
    rng = random.Random(seed)
    node = dict(part=nested(rng, 5), more=[nested(rng, 4), dict(source='MARK', size=112)])
    shown = redact(node)
    text = json.dumps(shown, allow_nan=False)
    assert 'MARK' not in text
    assert shown['more'][1] == dict(source=LEFT_OUT, size=112) or shown['more'] == LEFT_OUT


def test_what_a_manifest_shows_of_a_recipe():
    for key in SHOWN_STRINGS:
        assert redact({key: 'a', 'x': {key: ['a', 'b']}}) == {key: 'a', 'x': {key: ['a', 'b']}}
    assert redact(dict(a=[1, 2.5, None, True], b=['x', 1], c=float('nan'), d=FaceMask, e=(1, 2))) == dict(
        a=[1, 2.5, None, True], b=LEFT_OUT, c=LEFT_OUT, d='FaceMask', e=[1, 2]
    )
    assert redact(dict(subset=dict(identities=[17, 3]), images=dict(part=0, of=2))) == dict(
        subset=dict(identities=LEFT_OUT), images=dict(part=0, of=2)
    )
    assert redact(dict(type=dict(source='MARK'), regions=[dict(secret='MARK')])) == dict(
        type=dict(source=LEFT_OUT), regions=[dict(secret=LEFT_OUT)]
    )


def test_lists_of_numbers_stand_on_one_line():
    rng = np.random.default_rng(0)
    manifest = dict(
        counts=rng.integers(-5, 50, 1000).tolist(),
        floats=[-0.5, 1e-9, 2.5e20, 1e16, -3.0],
        one=[7],
        nested=[[1, 2], [-3], [], [[4, 5]]],
        empty=[],
        strings=['[ 1, 2 ]', '[\n 1,\n 2\n]'],
        mixed=[1, 'a', 2, None, dict(inner=[1, 2])],
        deep=dict(a=dict(b=[0, 0.25])),
    )
    text = manifest_text(manifest)
    assert json.loads(text) == manifest and text.endswith('}\n')
    for line in (
        f' "counts": {json.dumps(manifest["counts"])},\n',
        ' "floats": [-0.5, 1e-09, 2.5e+20, 1e+16, -3.0],\n',
        ' "one": [7],\n',
        '  [1, 2],\n  [-3],\n  [],\n  [\n   [4, 5]\n  ]\n',
        '   "b": [0, 0.25]\n',
    ):
        assert line in text
    with pytest.raises(ValueError, match='not JSON compliant'):
        manifest_text(dict(value=float('nan')))


# The card


def front_matter(card):
    assert card.startswith('---\n')
    return yaml.safe_load(card.split('---\n')[1])


@pytest.fixture
def manifest(release):
    return read_manifest(release)[0]


def test_the_head_of_a_card_is_what_hubs_read(manifest):
    card = draw_card(manifest, 'f' * 64)
    head = front_matter(card)
    assert head.keys() == {
        *('pretty_name', 'license', 'license_name', 'license_link', 'task_categories', 'tags', 'size_categories')
    }
    assert head['license'] == 'other' and head['task_categories'] == ['image-feature-extraction']
    assert 'face-recognition' in head['tags'] and head['size_categories'] == ['n<1K']
    assert '10 images of 4 identities, 1 to 4 an identity; 24×24 pixels, PNG.' in card
    assert '`' + 'f' * 64 + '`' in card and 'One folder an identity.' in card
    assert '{' not in card and '}' not in card


@pytest.mark.parametrize(
    ('images', 'category'),
    [
        (1, 'n<1K'),
        (999, 'n<1K'),
        (1_000, '1K<n<10K'),
        (9_999, '1K<n<10K'),
        (10_000, '10K<n<100K'),
        (100_000, '100K<n<1M'),
        (999_999, '100K<n<1M'),
        (1_000_000, '1M<n<10M'),
        (42_474_557, '10M<n<100M'),
        (10**8, '100M<n<1B'),
        (10**9 - 1, '100M<n<1B'),
        (10**9, '1B<n<10B'),
        (10**10, '10B<n<100B'),
        (10**11, '100B<n<1T'),
        (10**12 - 1, '100B<n<1T'),
        (10**12, 'n>1T'),
    ],
)
def test_size_categories_at_their_borders(manifest, images, category):
    assert front_matter(draw_card(manifest | dict(images=images), 'x'))['size_categories'] == [category]


def test_a_card_says_what_a_reader_must_know(manifest):
    def card(**changes):
        return draw_card(manifest | changes, 'x')

    def masked(**changes):
        return card(mask=manifest['mask'] | changes)

    plain = card()
    assert '75% of the 8×8 patches of each 112-pixel face were removed, drawn at random for each image' in plain
    assert 'no real pixel was pasted back' in plain and 'were pasted back: this set holds real pixels' not in plain
    assert f'its commitment is `{manifest["mask"]["commitment"]}`' in plain and 'public seed' not in plain
    assert plain.count('not measured yet') + plain.count('Not measured yet') == 2 and 'not checked' in plain
    assert 'could not be read' not in plain and 'samples.png' not in plain
    assert '**The visible patches of the real faces were pasted back: this set holds real pixels.**' in card(
        paste_visible=True
    )
    assert '**Masks were drawn by the public seed 7**' in masked(public_seed=7)
    assert '**Masks were drawn by the public seed 0**' in masked(public_seed=0)
    assert 'were removed: eyes and mouth always, others at random for each image' in masked(regions=['eyes', 'mouth'])
    assert 'were removed: nose alone' in masked(regions=['nose'], region_only=True)
    assert 'JPEG of quality 80.' in card(image=dict(format='jpeg', quality=80, size=224))
    assert '224×224 pixels' in card(image=dict(format='jpeg', quality=80, size=224))
    assert '1,234 source faces could not be read and are left out.' in card(errors_skipped=1234)
    metrics = dict(queries=20, identities=5, gallery=19, left_out_identities=2, top1_with=0.5)
    lost = '2 identities with a single real photo or no released one are left out'
    for more, said in (({}, f'{lost}.'), (dict(owned_identities=3), f'{lost}, and 3 whose pairs attackers own.')):
        found = draw_card(manifest, 'x', dict(leakage=dict(phi=metrics | more), utility={}))
        assert said in found
    assert '![released faces](samples.png)' in card(samples=dict(images=1, sha256='a' * 64))
    shards = [manifest['shards'][0] | dict(path=f'shard_{i:05d}') for i in range(3)]
    assert '3 shards: one folder an identity.' in card(shards=shards)
    assert '3 shards: `train.rec` with `.idx` and `property`' in card(shards=shards, layout='records')
    assert '`Train.rec`' not in card(layout='records')
    assert '| model | `no checkpoint was named` |' in card(model_sha256=None)
    assert ', 3 an identity;' in card(images_by_identity=[3, 3])


def test_originals_on_the_card(manifest):
    card = draw_card(manifest | dict(originals=ORIGINALS), 'x')
    assert f'(φ: `{"c" * 64}`)' in card
    rows = [line for line in card.splitlines() if line.startswith(('| PSNR', '| cosine'))]
    assert rows == [
        '| PSNR | own source | 10 | 9.1 dB | 9.25 dB | 14 dB | 21.5 dB | 22 dB |',
        '| PSNR | another photo of the person | 9 | 8 dB | 8 dB | 9 dB | 9.5 dB | 9.75 dB |',
        '| cosine under φ | own source | 10 | -0.1 | 0 | 0.5 | 0.9 | 0.91 |',
    ]


# Measurements


def leakage_metrics(source=True):
    """As a leakage recipe logs them, of made-up embeddings."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(12, 6))
    ids = np.repeat(np.arange(12), 4)
    real = people[ids] + rng.normal(size=(48, 6))
    metrics = RetrievalLeakage.calculate(
        real, ids, real + rng.normal(size=real.shape), ids, np.arange(48) if source else None
    )
    return {f'leakage/{key}': value for key, value in metrics.items()}


@pytest.fixture
def measured(tmp_path, repository):
    """Files as tools/test.py and tools/verify.py write them."""
    (tmp_path / 'leak.json').write_text(json.dumps(leakage_metrics()))
    (tmp_path / 'unlinked.json').write_text(json.dumps(leakage_metrics(source=False)))
    verified = repository / 'results/verify_lfw_dlib.json'
    logged = {f'cfp_fp/{key}': value for key, value in read_sets(verified)['lfw'].items()}
    (tmp_path / 'logged.json').write_text(json.dumps(logged))
    return dict(leak=tmp_path / 'leak.json', unlinked=tmp_path / 'unlinked.json', verified=verified, logged=tmp_path)


def read_sets(path):
    return {name: about['metrics'] for name, about in json.loads(path.read_text())['sets'].items()}


def table(card, head):
    lines = card.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            break
        rows.append([cell.strip() for cell in line.strip('|').split('|')])
    return rows


def percent(metrics, key):
    low, high = metrics.get(f'{key}_lo'), metrics.get(f'{key}_hi')
    return f'{100 * metrics[key]:.1f}%' + ('' if low is None else f' [{100 * low:.1f}%, {100 * high:.1f}%]')


def test_measurements_come_onto_the_card_with_their_intervals(release, measured):
    before = (release / 'manifest.json').read_bytes()
    add_files(release, dict(R50=measured['leak']), dict(R50=measured['verified']))
    card = (release / 'README.md').read_text()
    leak = {key.removeprefix('leakage/'): value for key, value in leakage_metrics().items()}
    assert leak['top1_with_lo'] < leak['top1_with'] < leak['top1_with_hi']
    assert table(card, '| attacker') == [
        [
            'R50',
            str(k),
            percent(leak, f'top{k}_without'),
            percent(leak, f'top{k}_with'),
            percent(leak, f'chance_top{k}'),
        ]
        for k in (1, 2, 3, 4)
    ]
    assert 'R50: 48 real photos of 12 identities against 48 released images; 0 identities' in card
    lfw = read_sets(measured['verified'])['lfw']
    assert table(card, '| recogniser') == [
        ['R50', 'lfw', '6,000', '99.1% [98.7%, 99.4%]', '95.0%'],
    ]
    assert percent(lfw, 'accuracy') == '99.1% [98.7%, 99.4%]'
    assert 'easured yet' not in card
    assert (release / 'manifest.json').read_bytes() == before
    audit = json.loads((release / 'audit.json').read_text())
    assert audit['release'] == hashlib.sha256(before).hexdigest()
    assert audit['leakage']['R50'] == leak and audit['utility']['R50']['lfw'] == lfw
    check_release(release)


def test_measurements_are_merged_by_name(release, measured):
    add_files(release, dict(R50=measured['leak']))
    add_files(release, dict(φ=measured['unlinked']), dict(R50=measured['verified']))
    logged = measured['logged'] / 'logged.json'
    add_files(release, {}, dict(R100=logged, R50=logged))
    audit = read_audit(release, read_manifest(release)[1])
    assert list(audit['leakage']) == ['R50', 'φ'] and list(audit['utility']) == ['R50', 'R100']
    assert list(audit['utility']['R50']) == ['cfp_fp']  # the later one counts
    card = (release / 'README.md').read_text()
    assert [row[:3:2] for row in table(card, '| attacker')][4:] == [['φ', 'not available']] * 4
    assert [row[:2] for row in table(card, '| recogniser')] == [['R50', 'cfp_fp'], ['R100', 'cfp_fp']]
    first = content(release)
    add_files(release, dict(R50=measured['leak']))
    assert content(release) == first


def test_files_without_measurements_are_refused(release, measured, tmp_path):
    before = content(release)
    file = tmp_path / 'file.json'
    for text, message in (
        ('', r'file\.json is no JSON.*Give a file that tools/test\.py or'),
        ('[' * 100_000, r'file\.json is no JSON'),
        ('[1]', r'file\.json holds no measurements'),
        ('{}', r'file\.json holds no leakage'),
        ('{"lfw/accuracy": 1}', r'file\.json holds no leakage'),
        ('{"leakage/top1_with": "MARK"}', r"file\.json: not all of 'leakage' are finite numbers"),
        ('{"leakage/top1_with": NaN}', 'finite numbers'),
        ('{"leakage/top1_with": 1e999}', 'finite numbers'),
        ('{"leakage/top1_with": 1' + '0' * 4000 + '}', 'finite numbers'),
        ('{"leakage/top1_with": 1, "leakage/a|b": 1}', 'finite numbers'),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            add_files(release, dict(R50=file))
    for text in ('{}', '{"leakage/top1_with": 1}', '{"sets": {"lfw": {}}}', '{"sets": {"lfw": 5}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r'file\.json holds no verification'):
            add_files(release, {}, dict(R50=file))
    for text in ('{"lfw/accuracy": null}', '{"sets": {"lf\\nw": {"metrics": {"accuracy": 1}}}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match='finite numbers'):
            add_files(release, {}, dict(R50=file))
    with pytest.raises(ValueError, match='under names without line breaks'):
        add_files(release, {'a | b': measured['leak']})
    with pytest.raises(FileNotFoundError):
        add_files(release, dict(R50=tmp_path / 'absent.json'))
    assert content(release) == before


def test_an_audit_of_another_release_is_refused(release, measured, tmp_path, config):
    add_files(release, dict(R50=measured['leak']))
    other = write_release(tmp_path / 'other', config, counts=(2, 2))
    (release / 'audit.json').rename(other / 'audit.json')
    with pytest.raises(ValueError, match=r'other/audit\.json is the audit of another release than \w{64}\. Delete'):
        add_files(other, dict(R50=measured['leak']))
    name = read_manifest(release)[1]
    for audit, message in (
        ('{', 'is no JSON'),
        ('[' * 100_000, 'is no JSON'),
        ('[]', 'is the audit of another release'),
        (dict(leakage={}, utility={}), 'is the audit of another release'),
        (dict(release=name), 'holds something else than measurements'),
        (dict(release=name, leakage=5, utility={}), 'holds something else'),
        (dict(release=name, leakage=dict(R50=5), utility={}), 'holds something else'),
        (dict(release=name, leakage=dict(R50=dict(top1_with='x')), utility={}), 'holds something else'),
        (dict(release=name, leakage={}, utility=dict(R50=dict(lfw=[]))), 'holds something else'),
        (dict(release=name, leakage={'a\n\n# b': {}}, utility={}), 'holds something else'),
        (dict(release=name, leakage={}, utility={}, note='x'), 'holds something else'),
    ):
        (release / 'audit.json').write_text(audit if isinstance(audit, str) else json.dumps(audit))
        with pytest.raises(ValueError, match=rf'audit\.json {message}'):
            add_files(release, dict(R50=measured['leak']))


# Layouts


def write_faces_by(writer, counts, size):
    """Paths, labels and bytes of faces of `size` bytes each."""
    written = []
    for person, count in enumerate(counts):
        for number in range(count):
            image = bytes([person, number]) * (size // 2)
            written.append((*writer.write(number == 0, image), image))
    writer.close()
    return written


def test_names_of_folders_count_from_zero_with_their_digits(tmp_path):
    writer = ReleaseWriter(tmp_path, 'folders', '.jpg', 112, 8, None)
    written = write_faces_by(writer, (2, 1), 10)
    assert [(path, label) for path, label, _ in written] == [
        ('00000000/00000000.jpg', 0),
        ('00000000/00000001.jpg', 0),
        ('00000001/00000000.jpg', 1),
    ]
    assert all((tmp_path / path).read_bytes() == image for path, _, image in written)
    assert writer.images_by_identity == [2, 1]
    assert writer.shards == [
        dict(
            path='.',
            first_label=0,
            identities=2,
            images=3,
            bytes=30,
            sha256=dict(SHA256SUMS=sha256_file(tmp_path / 'SHA256SUMS')),
        )
    ]
    lines = [f'{hashlib.sha256(image).hexdigest()}  {path}\n' for path, _, image in written]
    assert (tmp_path / 'SHA256SUMS').read_text() == ''.join(lines)


@pytest.mark.parametrize('layout', ['folders', 'records'])
@pytest.mark.parametrize(
    ('shard_size', 'people'),
    [(1, [1] * 6), (20, [1, 2, 2, 1]), (21, [2, 1, 3]), (30, [2, 1, 3]), (31, [3, 3]), (80, [5, 1]), (81, [6])],
)
def test_a_shard_ends_with_the_identity_that_fills_it(tmp_path, layout, shard_size, people):
    counts = (2, 1, 3, 1, 1, 3)
    writer = ReleaseWriter(tmp_path, layout, '.png', 112, 6, shard_size)
    written = write_faces_by(writer, counts, 10)
    expected, first = [], 0  # a literal twin
    shard = dict(people=[], bytes=0)
    for person, count in enumerate(counts):
        if shard['people'] and shard['bytes'] >= shard_size:
            expected.append(shard)
            shard = dict(people=[], bytes=0)
        shard['people'].append(person)
        shard['bytes'] += 10 * count
    expected.append(shard)
    assert [len(shard['people']) for shard in expected] == people
    for number, (shard, about) in enumerate(zip(expected, writer.shards, strict=True)):
        assert about['path'] == f'shard_{number:05d}' and about['first_label'] == first == shard['people'][0]
        assert (about['identities'], about['bytes']) == (len(shard['people']), shard['bytes'])
        assert about['images'] == sum(counts[person] for person in shard['people'])
        assert about['sha256'] == {name: sha256_file(tmp_path / about['path'] / name) for name in about['sha256']}
        first += about['identities']
    assert [label for _, label, _ in written] == np.repeat(range(6), counts).tolist()
    assert all(path.startswith(f'shard_{i:05d}/') for path, label, _ in written for i, s in enumerate(expected)
               if label in s['people'])  # fmt: skip


def test_a_shard_of_records_has_no_more_faces_than_its_header_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, 'MOST_RECORDS', 8)
    for layout, people in (('records', [2, 1, 3]), ('folders', [6])):
        (tmp_path / layout).mkdir()
        writer = ReleaseWriter(tmp_path / layout, layout, '.png', 112, 6, 10_000)
        write_faces_by(writer, (3, 2, 4, 1, 1, 3), 10)
        assert [shard['identities'] for shard in writer.shards] == people


@pytest.mark.parametrize(('layout', 'shards'), LAYOUTS)
def test_a_release_is_read_as_the_set_that_was_written(tmp_path, config, layout, shards):
    release = write_release(tmp_path / 'release', config, layout, shards)
    rng = np.random.default_rng(0)
    images = [picture(rng) for _ in range(sum(COUNTS))]
    source = open_faces(release)
    assert [source.read(i) for i in range(len(source))] == images
    assert source.labels.tolist() == np.repeat(range(4), COUNTS).tolist()
    assert [int(name) for name in source.identities] == [0, 1, 2, 3]
    dataset = FaceRecordDataset(str(release))
    assert len(dataset) == 10 and dataset.labels.tolist() == source.labels.tolist()


def read_elsewhere(source, queue):
    queue.put([(source.keys[i], hashlib.sha256(source.read(i)).hexdigest()) for i in range(len(source))])


@pytest.mark.parametrize('layout', ['folders', 'records'])
def test_shards_together_are_their_shards_one_by_one(tmp_path, config, layout):
    release = write_release(tmp_path / 'release', config, layout, shards=True)
    together = open_faces(release)
    paths = [release / 'shard_00000', release / 'shard_00001']
    alone = [open_faces(path if layout == 'folders' else path / 'train.rec') for path in paths]
    assert [len(source) for source in alone] == [5, 5] and together.starts.tolist() == [0, 5, 10]
    pairs = [(path, source, i) for path, source in zip(paths, alone, strict=True) for i in range(len(source))]
    assert [together.read(i) for i in range(10)] == [source.read(i) for _, source, i in pairs]
    keys = [f'{path.name}/{source.keys[i]}' for path, source, i in pairs]
    assert list(together.keys) == keys and len(together.keys) == len(together) == 10
    assert together.identities == [name for source in alone for name in source.identities]
    for part in (slice(None), slice(3, 8), slice(-4, None), slice(8, 2, -2), slice(7, 7), slice(0, 99)):
        assert together.keys[part] == keys[part]
    assert together.keys[-1] == keys[-1] and together.keys[np.int64(5)] == keys[5]
    for index in (10, -11):
        with pytest.raises(IndexError):
            together.keys[index]
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    queue = context.Queue()
    process = context.Process(target=read_elsewhere, args=(together, queue))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    assert found == [(key, hashlib.sha256(together.read(i)).hexdigest()) for i, key in enumerate(keys)]


def test_an_identity_in_two_shards_is_refused(tmp_path, config):
    release = write_release(tmp_path / 'release', config, shards=True)
    (release / 'shard_00001/000002').rename(release / 'shard_00001/000001')
    with pytest.raises(ValueError, match='release: an identity is in two shards'):
        open_faces(release)


def test_a_shard_of_nobody_is_refused(tmp_path, config):
    """Its faces would be the last person's of the shard before."""
    release = write_release(tmp_path / 'release', config, shards=True)
    for folder in list((release / 'shard_00001').glob('000*')):
        for path in folder.iterdir():
            path.rename(folder.with_name(f'{folder.name}_{path.name}'))
        folder.rmdir()
    with pytest.raises(ValueError, match='shard_00001 holds images and no identity folders, so they are of nobody'):
        open_faces(release)


@pytest.mark.parametrize(('layout', 'shards'), LAYOUTS)
def test_a_release_with_a_damaged_manifest_is_no_folder(tmp_path, config, layout, shards):
    """As one its links would be followed, and its numbers be people's names."""
    release = write_release(tmp_path / 'release', config, layout, shards)
    path = release / 'manifest.json'
    text = path.read_text()
    for data in ('', text[:-40], text.replace('"images": 10', '"images": NaN'), '[' * 200_000, None):
        if data is None:
            os.truncate(path, MAX_MANIFEST + 1)
        else:
            path.write_text(data)
        with pytest.raises(ValueError, match=r'release looks like a release, and its manifest is damaged: .*manifest'):
            open_faces(release)
    if layout == 'folders' and not shards:
        (release / 'SHA256SUMS').unlink()
        (release / '000002').rename(tmp_path / 'elsewhere')
        (release / '000002').symlink_to(tmp_path / 'elsewhere')
        with opened_files() as paths, pytest.raises(ValueError, match='looks like a release.* Get the release again'):
            open_faces(release)
        assert not [path for path in paths if path.startswith(str(tmp_path / 'elsewhere'))]
        path.write_text('{"icons": []}')  # somebody else's
        assert len(open_faces(release)) == 10


def test_a_folder_with_another_manifest_is_a_folder(tmp_path):
    (tmp_path / 'A').mkdir()
    (tmp_path / 'A/1.png').write_bytes(picture(np.random.default_rng(0)))
    for text in ('{', '[]', '5', '{"format": "other", "shards": 5}', '{"icons": []}'):
        (tmp_path / 'manifest.json').write_text(text)
        assert list(open_faces(tmp_path).keys) == ['A/1']
    (tmp_path / 'manifest.json').write_text('{"format": "facemae-release", "version": 1, "shards": [{"path": "."}]}')
    with pytest.raises(ValueError, match=r'manifest\.json has no layout of folders, records'):
        open_faces(tmp_path)
    (tmp_path / 'manifest.json').write_text('{"format": "facemae-release", "version": [[2]]}')
    with pytest.raises(ValueError, match=r'manifest\.json has version a list; this program reads 1'):
        open_faces(tmp_path)


# The tool


def test_the_tool_as_a_user_types_it(repository, tool, release, measured, tmp_path):
    name = read_manifest(release)[1]
    command = [sys.executable, str(repository / 'tools/release.py'), 'release', '--verify']
    command += ['--leakage', 'R50=leak.json', 'φ=unlinked.json', '--utility', f'R50={measured["verified"]}']
    env = os.environ | dict(PYTHONPATH=str(repository))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        'release/audit.json and the card beside it hold them.',
        f'release: all 10 faces of 4 identities are as the manifest {name} says.',
    ]
    assert '| φ | 4 | not available |' in (release / 'README.md').read_text()
    change_face(release)
    code, text = tool(release, '--verify')
    assert code == 2 and f'release.py: {release} is not what its manifest' in text
    assert "'000002/000001.png' has other bytes" in text


@pytest.fixture
def tool(repository, monkeypatch, capsys):
    """tools/release.py in this process; gives exit code and output."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tools/release.py', *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(repository / 'tools/release.py'), run_name='__main__')
        except SystemExit as stopped:
            code = stopped.code or 0
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_the_tool_says_what_a_release_is(tool, release):
    name = read_manifest(release)[1]
    code, text = tool(release)
    assert code == 0 and text == (
        f'{release}: 10 faces of 4 identities, 24×24 png, 75% masked. Manifest {name}. Its files were not looked at: '
        '--verify does.\n'
    )
    assert not (release / 'audit.json').exists()


def test_the_tool_refuses_with_what_is_wrong(tool, release, measured, tmp_path):
    for args, message in (
        ((tmp_path / 'absent',), 'manifest.json does not exist. Give the directory of a release.'),
        ((release, '--leakage', 'leak.json'), "'leak.json' is not NAME=FILE, such as R50=leak.json."),
        ((release, '--leakage', '=leak.json'), 'is not NAME=FILE'),
        ((release, '--utility', 'R50='), 'is not NAME=FILE'),
        ((release, '--leakage', 'R50=/nowhere.json'), "No such file or directory: '/nowhere.json'"),
        ((release, '--utility', f'R50={measured["leak"]}'), 'holds no verification'),
        ((release, '--frob'), 'unrecognized arguments: --frob'),
        ((), 'the following arguments are required: RELEASE'),
    ):
        code, text = tool(*args)
        assert code == 2 and message in text, text
    (release / 'manifest.json').write_text('{')
    for args in ((release,), (release, '--verify'), (release, '--leakage', f'R50={measured["leak"]}')):
        code, text = tool(*args)
        assert code == 2 and 'manifest.json is no JSON' in text


def test_the_tools_help_teaches(tool):
    code, text = tool('--help')
    assert code == 0
    for word in (
        '--verify',
        '--leakage',
        '--utility',
        'NAME=FILE',
        'audit.json',
        'exit codes: 0, or 2',
        'licence last',
    ):
        assert word in text


# Originals and chunks


class MeanColours(torch.nn.Module):
    """A φ whose embedding can be computed by hand: mean colours of the four quarters, less grey."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(1))
        self.shapes = []

    def forward(self, faces):
        self.shapes.append(tuple(faces.shape))
        half = faces.shape[-1] // 2
        quarters = faces.float().unfold(2, half, half).unfold(3, half, half).mean((-1, -2))
        return (quarters.flatten(1) - 127.5,)


@pytest.fixture
def originals(tmp_path):
    """A folder of real faces, their dataset and the plan of their release."""
    rng = np.random.default_rng(3)
    for person, count in enumerate((1, 3, 2)):
        (tmp_path / f'real/p{person}').mkdir(parents=True)
        for number in range(count):
            small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            face = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(tmp_path / f'real/p{person}/{number}.png'), face)
    mask = FaceMask(patch_size=8, fresh=False, seed=5)
    return open_faces(tmp_path / 'real'), ReleasePlan.of(FaceRecordDataset(str(tmp_path / 'real')), mask), mask


def test_closeness_is_that_of_a_literal_loop(originals):
    source, plan, mask = originals
    phi = MeanColours()
    check = OriginalsCheck(source, plan, phi, mask, chunk_size=8)
    rng = np.random.default_rng(4)
    places = [0, 2, 3, 4, 5]  # one could not be read
    names = list(plan.names(places))
    real = [cv2.imread(str(source.path / f'{key}.png'))[..., ::-1] for key, _ in names]
    faces = [np.clip(face + rng.normal(0, 30, face.shape), 0, 255).astype(np.uint8) for face in real]
    faces[3] = real[3].copy()  # equal to its source
    found = check.compare(places, torch.from_numpy(np.stack(faces).transpose(0, 3, 1, 2)))
    assert found.shape == (5, 4) and found.dtype == np.float32
    assert set(phi.shapes) == {(8, 3, SIZE, SIZE)}  # as many at once as ever

    def psnr(one, other):
        error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
        return HIGHEST_PSNR if error == 0 else min(10 * np.log10(255**2 / error), HIGHEST_PSNR)

    def embed(face):
        half = SIZE // 2
        corners = [face[y : y + half, x : x + half].mean((0, 1)) for y in (0, half) for x in (0, half)]
        vector = np.stack(corners, 1).ravel() - 127.5
        return vector / np.linalg.norm(vector)

    alone = 0
    for i, (_, person) in enumerate(names):
        same = [j for j in range(5) if names[j][1] == person]
        expected = [psnr(faces[i], real[i]), np.nan, embed(faces[i]) @ embed(real[i]), np.nan]
        if len(same) > 1:
            other = same[(same.index(i) + 1) % len(same)]
            expected[1], expected[3] = psnr(faces[i], real[other]), embed(faces[i]) @ embed(real[other])
        alone += len(same) == 1
        assert found[i] == pytest.approx(expected, abs=2e-4, nan_ok=True)
    assert 0 < alone < 5 and found[3, 0] == np.float32(HIGHEST_PSNR) and found[3, 2] == pytest.approx(1)
    assert HIGHEST_PSNR == pytest.approx(54.15, abs=0.01)


def test_originals_of_another_size_are_scaled_and_missing_ones_named(originals, tmp_path):
    source, plan, mask = originals
    check = OriginalsCheck(source, plan, MeanColours(), mask, chunk_size=4)
    place = int(np.argmax(plan.labels == np.bincount(plan.labels).argmax()))  # of a person with other faces
    key = next(plan.names([place]))[0]
    real = cv2.imread(str(source.path / f'{key}.png'))
    doubled = cv2.resize(real, (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(source.path / f'{key}.png'), doubled)
    faces = torch.from_numpy(np.ascontiguousarray(real[..., ::-1].transpose(2, 0, 1)))[None]
    assert check.compare([place], faces)[0, 0] == np.float32(HIGHEST_PSNR)
    (source.path / f'{key}.png').unlink()
    check = OriginalsCheck(open_faces(source.path), plan, MeanColours(), mask, chunk_size=4)
    with pytest.raises(ValueError, match=f"--originals .*real holds no '{key}', from which a face was made"):
        check.compare([place], faces)


@pytest.mark.parametrize('seed', range(5))
def test_the_other_image_is_the_next_of_the_person_in_a_circle(seed):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(3, 9, rng.integers(1, 14)))
    expected = []
    for place, label in enumerate(labels):
        same = [i for i, other in enumerate(labels) if other == label]
        expected.append(same[(same.index(place) + 1) % len(same)] if len(same) > 1 else -1)
    assert _next_of_same(labels).tolist() == expected


def test_closeness_in_a_manifest():
    rng = np.random.default_rng(0)
    closeness = rng.normal(size=(500, 4)).astype(np.float32)
    closeness[::3, 1] = closeness[:, 3] = np.nan
    found = summarise(closeness)
    assert found['phi_similarity']['other'] == dict(images=0)
    column = sorted(value for value in closeness[:, 1].tolist() if value == value)
    assert found['psnr']['other']['images'] == len(column) == 333
    assert found['psnr']['other']['minimum'] == round(column[0], 3)
    assert found['psnr']['other']['median'] == round(column[166], 3)
    place = 0.01 * 332
    low = column[int(place)] + (place - int(place)) * (column[int(place) + 1] - column[int(place)])
    assert found['psnr']['other']['quantile_01'] == pytest.approx(low, abs=6e-4)
    assert found['phi_similarity']['own']['maximum'] == pytest.approx(closeness[:, 2].max(), abs=6e-4)


def test_a_chunk_is_read_as_it_was_written(tmp_path):
    chunks = ChunkFiles(tmp_path / 'chunks', 'these settings')
    assert not chunks.written(3).any()
    closeness = np.arange(12, dtype=np.float32).reshape(3, 4)
    closeness[1] = np.nan
    for number, given in ((1, closeness), (1234, None)):
        chunks.write(number, EncodedChunk([b'a\0', b'', b'bcd'], ['', 'file é is damaged', ''], given))
        found = chunks.read(number, 3)
        assert (found.images, found.notes) == ([b'a\0', b'', b'bcd'], ['', 'file é is damaged', ''])
        np.testing.assert_array_equal(found.closeness, given)
    assert chunks.path(1234).relative_to(tmp_path).as_posix() == 'chunks/00001/00001234.npz'
    (tmp_path / 'chunks/00000/copy of 2.npz').touch()
    (tmp_path / 'chunks/00000/00000002.npz.partial').touch()
    assert chunks.written(4).tolist() == [False, True, False, False]
    assert chunks.written(2000).nonzero()[0].tolist() == [1, 1234]
    assert stat.S_IMODE((tmp_path / 'chunks').stat().st_mode) == 0o700  # notes name source faces
    with pytest.raises(ValueError, match=r'00000001\.npz was written by a process of another export'):
        ChunkFiles(tmp_path / 'chunks', 'other settings').read(1, 3)


def test_damaged_chunks_are_named(tmp_path):
    chunks = ChunkFiles(tmp_path, '')
    rng = np.random.default_rng(0)
    images = [rng.bytes(200) for _ in range(3)]
    chunks.write(7, EncodedChunk(images, [''] * 3))
    path = chunks.path(7)
    whole = path.read_bytes()
    message = r'00000007\.npz is damaged: .* Delete it: the same command makes it anew'
    with pytest.raises(ValueError, match=message):
        chunks.read(7, 4)
    for data in (b'', b'x', whole[: len(whole) // 2], whole[:-1], whole.replace(images[1], images[0])):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            chunks.read(7, 3)
    for arrays in (
        dict(images=np.zeros(3, np.uint8), sizes=np.array([1, 1, 2]), notes=np.array([''] * 3)),
        dict(images=np.zeros(3, np.uint8), sizes=np.array([1, 1, 1]), notes=np.array([''] * 2)),
        dict(images=np.zeros(3, np.uint8), sizes=np.array([1, 1, 1])),
        dict(images=np.array([print, 1, 2]), sizes=np.array([1, 1, 1]), notes=np.array([''] * 3)),
    ):
        np.savez(path, made_by=np.array(''), **arrays)
        with pytest.raises(ValueError, match=message):
            chunks.read(7, 3)
    for place in rng.integers(0, len(whole), 60):  # a flipped byte is found, or changed nothing
        data = bytearray(whole)
        data[place] ^= 0x20
        path.write_bytes(data)
        try:
            assert list(chunks.read(7, 3).images) == images
        except ValueError as error:
            assert '00000007.npz is damaged' in str(error)


# The plan


def test_a_plan_is_the_order_that_only_the_owner_computes(originals, tmp_path):
    source, plan, mask = originals
    expected = []
    for person in sorted(source.identities, key=mask.identity_pseudonym):
        keys = [key for key in source.keys if key.startswith(f'{person}/')]
        expected += [(key, person) for key in sorted(keys, key=mask.image_pseudonym)]
    assert list(plan.names(range(len(plan)))) == expected and len(plan) == 6
    numbers = {person: number for number, person in enumerate(dict.fromkeys(person for _, person in expected))}
    assert plan.labels.tolist() == [numbers[person] for _, person in expected]
    other = ReleasePlan.of(plan.dataset, FaceMask(patch_size=8, fresh=False, seed=6))
    assert list(other.names(range(6))) != expected and sorted(other.names(range(6))) == sorted(expected)
    part = FaceRecordDataset(str(source.path), subset=dict(identities=['p0', 'p2']))
    assert list(ReleasePlan.of(part, mask).names(range(3))) == [pair for pair in expected if pair[1] != 'p1']


# The page


def test_the_page_names_every_key_of_the_schema(repository):
    text = (repository / 'docs/release.md').read_text()
    schema = json.loads(SCHEMA.read_text())
    keys = set()

    def collect(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key == 'properties':
                    keys.update(value)
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(schema)
    named = {part for code in re.findall(r'`([^`]+)`', text) for part in re.split(r'[^\w]+', code)}
    assert len(keys) > 40 and not keys - named and not SHOWN_STRINGS - named
    for value in [*schema['properties']['layout']['enum'], 'not checked', LEFT_OUT]:
        assert f'"{value}"' in text or f'`{value}`' in text
