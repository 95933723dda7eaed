"""How well an embedder tells the people of a set apart: utility of a released set without training on it."""

import argparse
import json
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from facemae_mm.command_line import add_embedder_flags, embedder_flags
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.evaluation.embed_faces import FaceImages, embed_faces
from facemae_mm.evaluation.links import read_links
from facemae_mm.evaluation.separation import separation
from facemae_mm.launch import refuse
from facemae_mm.open_embedder import open_embedder
from facemae_mm.randomness import keyed_seed
from facemae_mm.whole_file import whole_file

EPILOG = """\
For every person with two faces or more: how often are two of his faces nearer (cosine) than one of his and somebody
else's? The mean over people is printed, with a 95 % interval that resamples people; 0.5 is chance, 1 is perfect.
Take an embedder that the making of the set never saw; one that it was trained to match flatters it.

examples:
  python tools/separation.py weights/buffalo_l work_dirs/release/casia_facemae
  python tools/separation.py dlib data/lfw112 --out work_dirs/separation.json

Two releases of the same photos are compared person by person where --links orders both by the owner's own names."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('embedder', metavar='EMBEDDER', help='what embeds the faces, as for tools/verify.py')
    add('faces', metavar='FACES', help='faces with identities: a release, a folder of identity folders, a train.rec, …')
    add_embedder_flags(parser)
    add('--links', metavar='FILE', help="the owner's links of a release: people in the order of their own names")
    add('--people', type=int, metavar='N', help='of N people alone, drawn by their names (default: of all)')
    add('--out', type=Path, metavar='FILE', help='write the numbers, those of each person too, as JSON')
    add('--batch-size', type=int, default=64, metavar='N', help='faces at once (default: 64)')
    add('--workers', type=int, default=0, metavar='N', help='processes that read faces (0)')
    args = parser.parse_args()
    if args.people is not None and args.people < 2:
        parser.error(f'--people {args.people}: 2 or more, to tell one from another')
    return args


def draw_people(identity: np.ndarray, number: int) -> list[str]:
    """The first people by a hash of their names, which is the same in every release of the same photos."""
    return sorted(set(identity.tolist()), key=lambda name: keyed_seed('separation', name))[:number]


def run(args: argparse.Namespace) -> None:
    """Embeds, compares, prints and writes."""
    source = open_faces(args.faces)
    if not source.identities:
        raise ValueError(f'{args.faces} knows no identities. Give faces with identities, a folder a person.')
    identity = np.array(source.identities)[source.labels]
    if args.links:
        identity = np.array(read_links(args.links, source.keys)[1])
    phi = open_embedder(args.embedder, **embedder_flags(args))
    phi.to('cuda' if torch.cuda.is_available() else 'cpu')
    chosen = np.arange(len(source))
    if args.people:
        chosen = np.flatnonzero(np.isin(identity, draw_people(identity, args.people)))
    faces = FaceImages(source, chosen)
    embeddings, _ = embed_faces(faces, phi, False, args.batch_size, args.workers)
    found = separation(embeddings, identity[chosen])
    mean, low, high = found['auc']
    print(f'AUC {mean:.4f} [{low:.4f}, {high:.4f}], {found["people"]} people, {found["images"]} faces')
    if args.out:
        record = dict(embedder=args.embedder, embedder_sha256=phi.sha256, faces=args.faces, **found)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(args.out, 'x') as file:
            json.dump(record, file, ensure_ascii=False)


def main() -> None:
    """Measures one set."""
    args = parse_args()
    try:
        run(args)
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        refuse(f'separation.py: {error}')
    except KeyboardInterrupt:
        refuse('separation.py: interrupted; nothing was written.')


if __name__ == '__main__':
    main()
