"""The paper's tables: rows, the paper's numbers, and the stages from which each cell of ours comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .data_flow import DataFlow
from .miniature import Miniature

#: What differs between the runs of a cell, and so what its interval covers beside the people of the test.
ALL = 'reconstructor, masks and recogniser'
MASKS = 'masks and recogniser'
RECOGNISER = 'recogniser'

Paper = tuple[float | None, float | None, float | None]

#: Recognisers of Table 5, with the paper's numbers for FaceMAE; that of R50 stands in its Table 1.
NETWORKS: dict[str, tuple[str, Paper]] = dict(
    r18=('R18', (98.56, 89.31, 89.13)),
    r50=('R50', (99.23, 90.80, 90.25)),
    r100=('R100', (99.53, 91.91, 90.51)),
    mbf=('MobileFaceNet', (98.40, 88.94, 88.56)),
    vit=('ViT-S', (98.45, 90.12, 90.18)),
)


@dataclass(frozen=True)
class Run:
    """One seed of a cell.

    Attributes:
        verify: Stage with the accuracy of a recogniser trained on the cell's faces.
        separation: Stage by judge, with how well the faces' people are told apart; empty where other tables have it.
        audit: Stage with the leakage of the faces.
    """

    verify: str
    separation: dict[str, str]
    audit: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: What the row is.
        paper: Its accuracies in the paper, % on LFW / CFP-FP / AgeDB, None where the paper has none.
        runs: Ours, by seed.
        varies: What differs between them.
        remark: What a reader must know of it.
        reconstructed: Whether a trained reconstructor made its faces.
    """

    label: str
    paper: Paper | None
    runs: tuple[Run, ...]
    varies: str
    remark: str = ''
    reconstructed: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: 'table1' to 'table8'.
        title: What its rows vary.
        rows: By key.
        remark: What a reader must know of all of them.
        others: Stages beside its rows, for what the paper says of them.
    """

    name: str
    title: str
    rows: dict[str, Row]
    remark: str = ''
    others: tuple[str, ...] = ()


class Cells:
    """Cells, as stages of a graph, made once however many tables show them.

    Args:
        graph: The data flow.
        seeds: Runs of a cell.
    """

    def __init__(self, graph: DataFlow, seeds: int) -> None:
        self.graph = graph
        self.seeds = range(seeds)

    def _runs(
        self,
        faces: Callable[[int], tuple[str, str]],
        network: str | None = None,
        part: str = 'deploy',
        links: bool = True,
        audit: bool = False,
        imitations: Mapping[str, str] | None = None,
        of_w: bool = False,
    ) -> tuple[Run, ...]:
        """A run a seed; `faces` gives the words for a seed's faces, and their label.

        `network` None is the scale's; those of another train on the same faces, which are measured with the scale's
        alone; imitations attack those of the first seed. `of_w` says that the faces show people of W.
        """
        first = network in (None, self.graph.network)
        runs = []
        for seed in self.seeds:
            words, label = faces(seed)
            verify = self.graph.utility(words, label, seed, network or self.graph.network, part)
            separation = self.graph.separation(words, label, links, part, of_w) if first else {}
            attackers = None if seed else imitations
            leak = self.graph.audit(words, label, attackers, part) if first and audit else None
            runs.append(Run(verify, separation, leak))
        return tuple(runs)

    def original(self, network: str | None = None) -> tuple[Run, ...]:
        """Real faces of C."""
        return self._runs(lambda seed: (self.graph.faces('deploy'), 'original'), network, links=False)

    def synthetic(self) -> tuple[Run, ...]:
        """Others' synthetic faces."""
        return self._runs(lambda seed: (self.graph.faces('synthetic'), 'synthetic'), part='synthetic', links=False)

    def released(
        self,
        model: Callable[[int], str],
        network: str | None = None,
        part: str = 'deploy',
        masks: int | None = None,
        audit: bool = False,
        imitations: Mapping[str, str] | None = None,
        **options: float | str,
    ) -> tuple[Run, ...]:
        """Faces reconstructed by the model that each seed gives; masks by the seed too, unless they are given."""

        def release(seed: int) -> str:
            return self.graph.release(model(seed), seed if masks is None else masks, part, **options)

        return self.faces_of(release, network, part, audit=audit, imitations=imitations)

    def faces_of(
        self,
        release: Callable[[int], str],
        network: str | None = None,
        part: str = 'deploy',
        links: bool = True,
        audit: bool = False,
        imitations: Mapping[str, str] | None = None,
        of_w: bool = False,
    ) -> tuple[Run, ...]:
        """Faces that the stage of each seed gives; `of_w` says that they show people of W."""

        def faces(seed: int) -> tuple[str, str]:
            name = release(seed)
            return f'{{{name}}}', name.removeprefix('release.')

        return self._runs(faces, network, part, links, audit, imitations, of_w)

    def facemae(self, network: str | None = None) -> tuple[Run, ...]:
        """The paper's model: a training, masks and a recogniser a seed; audited with attackers who imitate it."""
        made = {'MAE': self.graph.mae(0), 'FaceMAE': self.graph.facemae(0)}
        imitations = {name: f'{{{self.graph.release(model, 1)}}}' for name, model in made.items()}
        return self.released(self.graph.facemae, network, audit=True, imitations=imitations)

    def varied(self, part: str = 'train', deploy: str = 'deploy', **options: float | str) -> tuple[Run, ...]:
        """Another training of FaceMAE, once, deployed at its own masks."""
        masking = {key: value for key, value in options.items() if key.startswith('mask_')}
        return self.released(lambda seed: self.graph.facemae(0, part, **options), part=deploy, **masking)


def table1(cells: Cells) -> Table:
    """Methods."""
    graph = cells.graph

    def distorted(kind: str) -> tuple[Run, ...]:
        seeded = kind in ('masked', 'noise')
        return cells.faces_of(lambda seed: graph.distorted(kind, seed if seeded else 0), audit=True)

    def gan(identity_mixup: bool, network: str | None = None) -> tuple[Run, ...]:
        return cells.faces_of(lambda seed: graph.synthetic(identity_mixup, seed), network, links=False, of_w=True)

    plain = partial(Row, reconstructed=False)  # no reconstructor made their faces
    mini = isinstance(graph, Miniature)
    upper_bound, synface = (99.35, 94.38, 94.73), (88.98, 76.23, 72.17)
    rows = dict(original=plain('original', None if mini else upper_bound, cells.original(), RECOGNISER))
    if mini:
        faces = 'faces and recogniser, one generator'
        rows |= dict(
            original_r50=plain('original, R50', upper_bound, cells.original('r50'), RECOGNISER),
            synface=plain('GAN, people of W', None, gan(False), faces),
            synface_im=plain('SynFace: identity mixup', synface, gan(True), faces),
            synface_dm=plain(
                'SynFace: identity and domain mixup', None, gan(True, 'domain_mixup'), faces, 'with 77 real people of W'
            ),
        )
    if graph.synthetic_size:
        remark = '' if mini else "the paper's are SynFace's"
        rows['synthetic'] = plain(
            'synthetic, as released', None if mini else synface, cells.synthetic(), RECOGNISER, remark
        )
    rows |= dict(
        parts=plain('parts of faces (FaceCrowd)', (83.58, None, None), distorted('parts'), RECOGNISER),
        blur=plain('blur', None, distorted('blur'), RECOGNISER),
        noise=plain('noise', None, distorted('noise'), 'noise and recogniser'),
        pixelate=plain('pixelation', None, distorted('pixelate'), RECOGNISER),
        masked=plain('75 % masked', (95.23, 79.02, 74.13), distorted('masked'), MASKS),
        mae=Row('MAE', (97.62, 87.14, 85.68), cells.released(graph.mae, audit=True), ALL),
        mae_pasted=Row(
            'MAE, visible patches pasted',
            None,
            cells.released(graph.mae, audit=True, paste_visible=True),
            ALL,
            '25 % real pixels',
        ),
    )
    other = 'r50' if graph.network == 'r18' else 'r18'
    for key, network in (('facemae', graph.network), ('facemae_other', other)):
        label, paper = NETWORKS[network]
        rows[key] = Row(f'FaceMAE, {label}', paper, cells.facemae(network), ALL)
    if mini:
        augmented = 'r18_augmented'
        masked = cells.faces_of(lambda seed: graph.distorted('masked', seed), augmented)
        rows |= dict(
            original_augmented=plain('original, augmented', None, cells.original(augmented), RECOGNISER),
            masked_augmented=plain('75 % masked, augmented', None, masked, MASKS),
            mae_augmented=Row('MAE, augmented', None, cells.released(graph.mae, augmented), ALL),
            facemae_augmented=Row('FaceMAE, augmented', None, cells.facemae(augmented), ALL),
        )
    return Table('table1', 'Methods', rows, graph.remarks.get('table1', ''))


def table2(cells: Cells) -> Table:
    """Losses."""
    graph = cells.graph
    rows = {}
    if isinstance(graph, Miniature):
        faces = cells.released(lambda seed: graph.start())
        rows['start'] = Row('the start itself', None, faces, MASKS)
        faces = cells.released(lambda seed: graph.start_on_w(), audit=True)
        rows['mse_whole'] = Row('MSE of the whole face, on from the start', None, faces, MASKS)
    rows |= dict(
        mse=Row('MSE (plain MAE)', (97.62, 86.14, 85.68), cells.released(graph.mae, audit=True), ALL),
        im=Row('IM', (98.93, 89.69, 89.78), cells.varied(rm_weight=0.0), MASKS),
        rm=Row('RM', (98.92, 87.10, 86.68), cells.varied(im_weight=0.0), MASKS),
        im_rm=Row('IM + RM', (99.23, 90.80, 90.25), cells.facemae(), ALL),
        all=Row('MSE + IM + RM', (99.13, 90.51, 90.19), cells.varied(mse_weight=1.0), MASKS),
    )
    remark = f'The order of IM and RM alone in the paper is likely, not certain. {graph.remarks.get("table2", "")}'
    return Table('table2', 'Loss', rows, remark.strip())


def table3(cells: Cells) -> Table:
    """Mask ratio in training and deployment."""
    paper = {0.3: (99.41, 93.03, 92.87), 0.5: (99.33, 91.98, 91.56), 0.9: (67.33, 57.38, 54.01)}
    rows = {
        f'r{ratio:.0%}': Row(f'{ratio:.0%}', numbers, cells.varied(mask_ratio=ratio), MASKS)
        for ratio, numbers in paper.items()
    }
    rows['r75%'] = Row('75%', (99.23, 90.80, 90.25), cells.facemae(), ALL)
    return Table(
        'table3',
        'Mask ratio in training and deployment',
        {key: rows[key] for key in sorted(rows)},
        cells.graph.remarks.get('table3', ''),
    )


def table4(cells: Cells) -> Table:
    """Training and deployment sets."""
    rows = {
        'w_c': Row('W → C', (99.23, 90.80, 90.25), cells.facemae(), ALL),
        'c_w': Row('C → W', (99.37, 93.87, 94.14), cells.varied('train_c', 'deploy_w'), MASKS),
        'sub1_sub2': Row('W_sub1 → W_sub2', (99.47, 94.12, 94.51), cells.varied('train_sub1', 'deploy_sub2'), MASKS),
        'sub2_sub1': Row('W_sub2 → W_sub1', (99.65, 94.00, 94.36), cells.varied('train_sub2', 'deploy_sub1'), MASKS),
    }
    if isinstance(cells.graph, Miniature):
        rows['overlap'] = Row('folds 3 to 7 → C (people overlap)', None, cells.varied('train_overlap'), MASKS)
    remark = f'Which half is which in the paper is likely, not certain. {cells.graph.remarks.get("table4", "")}'
    return Table('table4', 'Training and deployment sets', rows, remark.strip())


def table5(cells: Cells) -> Table:
    """Backbone of the recogniser."""
    rows = {key: Row(label, paper, cells.facemae(key), ALL) for key, (label, paper) in NETWORKS.items()}
    return Table('table5', 'Backbone of the recogniser', rows, cells.graph.remarks.get('table5', ''))


def table6(cells: Cells) -> Table:
    """β."""
    paper = {0.1: (98.94, 88.21, 87.13), 0.5: (99.02, 89.01, 88.96), 10.0: (98.97, 87.65, 86.96)}
    rows = {}
    for beta, numbers in paper.items():
        rows[f'b{beta:g}'] = Row(_beta(beta, cells.graph.batch), numbers, cells.varied(rm_weight=beta), MASKS)
    rows['b1'] = Row(_beta(1, cells.graph.batch), (99.23, 90.80, 90.25), cells.facemae(), ALL)
    rows = {key: rows[key] for key in ('b0.1', 'b0.5', 'b1', 'b10')}
    if isinstance(cells.graph, Miniature):
        rows['n64'] = Row(_beta(1, 64), None, cells.varied(batch_size=64), MASKS, 'half as many steps')
    return Table('table6', 'β of Eq. 2', rows, cells.graph.remarks.get('table6', ''))


def _beta(beta: float, n: int) -> str:
    """The paper's β, at N = 256, and what weighs the same at another N."""
    return f'β = {beta:g}' + ('' if n == 256 else f' ({beta * (256 / n) ** 0.5:.2f} at N = {n})')


def table7(cells: Cells) -> Table:
    """What is masked."""
    graph = cells.graph
    rows = {
        f'seed{seed}': Row(
            f'seed {seed}', paper, cells.released(lambda s, seed=seed: graph.facemae(seed), masks=seed), RECOGNISER
        )
        for seed, paper in ((0, (99.23, 90.80, 90.25)), (1, (99.10, 90.67, 90.21)))
    }
    for region, paper in (('eyes', (98.45, 89.98, 89.76)), ('mouth', (98.77, 90.14, 89.93))):
        rows[region] = Row(region, paper, cells.varied(mask_regions=region), MASKS)
    releases = dict(seed0=graph.release(graph.facemae(0), 0))
    releases |= {
        region: graph.release(graph.facemae(0, mask_regions=region), 0, mask_regions=region)
        for region in ('eyes', 'mouth')
    }
    return Table(
        'table7',
        'What is masked',
        rows,
        'A seed is one of training and of masks. Regions are always removed, random patches fill up to 75 %.',
        (graph.alignment({name: f'{{{release}}}' for name, release in releases.items()}),),
    )


def table8(cells: Cells) -> Table:
    """Mask ratio at deployment alone."""
    paper = {
        0.3: (99.28, 93.92, 92.88),
        0.5: (99.25, 92.78, 91.83),
        0.75: (99.23, 90.80, 90.25),
        0.85: (98.66, 83.38, 84.55),
        0.9: (88.66, 69.20, 66.50),
    }
    rows = {}
    for ratio, numbers in paper.items():
        if ratio == 0.75:
            rows['r75%'] = Row('75%', numbers, cells.facemae(), ALL)
            continue
        runs = cells.released(lambda seed: cells.graph.facemae(0), mask_ratio=ratio)
        rows[f'r{ratio:.0%}'] = Row(f'{ratio:.0%}', numbers, runs, MASKS)
    return Table('table8', 'Mask ratio at deployment alone, trained at 75 %', rows)


TABLES: dict[str, Callable[[Cells], Table]] = dict(
    table1=table1,
    table2=table2,
    table3=table3,
    table4=table4,
    table5=table5,
    table6=table6,
    table7=table7,
    table8=table8,
)


def figure1(cells: Cells) -> str:
    """The stage of Figure 1: the paper's four kinds of faces and plain MAE's, of the first seed."""
    graph, rows = cells.graph, table1(cells).rows
    synface = 'synface_im' if 'synface_im' in rows else 'synthetic'
    sets = dict(original=graph.faces('deploy'), masked=f'{{{graph.distorted("masked")}}}')
    if synface in rows:
        generated = synface == 'synface_im'
        sets['synface'] = f'{{{graph.synthetic(True, 0)}}}' if generated else graph.faces('synthetic')
    sets |= dict(mae=f'{{{graph.release(graph.mae(0), 0)}}}', facemae=f'{{{graph.release(graph.facemae(0), 0)}}}')
    return graph.feature_map(sets, {name: rows[{'synface': synface}.get(name, name)].runs[0].verify for name in sets})


def figure3(cells: Cells) -> list[str]:
    """The stages of Figures 3 and 5: audits of MAE's and of FaceMAE's release."""
    rows = table2(cells).rows
    return [run.audit for key in ('mse', 'im_rm') for run in rows[key].runs if run.audit]


def figure4(cells: Cells) -> str:
    """The stage of Figure 4."""
    graph = cells.graph
    models = dict(mae=graph.mae(0), facemae=graph.facemae(0))
    return graph.compare_faces({name: f'{{{graph.release(model, 0)}}}' for name, model in models.items()})


#: Stages of each figure.
FIGURES: dict[str, Callable[[Cells], list[str]]] = dict(
    fig1=lambda cells: [figure1(cells)], fig3=figure3, fig4=lambda cells: [figure4(cells)], fig5=figure3
)


def stages_of(tables: Sequence[Table]) -> list[str]:
    """Stages whose numbers tables show: first those of the first seed, of all rows."""
    rows = [row for table in tables for row in table.rows.values()]
    found = {}
    for seed in range(max((len(row.runs) for row in rows), default=0)):
        for row in rows:
            for run in row.runs[seed : seed + 1]:
                found |= dict.fromkeys([*run.separation.values(), run.verify, *filter(None, [run.audit])])
    return list(found | dict.fromkeys(stage for table in tables for stage in table.others))
