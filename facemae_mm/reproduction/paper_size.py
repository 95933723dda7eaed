"""The data flow at the paper's size: how each of its arrows becomes a command (the recipes of `configs`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..datasets.face_dataset import FaceRecordDataset
from ..datasets.face_source import open_faces
from .data_flow import PEOPLE, DataFlow, Embedder, Size

#: W is cut into so many parts by identity; the paper takes 10 %.
TENTHS = 10

#: The source of each part, and which tenth of it; None for all of it. One half of W is the default training set.
PARTS = dict(
    train=('webface', 0),
    train_c=('casia', None),
    train_sub1=('webface', 0),
    train_sub2=('webface', 1),
    deploy=('casia', None),
    deploy_w=('webface', 0),
    deploy_sub1=('webface', 0),
    deploy_sub2=('webface', 1),
    synthetic=('synthetic', None),
)

#: Where a source is not there: a tenth of 42 million faces of 2,059,906 people (WebFace260M, cleaned); CASIA in
#: InsightFace's packing; Syn-10K-50, on which the paper's SynFace trains.
ESTIMATES = dict(webface=Size(205_991, 4_200_000), casia=Size(10_572, 490_000), synthetic=Size(10_000, 500_000))

#: By name: what a user gives, what it is, and from where the field has it.
SOURCES = dict(
    webface=(
        '--webface PATH',
        "WebFace260M's cleaned training set, aligned at 112×112 (train.rec or folders): from the "
        'WebFace260M benchmark, on application',
    ),
    casia=('--casia PATH', "CASIA-WebFace aligned at 112×112, train.rec: InsightFace's dataset zoo"),
    phi=('--phi FILE', "weights of φ, ms1mv3_arcface_r50_fp16's backbone.pth: arcface_torch's model zoo"),
    lfw=('--bins lfw=FILE', "LFW's 6,000 pairs, lfw.bin: beside InsightFace's training sets"),
    cfp_fp=('--bins cfp_fp=FILE', "CFP-FP's 7,000 pairs, cfp_fp.bin: beside InsightFace's training sets"),
    agedb_30=('--bins agedb_30=FILE', "AgeDB-30's 6,000 pairs, agedb_30.bin: beside InsightFace's training sets"),
    synthetic=('--synthetic PATH', 'synthetic faces as released, aligned at 112×112: SynFace, DCFace, DigiFace-1M, …'),
)

#: Recipes of the recognisers.
RECIPES = dict(
    r18='arcface_r18_casia',
    r50='arcface_r50_casia',
    r100='arcface_r100_casia',
    mbf='arcface_mbf_casia',
    vit='arcface_vit_s_casia',
)

#: Options of the ablations by the miniature's names (configs/README.md); others stand at the head of a recipe.
OPTIONS = dict(
    im_weight='model.head.loss.im_weight',
    rm_weight='model.head.loss.beta',
    mse_weight='model.head.loss.mse_weight',
    paste_visible='model.paste_visible',
)

#: Verification sets, and the images of their pairs: 6,000, 7,000 and 6,000.
BINS = dict(lfw=12_000, cfp_fp=14_000, agedb_30=12_000)

#: Processes of the paper's trainings, a GPU each: of FaceMAE, 256 faces each; of recognisers, 128 each.
FACEMAE_GPUS, RECOGNISER_GPUS = 8, 4

#: Faces that tools/feature_map.py takes of a set.
MAP_FACES = 6000


@dataclass(frozen=True)
class Work:
    """What a stage reads, computes and writes, for an estimate of its cost.

    Attributes:
        trained: Faces of one epoch of its recipe's network.
        tested: Faces that its recipe's network sees in a test.
        embedded: Passes of faces through an embedder.
        released: Faces that it writes as images.
        embeddings: Embeddings that it keeps.
        gpus: That it takes.
    """

    trained: int = 0
    tested: int = 0
    embedded: int = 0
    released: int = 0
    embeddings: int = 0
    gpus: int = 1


class PaperSize(DataFlow):
    """FaceMAE trains on a tenth of WebFace260M from random weights, CASIA-WebFace is released, three `.bin` verify.

    A stage has the machine to itself: trainings take as many GPUs as the paper's, or fewer, whose gradients then add up
    to the paper's batches; N of Eq. 2 stays 256.

    Args:
        unseen: As of `DataFlow`.
        synthetic: Whether there is a set of others' synthetic faces, source 'synthetic'.
        sizes: Of each part whose source is there, by `PARTS`' values, as `count_parts` gives them.
        bins: Images of each verification set that is there.
        gpus: Of the machine: 1, 2, 4 or 8.

    Attributes:
        work: What each stage computes, by its name.

    Raises:
        ValueError: Another number of GPUs.
    """

    network = 'r50'
    batch = 256
    title = "The paper's tables at its size"
    remarks = dict(
        table1='Recognisers are R50 where nothing else stands, as in the paper but for FaceCrowd (R18). No GAN is '
        'trained at this scale: SynFace is a row where its faces are given (--synthetic).',
        table4='W: a tenth of WebFace260M by identity; W_sub1 is that tenth, W_sub2 another; C: CASIA-WebFace.',
    )
    attackers = dict(attacker_embedder='{phi}')
    separation_flags = ('--people', str(PEOPLE), '--workers', '8')

    def __init__(
        self,
        unseen: Mapping[str, Embedder] | None = None,
        synthetic: bool = False,
        sizes: Mapping[tuple[str, int | None], Size] | None = None,
        bins: Mapping[str, int] | None = None,
        gpus: int = FACEMAE_GPUS,
    ) -> None:
        if gpus not in (1, 2, 4, 8):
            raise ValueError(f'{gpus} GPUs do not share the batch of {FACEMAE_GPUS} × 256. Take 1, 2, 4 or 8.')
        self.sizes = dict(sizes or {})
        self.images = BINS | dict(bins or {})
        self.gpus = gpus
        self.audit_flags = ('--processes', str(gpus), '--workers', '4')
        self.work: dict[str, Work] = {}
        super().__init__(unseen, BINS, self._size(*PARTS['synthetic']) if synthetic else None)

    def _size(self, source: str, tenth: int | None) -> Size:
        return self.sizes.get((source, tenth), ESTIMATES[source])

    def faces(self, part: str) -> str:
        """The source that holds a part; `_subset` says which tenth of it."""
        return f'{{{PARTS[part][0]}}}'

    def size(self, part: str) -> Size:
        """Counted where the source is there, else of `ESTIMATES`."""
        return self._size(*PARTS[part])

    @staticmethod
    def _subset(loader: str, part: str) -> dict[str, int | None]:
        """Options that choose a part of its source."""
        tenth = PARTS[part][1]
        if tenth is None:
            return {f'{loader}.dataset.subset': None}
        return {f'{loader}.dataset.subset.part': tenth, f'{loader}.dataset.subset.of': TENTHS}

    @staticmethod
    def _launched(gpus: int, tool: str, *words: str) -> list[str]:
        """A tool's words, on several processes where there are several GPUs."""
        if gpus == 1:
            return [tool, *words]
        return [
            *('tools/dist_run.py', '--standalone', f'--nproc_per_node={gpus}', tool, *words),
            *('--launcher', 'pytorch'),
        ]

    def _train(
        self, name: str, title: str, recipe: str, options: Mapping, part: str, most: int, flags: tuple[str, ...] = ()
    ) -> str:
        """A training on as many GPUs as the paper's (`most`), or with as many steps of fewer."""
        gpus = min(self.gpus, most)
        options = dict(options)
        if gpus < most:
            options['optim_wrapper.accumulative_counts'] = most // gpus
        words = self._launched(gpus, 'tools/train.py', f'configs/{recipe}.py', '--work-dir', '{out}', '--resume')
        self.work[name] = Work(trained=self.size(part).images, gpus=gpus)
        return self._add(name, title, [*words, *flags], options, 'checkpoint', 'training', 0)

    def _reconstructor(self, part: str, training: int) -> dict:
        """Options of every training of a masked autoencoder."""
        options = {'train_faces': self.faces(part), 'mask_seed': training, 'randomness.seed': training}
        return options | self._subset('train_dataloader', part)

    def mae(self, training: int = 0) -> str:
        """Plain MAE on W, from random weights."""
        options = self._reconstructor('train', training)
        title = f'plain MAE on W, training {training}'
        return self._train(f'mae.w.{training}', title, 'mae_vitb_webface', options, 'train', FACEMAE_GPUS)

    def facemae(self, training: int = 0, part: str = 'train', **options: float | str) -> str:
        """FaceMAE on a part, from random weights."""
        if PARTS[part] == PARTS['train']:
            part = 'train'
        varied = ''.join(f'.{key}={value}' for key, value in options.items())
        name = f'facemae{"" if part == "train" else f".{part}"}{varied}.{training}'
        options = {OPTIONS.get(key, key): value for key, value in options.items()}
        options = (
            self._reconstructor(part, training) | {'phi_weights': '{phi}', 'phi_cache': '{out}/phi_features'} | options
        )
        title = f'FaceMAE on {part}{varied}, training {training}'
        return self._train(name, title, 'facemae_vitb_webface', options, part, FACEMAE_GPUS)

    def release(self, model: str, masks: int, part: str = 'deploy', **options: float | str) -> str:
        """Faces of a part → masked, by a seed as Table 7 compares seeds, and reconstructed."""
        varied = ''.join(f'.{key}={value}' for key, value in options.items())
        name = f'release.{model}{"" if part == "deploy" else f".{part}"}{varied}.m{masks}'
        words = ['tools/test.py', 'configs/export_casia.py', f'{{{model}}}', '--work-dir', '{out}']
        masking = 'test_dataloader.dataset.pipeline.1'
        options = {
            'deploy_faces': self.faces(part),
            'release_dir': '{out}/release',
            f'{masking}.secret': None,
            f'{masking}.seed': masks,
            **self._subset('test_dataloader', part),
            **{OPTIONS.get(key, key): value for key, value in options.items()},
        }
        images = self.size(part).images
        self.work[name] = Work(tested=images, released=images, gpus=self.gpus)
        title = f'reconstructions by {model}, masks {masks}'
        return self._add(name, title, self._launched(self.gpus, *words), options, 'release', 'release', 0)

    def distorted(self, kind: str, seed: int = 0) -> str:
        """Faces of C → distorted ones, on the processor: 'masked', 'blur', 'noise', 'pixelate' or 'parts'."""
        words = ['tools/distort_faces.py', self.faces('deploy'), '{out}/release', '--kind', kind, '--seed', str(seed)]
        name = f'release.{kind}.m{seed}'
        self.work[name] = Work(released=self.size('deploy').images, gpus=0)
        return self._add(name, f'{kind} faces, seed {seed}', words, {}, 'release', 'release', 0)

    def recogniser(self, faces: str, label: str, seed: int, network: str, part: str = 'deploy') -> str:
        """Faces → a recogniser trained on them, from scratch."""
        options = {'recognition_faces': faces, 'num_classes': self.size(part).people, 'randomness.seed': seed}
        if faces == self.faces(part) and PARTS[part][1] is not None:
            options |= self._subset('train_dataloader', part)
        name, title = f'{network}.{label}.s{seed}', f'{network} on {label}, seed {seed}'
        return self._train(name, title, RECIPES[network], options, part, RECOGNISER_GPUS, ('--no-validate',))

    def verify(self, recogniser: str, network: str, part: str = 'deploy') -> str:
        """A recogniser → its accuracy on LFW, CFP-FP and AgeDB."""
        words = ['tools/test.py', f'configs/{RECIPES[network]}.py', f'{{{recogniser}}}', '--work-dir', '{out}']
        words += ['--out', '{out}/metrics.json', '--out-item', 'metrics']
        options = {'num_classes': self.size(part).people, 'test_evaluator.answers': '{out}/answers.csv'}
        options |= {name: f'{{{name}}}' for name in self.bins}
        name, title = f'verify.{recogniser}', f'accuracy of {recogniser}'
        self.work[name] = Work(tested=sum(self.images.values()))
        return self._add(name, title, words, options, 'metrics.json', 'verification', 0)

    def separation(
        self, faces: str, label: str, links: bool = True, part: str = 'deploy', of_w: bool = False
    ) -> dict[str, str]:
        """Faces → how well embedders that training never saw tell some of their people apart."""
        found = super().separation(faces, label, links, part, of_w)
        people, images = self.size(part)
        for name in found.values():
            self.work[name] = Work(embedded=round(images * min(PEOPLE / people, 1)))
        return found

    def audit(self, faces: str, label: str, imitations: Mapping[str, str] | None = None, part: str = 'deploy') -> str:
        """Real and released faces → leakage (Eq. 3), by φ and by an embedder that training never saw."""
        name = super().audit(faces, label, imitations, part)
        attackers = 1 + bool(self.unseen)
        kept = attackers * (2 + len(imitations or {})) * self.size(part).images
        self.work[name] = Work(embedded=2 * kept, embeddings=kept, gpus=self.gpus)
        return name

    def feature_map(self, sets: Mapping[str, str], accuracies: Mapping[str, str]) -> str:
        """Sets of faces by name, and stages with their accuracies → Figure 1."""
        name = super().feature_map(sets, accuracies)
        self.work[name] = Work(embedded=2 * MAP_FACES * len(sets))
        return name

    def compare_faces(self, sets: Mapping[str, str]) -> str:
        """Releases by name → Figure 4, on the processor."""
        name = super().compare_faces(sets)
        self.work[name] = Work(gpus=0)
        return name

    def alignment(self, sets: Mapping[str, str]) -> str:
        """Releases by name → how well their faces are found and aligned, on the processor."""
        name = super().alignment(sets)
        self.work[name] = Work(gpus=0)
        return name

    def described(self, record: Callable[[str], dict | None]) -> list[str]:
        """From the recipes and sizes."""
        facemae = self.stages['facemae.0'].recipe()
        neck, loss, batch = facemae['model']['neck'], facemae['model']['head']['loss'], facemae['train_dataloader']
        train, deploy = self.size('train'), self.size('deploy')
        return [
            f'W, a tenth of WebFace260M by identity ({train.people:,} people, {train.images:,} faces), trains FaceMAE; '
            f'C, CASIA-WebFace ({deploy.people:,} people, {deploy.images:,} faces), is released; LFW, CFP-FP and AgeDB '
            'verify.',
            '',
            f'FaceMAE: {neck["num_patches"]} patches of {facemae["model"]["backbone"]["patch_size"]} pixels, '
            f'{facemae["train_cfg"]["max_epochs"]} epochs from random weights; φ is '
            f'{loss["phi"]["backbone"]["type"]}-{loss["phi"]["backbone"]["depth"]}; N = {batch["batch_size"]}, '
            f'β = {loss["beta"]:g}. Recognisers train from scratch, on the released faces alone.',
            '',
            "Accuracy is that of a recogniser trained on a row's faces, on LFW. Separation asks embedders that no "
            f"reconstructor's training saw how well they tell {PEOPLE:,} people of a row's faces apart: AUC, mean over "
            'people, % (50 is chance). Intervals of accuracies resample pairs.',
            '',
        ]


def count_parts(sources: Mapping[str, Path]) -> dict[tuple[str, int | None], Size]:
    """Sizes of all parts whose source is there."""
    found = {}
    for source, tenth in dict.fromkeys(PARTS.values()):
        if source in sources and sources[source].exists():
            subset = None if tenth is None else dict(part=tenth, of=TENTHS)
            faces = FaceRecordDataset(str(sources[source]), subset=subset)
            found[source, tenth] = Size(len(faces.identities), len(faces))
    return found


def count_bins(sources: Mapping[str, Path]) -> dict[str, int]:
    """Images of all verification sets that are there."""
    return {name: len(open_faces(sources[name])) for name in BINS if name in sources and sources[name].exists()}
