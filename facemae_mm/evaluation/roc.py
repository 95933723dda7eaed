"""The receiver operating characteristic of pairs."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..whole_file import whole_file


def roc_curve(distance: np.ndarray, same: np.ndarray) -> dict[str, np.ndarray]:
    """Every corner of the ROC: what is accepted at distance ≤ a threshold, over all thresholds.

    Points on a straight line between two others are left out, so that there are at most two for each pair of the rarer
    kind, and linear interpolation gives the others back.

    Args:
        distance: Of each pair (P,), smaller is more alike; pairs at one distance are accepted together.
        same: Whether the two are one person, (P,); some are, some are not.

    Returns:
        `far` (share of the pairs of two persons that is accepted), `tar` (of those of one person) and `threshold`, each
        (K,) float64, from (0, 0, −inf) to (1, 1, the largest distance), ascending.
    """
    order = np.argsort(distance, kind='stable')
    distance, same = np.asarray(distance, np.float64)[order], np.asarray(same, bool)[order]
    last = np.append(np.diff(distance) > 0, True)  # of the pairs at one distance
    true, false = (np.append(0, kind.cumsum()[last]) for kind in (same, ~same))
    steps = np.diff(true), np.diff(false)
    corner = np.ones(len(true), bool)
    corner[1:-1] = steps[0][1:] * steps[1][:-1] != steps[0][:-1] * steps[1][1:]
    threshold = np.append(-np.inf, distance[last])
    return dict(far=false[corner] / false[-1], tar=true[corner] / true[-1], threshold=threshold[corner])


def save_roc(curves: Mapping[str, Mapping[str, np.ndarray]], folder: str | Path) -> list[Path]:
    """Writes `roc.png`, all curves over a logarithmic FAR, and `roc_{name}.csv`, the points of each.

    Args:
        curves: What `roc_curve` gave, by name.
        folder: Made where it does not exist; files of an earlier time are replaced.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / 'roc.png']
    figure = Figure(figsize=(6.4, 4.8), layout='constrained')
    axes = figure.subplots()
    least = min(0.1, *(curve['far'][curve['far'] > 0].min() for curve in curves.values()))
    for name, curve in curves.items():
        axes.plot(np.maximum(curve['far'], least), curve['tar'], label=name)
        table = io.StringIO(newline='')
        rows = zip(*(curve[key].tolist() for key in ('far', 'tar', 'threshold')))
        csv.writer(table, lineterminator='\n').writerows([('far', 'tar', 'threshold'), *rows])
        paths.append(folder / f'roc_{name}.csv')
        with whole_file(paths[-1], 'x') as file:
            file.write(table.getvalue())
    lowest = min(curve['tar'][curve['far'] <= least].max() for curve in curves.values())
    axes.set(xscale='log', xlabel='FAR', ylabel='TAR', xlim=(least, 1), ylim=(max(lowest - 0.05, 0), 1.005))
    axes.grid(True, which='major', linewidth=0.4)
    axes.legend(loc='lower right')
    with whole_file(paths[0]) as file:
        figure.savefig(file, format='png', dpi=130)
    return paths
