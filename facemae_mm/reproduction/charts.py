"""Charts of the page, as SVG without dates, so that the same numbers give the same files."""

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from .measures import Measured, worst_leakage

#: Okabe and Ito's colours, which people tell apart whatever their sight.
COLOURS = dict(
    original='#000000', mae='#0072B2', facemae='#D55E00', imitation='#009E73', other='#CC79A7', chance='#888888'
)
#: Likewise, for the rows of Table 1 in their order.
ROW_COLOURS = ('#000000', '#E69F00', '#888888', '#009E73', '#CC79A7', COLOURS['mae'], '#56B4E9', COLOURS['facemae'])


@contextmanager
def _svg(path: Path, size: tuple[float, float]):
    """A figure that is written when the block ends."""
    with matplotlib.rc_context({'svg.hashsalt': 'facemae', 'font.size': 9, 'svg.fonttype': 'none'}):
        figure = Figure(figsize=size, layout='constrained')
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=dict(Date=None))


def draw_leakage(path: Path, mae: Mapping, facemae: Mapping) -> None:
    """Figures 3 and 5: top-K retrieval accuracy against the number of identities, a panel a K.

    Args:
        path: SVG to write.
        mae: An attacker's part of the audit of MAE's release.
        facemae: Of FaceMAE's, with the imitations.
    """
    curves = [
        ('Org. → Org.', facemae, 'original_original', 'with', COLOURS['original'], '-'),
        ('Org. → FaceMAE', facemae, 'original_released', 'with', COLOURS['facemae'], '-'),
        ('Org. → FaceMAE, other photos', facemae, 'original_released', 'without', COLOURS['facemae'], '--'),
        ('Org. → MAE', mae, 'original_released', 'with', COLOURS['mae'], '-'),
        ('Org. → MAE, other photos', mae, 'original_released', 'without', COLOURS['mae'], '--'),
        ('MAE → FaceMAE', facemae, 'imitation:MAE', 'with', COLOURS['imitation'], '-'),
        ('FaceMAE, other masks → FaceMAE', facemae, 'imitation:FaceMAE', 'with', COLOURS['other'], '-'),
    ]
    with _svg(path, (10, 4.4)) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for panel, k in zip(panels, '234', strict=True):
            for label, about, pairing, mode, colour, style in curves:
                points = [p for p in about['leakage'].get(pairing, []) if p.get(mode)]
                if points:
                    counts = [point['identities'] for point in points]
                    rate, low, high = zip(*(point[mode][k] for point in points), strict=True)
                    panel.plot(counts, rate, style, color=colour, marker='.', label=label)
                    panel.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
            points = facemae['leakage']['original_released']
            chance = [point['chance_with'][k] for point in points]
            panel.plot([p['identities'] for p in points], chance, ':', color=COLOURS['chance'], label='chance')
            panel.set(title=f'K = {k}', xlabel='identities', xscale='log', ylim=(0, 1.02))
            panel.set_xticks([point['identities'] for point in points])
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(PercentFormatter(1))
            panel.grid(alpha=0.3)
        panels[0].set_ylabel('photos that find their person')
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)


def draw_trade_off(path: Path, rows: Mapping[str, tuple[Measured, Mapping]], original: Measured | None) -> None:
    """Utility against leakage, a point a row.

    Args:
        path: SVG to write.
        rows: By label, accuracy and audit.
        original: Accuracy of recognisers trained on the original faces, a line across; None where it is not known.
    """
    with _svg(path, (7.2, 4.8)) as figure:
        panel = figure.subplots()
        for number, (label, (accuracy, audit)) in enumerate(rows.items()):
            rate, low, high = worst_leakage(audit, 'without')
            x = ([max(rate - low, 0)], [max(high - rate, 0)])
            y = ([max(accuracy.mean - accuracy.low, 0)], [max(accuracy.high - accuracy.mean, 0)])
            colour, marker = ROW_COLOURS[number % 8], 'osD^vPX*'[number % 8]
            panel.errorbar(
                rate, accuracy.mean, xerr=x, yerr=y, fmt=marker, color=colour, capsize=2, label=label, markersize=5
            )
        if original is not None:
            panel.axhline(
                original.mean, color=COLOURS['original'], linewidth=0.8, linestyle=':', label='original faces'
            )
        panel.set(
            xlabel='leakage at K = 2, other photos of the person (less is better)',
            ylabel='accuracy of a recogniser trained on them (more is better)',
        )
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(alpha=0.3)
        figure.legend(loc='outside right upper', frameon=False)
