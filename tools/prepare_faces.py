"""Turn photographs into aligned faces, or aligned faces from one format into another."""

import argparse
import csv
import os
from pathlib import Path

import cv2
import numpy as np

from facemae_mm.datasets.face_detection import load_detector
from facemae_mm.datasets.face_source import FaceSource, open_faces
from facemae_mm.datasets.landmarks import read_landmarks
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.preparation import NO_FACE, PRIVATE_REPORT, RECORDS, FacePreparer, prepare_faces
from facemae_mm.launch import refuse

EPILOG = """\
examples:
  photographs, one folder a person, to aligned faces:
    python tools/prepare_faces.py photos data/faces --pack buffalo_l
  the same without InsightFace's weights, packed as InsightFace's trainers read them:
    python tools/prepare_faces.py photos.zip data/faces --detector dlib --format rec --jpeg 95
  a folder of aligned faces to a .rec, and back:
    python tools/prepare_faces.py data/faces data/packed --aligned --format rec
    python tools/prepare_faces.py data/packed/train.rec data/unpacked --aligned

Names of people and files do not travel: faces are numbered, unless --keep-names. Which face was which image, and what
became of every image, is in OUT.private, for you alone; masks follow the original names through it. EXIF and comments
never travel, unless --aligned --keep-metadata. Started again after an interruption, it goes on where it stopped.

Faces are found with a border of a quarter of the picture in its mean colour: tightly cropped faces fill a detector's
view, and are not found without one. Where that finds none, the picture alone and a wider border are tried.
--border says another one. Several faces in a picture: the large central one counts (--select)."""

#: Faces and missed pictures on the sheet, and pixels of one.
SHEET_FACES, SHEET_MISSED, TILE = 60, 12, 112
SHEET_EXTENSIONS = '.png', '.jpg', '.jpeg'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='photographs, or aligned faces: a folder, a .zip of one, or a train.rec')
    parser.add_argument('out', help='folder to write; appears when it is complete')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--detector',
        choices=['insightface', 'dlib'],
        default='insightface',
        help='(default: %(default)s)',
    )
    kind.add_argument(
        '--aligned', action='store_true', help='the faces are aligned already: convert them, pictures as they are'
    )
    parser.add_argument('--pack', default='buffalo_l', help="InsightFace's model pack (default: %(default)s)")
    parser.add_argument(
        '--pack-root', default='~/.insightface', help='folder with models/PACK/*.onnx (default: %(default)s)'
    )
    parser.add_argument(
        '--border',
        type=float,
        metavar='FRACTION',
        help='of the longer side, added on each side before detecting; 0 for none (default: several in turn)',
    )
    parser.add_argument(
        '--select',
        choices=['central', 'largest'],
        default='central',
        help='of several faces (default: %(default)s)',
    )
    parser.add_argument('--size', type=int, default=112, help='side of a face, pixels (default: %(default)s)')
    parser.add_argument(
        '--format', choices=['folder', 'rec'], default='folder', help='of the faces (default: %(default)s)'
    )
    parser.add_argument(
        '--jpeg',
        type=int,
        metavar='QUALITY',
        help='write JPEG, a fifth of the size at 95 (default: PNG, lossless)',
    )
    parser.add_argument(
        '--keep-names', action='store_true', help='faces keep the names of folders and files; in a .rec by its keys.csv'
    )
    parser.add_argument('--keep-metadata', action='store_true', help='with --aligned: EXIF and comments stay')
    parser.add_argument(
        '--on-error',
        choices=['raise', 'skip'],
        default='raise',
        help='an image that cannot be read ends the run, or is left out and counted (default: %(default)s)',
    )
    parser.add_argument('--sheet', metavar='FILE', help='also draw a sheet of faces and missed pictures (.png or .jpg)')
    parser.add_argument(
        '--workers', type=int, default=len(os.sched_getaffinity(0)), help='processes (default: one a core)'
    )
    args = parser.parse_args()
    if args.jpeg is not None and not 1 <= args.jpeg <= 100:
        parser.error(f'--jpeg {args.jpeg} is no quality: give 1 to 100')
    if args.border is not None and not 0 <= args.border <= 4:
        parser.error(f'--border {args.border} must be a fraction from 0 to 4')
    if not 16 <= args.size <= 1024:
        parser.error(f'--size {args.size} must be 16 to 1024 pixels')
    if args.keep_metadata and not args.aligned:
        parser.error('--keep-metadata goes with --aligned: a face cut out of a photograph has none')
    if args.sheet is not None and Path(args.sheet).suffix.lower() not in SHEET_EXTENSIONS:
        parser.error(f'--sheet {args.sheet} must be a picture: end its name in {", ".join(SHEET_EXTENSIONS)}')
    return args


def summary(report: dict, out: str) -> str:
    """The report in words."""
    particular = [f'{report[trait]} {trait}' for trait in ('rotated', 'grey', 'alpha') if report[trait]]
    borders = ', '.join(f'{border} in {count}' for border, count in report['found_with_border'].items())
    lines = [
        f'{out}: {report["faces"]} faces of {report["identities"]} identities from {report["images"]} images',
        f'  no face found in {report["no_face"]}, unreadable {report["unreadable"]}; several faces in '
        f'{report["several_faces"]}' * (report['detector'] is not None),
        f'  found with a border of {borders}' * bool(borders),
        f'  {", ".join(particular)}: handled' * bool(particular),
        f'  {report["identities_without_face"]} identities have no face left' * bool(report['identities_without_face']),
        f'  what became of each image: {out}.private/{PRIVATE_REPORT}',
    ]
    return '\n'.join(line for line in lines if line)


def draw_sheet(source: FaceSource, out: Path, file: str) -> None:
    """Faces with their landmarks, evenly over the set, then pictures in which none was found."""
    faces = open_faces(out / RECORDS if (out / RECORDS).is_file() else out)
    points, tiles = read_landmarks(faces), []
    for i in np.unique(np.linspace(0, len(faces) - 1, SHEET_FACES).astype(int)).tolist():
        face = decode_face(faces.read(i), faces.keys[i])
        for x, y in [] if points is None or np.isnan(points[i]).any() else points[i]:
            cv2.circle(face, (round(float(x)), round(float(y))), 1, (0, 255, 0), -1)
        tiles.append(cv2.resize(face, (TILE, TILE), interpolation=cv2.INTER_AREA))
    with Path(f'{out}.private', PRIVATE_REPORT).open(newline='', encoding='utf-8') as table:
        missed = {row['source_key'] for row in csv.DictReader(table) if row['outcome'] == NO_FACE}
    for i in [i for i, key in enumerate(source.keys) if key in missed][:SHEET_MISSED] if missed else []:
        picture = decode_face(source.read(i), source.keys[i])
        scale = (TILE - 8) / max(picture.shape[:2])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[: TILE - 8, : TILE - 8]
        tile = np.full((TILE, TILE, 3), (0, 0, 200), np.uint8)  # a red frame
        tile[4 : 4 + len(small), 4 : 4 + small.shape[1]] = small
        tiles.append(tile)
    tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (-len(tiles) % 12)
    rows = [np.hstack(tiles[start : start + 12]) for start in range(0, len(tiles), 12)]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(file, np.vstack(rows)):
        raise OSError(f'{file} could not be written. Is the disk full?')
    print(f'{file}: {len(rows)} rows of faces with their landmarks; framed in red: none found. Not for publication.')


def main() -> None:
    """Prepares one set."""
    args = parse_args()
    try:
        detector = None if args.aligned else load_detector(args.detector, args.pack, args.pack_root, args.border)
        source = open_faces(args.source)
        preparer = FacePreparer(source, detector, args.size, args.select, args.jpeg, args.keep_metadata, args.on_error)
        report = prepare_faces(preparer, args.out, args.format == 'rec', args.keep_names, args.workers)
        print(summary(report, args.out))
        if args.sheet:
            draw_sheet(source, Path(args.out), args.sheet)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        refuse(f'prepare_faces.py: {error}')
    except KeyboardInterrupt:
        refuse(f'prepare_faces.py: interrupted. The same command goes on with {args.out}.partial.')


if __name__ == '__main__':
    main()
