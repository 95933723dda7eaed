"""Compares sets of faces made from the same photos, at eyes and mouth: a picture, and numbers (Figure 4)."""

import argparse
import json
import shlex
import sys
import textwrap
from itertools import combinations
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import facemae_mm
from facemae_mm.datasets.face_detection import FaceDetector, choose_face, load_detector
from facemae_mm.datasets.landmarks import read_landmarks
from facemae_mm.datasets.load_face import LoadFace
from facemae_mm.launch import refuse
from facemae_mm.randomness import keyed_seed
from facemae_mm.reproduction.alignment_error import ALIGNMENT, alignment_error
from facemae_mm.reproduction.face_regions import MEASURES, means_by_person, region_box, region_detail, rounded
from facemae_mm.reproduction.named_faces import NamedFaces, open_named_faces
from facemae_mm.whole_file import whole_file

#: Name of the originals.
ORIGINAL = 'original'

#: Colour of each region's box, as in the paper: blue eyes, orange mouth.
BOXES = dict(eyes='#0072B2', mouth='#E69F00')
REGIONS = (*BOXES, 'face')

#: Side of a face in the picture, width of a box, gap between pictures; pixels.
SIDE, LINE, GAP = 224, 4, 8

EPILOG = """\
FACES is a set of any kind, aligned, such as a release. Which photo a face was made from is said by LINKS, the owner's
links.csv, which is found where it lies in FACES.private; without links, by equal names of images, but never in a
release or a masked dataset, which number anew. Compared are the photos that all sets have.

Eyes and mouth are where landmarks5.csv beside the originals says, or, of faces that it does not hold, where the
template has them. Faces of another size than their originals are brought to it.

in DIR:
  compare_faces.png    a column a person, a row a set, the same photo in a column: the face, its eyes (blue) and its
                       mouth (orange) enlarged. People are drawn by --seed alone. It shows real people: only you can
                       open it (mode 0600), and it is not for publication
  compare_faces.json   for eyes, mouth and the whole face, means over photos with 95 % intervals that resample people,
                       and the paired differences of every two sets:
    ssim               structural similarity to the original, luma; 1 is equal
    detail             energy of the Laplacian over the original's, geometric mean; 1 is as much detail, below is blur.
                       Edges of patches and noise count as well, so read it with
    match              correlation of the Laplacians: how much of the detail is the original's own; 0 is none of it
                       In differences, ssim and match are a − b, detail is a / b
  and with --detector, under alignment:
    found              share of photos in which the detector finds a face
    landmark_error     mean distance of its five points from those that it finds in the original, over the distance of
                       the original's eyes; of photos where it finds a face in the original and in every set

examples:
  python tools/compare_faces.py mae=work_dirs/release/mae facemae=work_dirs/release/facemae --originals data/lfw112 \\
      --out work_dirs/figure4
  python tools/compare_faces.py blurred=data/blurred 'mine=release:keys/links.csv' --originals data/lfw112 --out out \\
      --detector dlib"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('sets', metavar='NAME=FACES[:LINKS]', nargs='+', help='sets that were made from the originals')
    add('--originals', required=True, metavar='FACES[:LINKS]', help='the real photos')
    add('--out', required=True, type=Path, metavar='DIR', help='folder to write; results there are replaced')
    add('--people', type=int, default=8, metavar='N', help='in the picture (default: 8)')
    add('--photos', type=int, default=5000, metavar='N', help='photos that are measured, at most (default: 5000)')
    add('--detector', choices=['dlib', 'insightface'], help='also say how well it finds and aligns the faces (slow)')
    add('--pack', default='buffalo_l', help="InsightFace's model pack (default: %(default)s)")
    add('--pack-root', default='~/.insightface', help='folder with models/PACK/*.onnx (default: %(default)s)')
    add('--seed', type=int, default=0, help='of the people and photos that are drawn, and of resamples (default: 0)')
    args = parser.parse_args()
    if min(args.people, args.photos) < 1 or args.people > 24:
        parser.error('--people must be 1 to 24, --photos 1 or more')
    return args


def common_photos(sets: list[NamedFaces]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Photos that all sets have, by the first one's order.

    Returns:
        Photos (C,), whom they show (C,), and their places in each set, (C,) each; of several faces that a set made from
        one photo, the first.

    Raises:
        ValueError: A set that cannot be matched, two sets that call one photo's person differently, or none in common.
    """
    for faces in sets:
        if faces.by == 'none':
            raise ValueError(
                f'{faces.name}: {faces.source.path} numbers its faces anew, so nobody can tell which photo each was '
                f"made from. Give the owner's table too: {faces.name}={faces.source.path}:links.csv."
            )
    places = []
    for faces in sets:
        first = {}
        for place, photo in enumerate(faces.photos.tolist()):
            first.setdefault(photo, place)
        places.append(first)
    common = [photo for photo in places[0] if all(photo in other for other in places[1:])]
    if not common:
        shown = ', '.join(f'{faces.name} {str(faces.photos[0])!r}' for faces in sets)
        raise ValueError(f'No photo is in all sets. They are called, for one: {shown}. Give sets of the same photos.')
    found = [np.array([place[photo] for photo in common]) for place in places]
    people = sets[0].people[found[0]]
    for faces, place in zip(sets[1:], found[1:]):
        other = faces.people[place] != people
        if other.any() and sets[0].source.identities and faces.source.identities:
            first = int(other.argmax())
            shown = [str(names[first]) for names in (people, faces.people[place])]
            raise ValueError(
                f'{common[first]} shows {shown[0]!r} in the originals and {shown[1]!r} in {faces.name}. Give '
                'the links of this very release and its real set.'
            )
    return np.array(common), people, found


class Photos:
    """The same photo in all sets, at the original's size.

    Args:
        sets: The originals first.
        places: Of the common photos in each.
    """

    def __init__(self, sets: list[NamedFaces], places: list[np.ndarray]) -> None:
        self.sets = sets
        self.places = places
        self.load = LoadFace()
        self.landmarks = read_landmarks(sets[0].source)

    def __getitem__(self, number: int) -> list[np.ndarray]:
        """Faces (H, H, 3) BGR in [0, 255], uint8 or float32, the original first.

        Raises:
            ValueError: One cannot be read, or is no square.
        """
        images = []
        for faces, places in zip(self.sets, self.places):
            source, place = faces.source, int(places[number])
            name = f'{source.path}:{source.keys[place]}'
            image = self.load(dict(img_bytes=source.read(place), img_path=name))['img']
            if image.shape[0] != image.shape[1] or len(image) < 32:
                raise ValueError(
                    f'{name} is {image.shape[1]}×{image.shape[0]} pixels; aligned faces are squares. Align the faces '
                    'first: tools/prepare_faces.py does it.'
                )
            if images and image.shape != images[0].shape:
                shrinks = len(image) > len(images[0])
                how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
                image = np.clip(cv2.resize(image, images[0].shape[:2], interpolation=how), 0, 255)
            images.append(image)
        return images

    def points(self, number: int) -> np.ndarray | None:
        """The original's five points; None where they are not known."""
        points = None if self.landmarks is None else self.landmarks[self.places[0][number]]
        return None if points is None or np.isnan(points).any() else points

    def boxes(self, number: int, size: int) -> dict[str, tuple[int, int, int, int]]:
        """Boxes of `REGIONS`."""
        points = self.points(number)
        return {name: region_box(name, points, size) for name in BOXES} | dict(face=(0, 0, size, size))


def measure(photos: Photos, chosen: np.ndarray) -> np.ndarray:
    """`region_detail` of every set but the originals: (photos, sets, regions, measures)."""
    found = []
    for number in tqdm(chosen.tolist(), desc='compare', unit='photo', mininterval=1):
        original, *made = photos[number]
        boxes = list(photos.boxes(number, len(original)).values())
        found.append([region_detail(original, face, boxes) for face in made])
    return np.array(found)


def find_points(photos: Photos, chosen: np.ndarray, detector: FaceDetector) -> np.ndarray:
    """Five points of the faces that a detector finds, NaN where none: (photos, 1 + sets, 5, 2), pixels (x, y)."""
    found = np.full((len(chosen), len(photos.sets), 5, 2), np.nan)
    for row, number in zip(found, tqdm(chosen.tolist(), desc='align', unit='photo', mininterval=1)):
        for points, image in zip(row, photos[number]):
            image = image.round().astype(np.uint8)
            faces = detector.find(image)
            if faces:
                points[:] = choose_face(faces, image.shape).points
    return found


def summary(values: np.ndarray) -> dict:
    """By region and measure, [mean, low, high], the latter two None of one person; detail as a ratio.

    Args:
        values: (3, regions, measures).
    """
    shown = values.copy()
    shown[..., MEASURES.index('detail')] = 2 ** shown[..., MEASURES.index('detail')]
    return {
        region: {measure: rounded(shown[:, r, m]) for m, measure in enumerate(MEASURES)}
        for r, region in enumerate(REGIONS)
    }


def cell(face: np.ndarray, boxes: dict[str, tuple[int, int, int, int]]) -> np.ndarray:
    """A face with its boxes drawn, and below it what they hold, enlarged: (h, SIDE, 3) RGB uint8."""
    face = np.ascontiguousarray(face.round().astype(np.uint8)[..., ::-1])
    scale = SIDE / len(face)
    whole = cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    strips = []
    for region, colour in BOXES.items():
        rgb = tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
        left, top, right, bottom = boxes[region]
        corners = [round(v * scale) for v in (left, top, right, bottom)]
        cv2.rectangle(whole, corners[:2], [v - 1 for v in corners[2:]], rgb, 2)
        height = round((SIDE - 2 * LINE) * (bottom - top) / (right - left))
        part = cv2.resize(
            face[top:bottom, left:right], (SIDE - 2 * LINE, max(height, 1)), interpolation=cv2.INTER_CUBIC
        )
        strips.append(cv2.copyMakeBorder(part, *[LINE] * 4, cv2.BORDER_CONSTANT, value=rgb))
    return np.vstack([whole, *strips])


def draw_grid(photos: Photos, shown: list[int], path: Path) -> None:
    """Writes the picture: columns are photos, rows sets."""
    columns = []
    for number in shown:
        faces = photos[number]
        boxes = photos.boxes(number, len(faces[0]))
        columns.append([cell(face, boxes) for face in faces])
    height = max(len(one) for column in columns for one in column)
    blank = np.full((height + GAP, SIDE + GAP, 3), 255, np.uint8)
    rows = []
    for row in zip(*columns):
        padded = [blank.copy() for _ in row]
        for cell_, picture in zip(row, padded):
            picture[: len(cell_), :SIDE] = cell_
        rows.append(np.hstack(padded))
    width = rows[0].shape[1] / SIDE * 1.1 + 1
    figure = Figure(figsize=(width, len(rows) * (height + GAP) / SIDE * 1.1 + 0.5), layout='constrained')
    title = f'Real people: not for publication. {len(shown)} people drawn by seed; eyes in blue, mouth in orange'
    figure.suptitle(textwrap.fill(title, int(width * 14)), fontsize=9)
    for axes, row, faces in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, photos.sets):
        axes.imshow(row, interpolation='antialiased')
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(faces.name, rotation=0, ha='right', va='center', fontsize=11)
    with whole_file(path, private=True) as file:
        figure.savefig(file, format='png', dpi=150, bbox_inches='tight')


def with_interval(value: list[float | None] | None) -> str:
    """[mean, low, high] as a person reads it."""
    if value is None:
        return '–'
    mean, low, high = value
    return f'{mean:.3f}' if low is None else f'{mean:.3f} [{low:.3f}, {high:.3f}]'


def print_table(names: list[str], sets: dict, differences: list[dict]) -> None:
    """The numbers, as a person reads them."""

    def row(title: str, found: dict) -> None:
        for region in REGIONS:
            cells = ''.join(f'{with_interval(found[region][m]):>25}' for m in MEASURES)
            print(f'{title:<30}{region:<7}{cells}')

    print(f'{"set":<30}{"region":<7}{"SSIM [95 %]":>25}{"detail, × original":>25}{"match of detail":>25}')
    for name in names:
        row(name, sets[name])
    for pair in differences:
        row(f'{pair["a"]} against {pair["b"]}', pair)
    if differences:
        print('a against b: SSIM and match a − b, detail a / b, on the same photos.')


def print_alignment(found: dict) -> None:
    """How well faces are found and aligned."""
    print(f'{"set":<37}{"found [95 %]":>25}{"landmark error [95 %]":>25}')
    print(f'{ORIGINAL:<37}{with_interval(found["original"]["found"]):>25}')
    differences = {f'{pair["a"]} − {pair["b"]}': pair for pair in found['differences']}
    for title, values in (found['sets'] | differences).items():
        print(f'{title:<37}{"".join(f"{with_interval(values[measure]):>25}" for measure in ALIGNMENT)}')
    print(f'{found["detector"]}; errors in distances of the eyes, {found["aligned"]:,} of {found["photos"]:,} photos.')


def run(args: argparse.Namespace) -> None:
    """Matches, measures, draws and writes."""
    detector = load_detector(args.detector, args.pack, args.pack_root) if args.detector else None
    sets = open_named_faces([f'{ORIGINAL}={args.originals}', *args.sets])
    names = [faces.name for faces in sets[1:]]
    common, people, places = common_photos(sets)
    chance = np.array([keyed_seed('compared photo', args.seed, photo) for photo in common.tolist()], np.uint64)
    order = np.argsort(chance, kind='stable')
    chosen = np.sort(order[: args.photos])
    photos = Photos(sets, places)
    args.out.mkdir(parents=True, exist_ok=True)

    values = measure(photos, chosen)
    whose = people[chosen]
    by_set = {name: summary(means_by_person(values[:, k], whose, seed=args.seed)) for k, name in enumerate(names)}
    differences = [
        dict(a=a, b=b) | summary(means_by_person(values[:, i] - values[:, j], whose, seed=args.seed))
        for (i, a), (j, b) in combinations(enumerate(names), 2)
    ]
    drawn = sorted(set(people.tolist()), key=lambda name: keyed_seed('shown person', args.seed, name))
    shown = [int(order[(people[order] == name).argmax()]) for name in drawn[: args.people]]
    draw_grid(photos, shown, args.out / 'compare_faces.png')
    known = sum(photos.points(number) is not None for number in chosen.tolist())
    record = dict(
        command=shlex.join(['python', *sys.argv]),
        settings=dict(seed=args.seed, facemae_mm=facemae_mm.__version__),
        photos=len(chosen),
        photos_in_common=len(common),
        people=len(np.unique(whose)),
        photos_with_landmarks=known,
        matched_by={faces.name: faces.by for faces in sets[1:]},
        sets=by_set,
        differences=differences,
    )
    if detector:
        points = find_points(photos, chosen, detector)
        record['alignment'] = detector.describe() | alignment_error(points, whose, names, args.seed)
    with whole_file(args.out / 'compare_faces.json', 'x') as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    print_table(names, by_set, differences)
    if args.detector:
        print_alignment(record['alignment'])
    print(
        f'{len(chosen):,} of {len(common):,} photos that all sets have, of {record["people"]:,} people; regions by '
        f'landmarks for {known:,}, by the template for {len(chosen) - known:,}. Intervals resample people.\n'
        f'{args.out / "compare_faces.json"}; {args.out / "compare_faces.png"} shows real people: it is for you alone '
        '(mode 0600), and not for publication.'
    )


def main() -> None:
    """Compares."""
    args = parse_args()
    try:
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'compare_faces.py: {error}')
    except KeyboardInterrupt:
        refuse('compare_faces.py: interrupted; the same command starts over.')


if __name__ == '__main__':
    main()
