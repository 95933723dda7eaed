"""The search of an audit against faiss, scikit-learn and MMPretrain, and what repeated draws of identities cost.

All search for the K nearest of as many queries as gallery images, float32 embeddings of people with five images each.
faiss is `IndexFlatIP` on unit vectors, filled and searched; scikit-learn `NearestNeighbors(metric='cosine',
algorithm='brute')`; MMPretrain its `ImageToImageRetriever`, which compares all dimensions of a batch at once. The last
two run at a size that they can hold, and so do we there. Curves are five points with twenty draws at each, from the
search to the rates. Memory is the most that a process held which did nothing else.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from side_by_side import print_ratio

from facemae_mm.evaluation.embedded_faces import EmbeddedFaces
from facemae_mm.evaluation.nearest import NearestImages
from facemae_mm.evaluation.retrieval_curves import Draws, retrieval_curves, spread_points

SEED = 0


def people(images: int, dimension: int, photo: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of people with five images each, and who they are; `photo` tells sets of one people apart."""
    identity = np.arange(images) % max(images // 5, 1)
    centres = np.random.default_rng(SEED).standard_normal((identity.max() + 1, dimension), dtype=np.float32)
    noise = np.random.default_rng([SEED, photo]).standard_normal((images, dimension), dtype=np.float32)
    return 0.55 * centres[identity] + noise, identity


class Ours:
    """The exact search."""

    def __init__(self, images: int, dimension: int, k: int) -> None:
        self.k = k
        self.queries, self.gallery = (people(images, dimension, photo)[0] for photo in (1, 2))

    def __call__(self) -> np.ndarray:
        return NearestImages(self.gallery)(self.queries, self.k)


class Faiss(Ours):
    """faiss's exact index; its lengths are those of unit vectors already."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        for rows in (self.queries, self.gallery):
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def __call__(self) -> np.ndarray:
        index = faiss.IndexFlatIP(self.gallery.shape[1])
        index.add(self.gallery)
        return index.search(self.queries, self.k)[1]


class ScikitLearn(Ours):
    """scikit-learn's brute force."""

    def __call__(self) -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=self.k, metric='cosine', algorithm='brute', n_jobs=-1).fit(self.gallery)
        return index.kneighbors(self.queries, return_distance=False)


class MMPretrain(Ours):
    """MMPretrain's `ImageToImageRetriever.matching`, in batches of 32 queries as its recipes test."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        from mmpretrain.models import ImageToImageRetriever

        network = dict(type='ResNet', depth=18)  # embeds nothing here: the embeddings are given
        self.retriever = ImageToImageRetriever(network, torch.from_numpy(self.gallery))
        self.retriever.prepare_prototype()

    def __call__(self) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for start in range(0, len(self.queries), 32):
                queries = torch.from_numpy(self.queries[start : start + 32])
                found.append(self.retriever.matching(queries)['pred_label'][:, : self.k])
        return torch.cat(found).numpy()


class Curves(Ours):
    """The search, as deep as an audit makes it, and Eq. 3 at five points with twenty draws each."""

    def __init__(self, images: int, dimension: int, k: int, draws: int = 20, points: int = 5) -> None:
        super().__init__(images, dimension, k)
        identity = people(images, 1, 0)[1]
        number = np.arange(images)
        self.faces = [EmbeddedFaces(rows, identity, number) for rows in (self.queries, self.gallery)]
        self.draws = Draws.nested(identity, spread_points(identity.max() + 1, points), draws)
        self.depth = 64

    def __call__(self) -> list[float]:
        identity = self.faces[0].identity
        near = NearestImages(self.gallery, labels=identity)(self.queries, self.depth, identity)
        curves = retrieval_curves(*self.faces, near, self.draws, self.k)
        return [curves['without'].rate(point, self.k) for point in range(len(self.draws.points))]


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def product_rate(side: int = 4096) -> float:
    """Best of five float32 products, FLOP/s."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    out = torch.empty(side, side)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(5))


def memory(side: type, *size: int) -> float:
    """Most memory of one search beside its data, in a process of its own, MiB."""
    code = f"""
import re, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import audit

def held(what):
    return int(re.search(what + r':\\s*(\\d+) kB', open('/proc/self/status').read())[1]) / 1024

side = audit.{side.__name__}(*{size!r})
open('/proc/self/clear_refs', 'w').write('5')  # the peak begins anew
before = held('VmRSS')
side()
print(held('VmHWM') - before)
"""
    done = subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def agree(sides: list[Ours]) -> None:
    """Says how far the results are the same: float32 may swap what float64 tells apart."""
    results = [side() for side in sides]
    for side, result in zip(sides[1:], results[1:], strict=True):
        print(f'  {type(side).__name__}: {(result == results[0]).mean():.4%} of the neighbours are ours')


def growth(dimension: int) -> None:
    """Seconds of a search with more queries, a larger gallery, more dimensions, and of curves with more draws."""
    rows = [
        ('queries', dict(queries=5_000)),
        ('', dict(queries=20_000)),
        ('gallery', dict(gallery=5_000)),
        ('', dict(gallery=20_000)),
        ('', dict(gallery=80_000)),
        ('dimensions', dict(dimension=128)),
        ('', dict(dimension=512)),
        ('', dict(dimension=1024)),
    ]
    print('seconds of a search                                   ours')
    for title, change in rows:
        size = dict(queries=10_000, gallery=20_000, dimension=dimension) | change
        side = Ours(max(size['queries'], size['gallery']), size['dimension'], 4)
        side.queries, side.gallery = side.queries[: size['queries']], side.gallery[: size['gallery']]
        side()
        text = f'{size["queries"]:,} × {size["gallery"]:,} × {size["dimension"]}'
        print(f'  {title:12} {text:35} {min(seconds(side) for _ in range(3)):8.2f}', flush=True)
    for draws in (1, 5, 20, 80):
        side = Curves(20_000, dimension, 4, draws)
        print(f'  {"draws":12} {f"{draws} at 5 points, 20,000 × 20,000":35} {seconds(side):8.2f}', flush=True)


def from_disk(queries: int, images: int, dimension: int, depth: int) -> None:
    """Time and memory of a search between files, as an audit makes it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, photo, count in (('queries', 1, queries), ('gallery', 2, images)):
            rows = np.lib.format.open_memmap(f'{folder}/{name}.npy', 'w+', np.float32, (count, dimension))
            generator = np.random.default_rng([SEED, photo])
            for start in range(0, count, 2**16):
                block = rows[start : start + 2**16]
                block[:] = generator.standard_normal(block.shape, dtype=np.float32)
            del rows
        code = f"""
import re, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import audit, numpy as np
from facemae_mm.evaluation.search_parts import search_to_file

def own():  # without pages of files, which the system takes back as it likes
    return int(re.search(r'RssAnon:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024

def watch():
    global most
    while True:
        most = max(most, own())
        time.sleep(0.05)

queries, gallery = (np.load(f'{folder}/{{name}}.npy', mmap_mode='r') for name in ('queries', 'gallery'))
before = most = own()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
search_to_file(queries, gallery, {depth}, {folder!r}, 'near')
seconds = time.perf_counter() - start
print(f'  {{seconds:.0f}} s; {{most - before:,.0f}} MiB of memory beside {{before:,.0f}} after the imports')
"""
        size = (queries + images) * dimension * 4 / 2**20
        print(f'{queries:,} × {images:,} × {dimension}, {depth} nearest, from files of {size:,.0f} MiB', flush=True)
        subprocess.run([sys.executable, '-c', code], check=True)


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=50_000, help='queries, and gallery (default: %(default)s)')
    parser.add_argument('--dimension', type=int, default=512, help='(default: %(default)s)')
    parser.add_argument('--k', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--small', type=int, default=20_000, help='images for scikit-learn (default: %(default)s)')
    parser.add_argument('--tiny', type=int, default=1_000, help='images for MMPretrain (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='of each side, at least 3 (default: %(default)s)')
    parser.add_argument('--full', action='store_true', help='100,000 images, and how time grows')
    files = 'only a search between files, of so many queries and so many gallery images, 64 nearest'
    parser.add_argument('--disk', type=int, nargs=2, metavar=('Q', 'G'), help=files)
    args = parser.parse_args()
    if args.disk:
        from_disk(*args.disk, args.dimension, depth=64)
        return
    images = 100_000 if args.full else args.images
    size = images, args.dimension, args.k
    print(f'{torch.get_num_threads()} threads; {images:,} × {images:,} × {args.dimension}, K = {args.k}', flush=True)

    ours, peer = Ours(*size), Faiss(*size)
    agree([ours, peer])
    rates, taken = [], []

    def beside_products() -> float:
        rates.append(product_rate())  # in each round: the machine's speed wanders
        taken.append(seconds(ours))
        return taken[-1]

    lines = [print_ratio('time_vs_faiss', beside_products, partial(seconds, peer), args.rounds, digits=2)]
    needed = 2 * images**2 * args.dimension
    shares = [needed / second / rate for second, rate in zip(taken[1:], rates[1:], strict=True)]
    print(
        f'  products of 4096³: {statistics.median(rates) / 1e9:.0f} GFLOP/s; ours '
        f'{needed / statistics.median(taken[1:]) / 1e9:.0f}: {statistics.median(shares):.3f} of it '
        f'({min(shares):.3f} to {max(shares):.3f})'
    )
    lines.append(f'ratio sgemm_share {statistics.median(shares):.3f}')
    curves = Curves(*size)
    lines.append(print_ratio('draws_cost', partial(seconds, curves), partial(seconds, ours), args.rounds, digits=2))

    for name, kind, images_held in (('sklearn', ScikitLearn, args.small), ('mmpretrain', MMPretrain, args.tiny)):
        held = images_held, args.dimension, args.k
        mine, other = Ours(*held), kind(*held)
        print(f'{images_held:,} × {images_held:,} × {args.dimension}', flush=True)
        agree([mine, other])
        sides = partial(seconds, mine), partial(seconds, other)
        lines.append(print_ratio(f'time_vs_{name}', *sides, args.rounds, digits=2))
        print(f'  memory beside the data, MiB: ours {memory(Ours, *held):,.0f}, peer {memory(kind, *held):,.0f}')
    print(f'  the same at {images:,}: ours {memory(Ours, *size):,.0f}, faiss {memory(Faiss, *size):,.0f}', flush=True)
    if args.full:
        growth(args.dimension)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
