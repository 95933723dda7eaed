"""The data flow in miniature: how each of its arrows becomes a command (LFW, `configs/mini`)."""

from collections.abc import Mapping
from typing import NamedTuple

from .stage import Stage

#: People of the parts of `configs/mini/split.py` that recognisers train on.
PEOPLE = dict(deploy=508, deploy_w=774, deploy_sub1=381, deploy_sub2=393)

#: Recognisers of `configs/mini`, and how many faces a second each trains on one core.
RECOGNISERS = dict(r18=104, r50=68, r100=40, mbf=40, vit=60, domain_mixup=90)
IMAGES = dict(deploy=2843, deploy_w=4061, deploy_sub1=1972, deploy_sub2=2089)


class Embedder(NamedTuple):
    """An embedder that no training saw: what `open_embedder` opens, and its input."""

    mean: str | None = None
    std: str | None = None


class Miniature:
    """Builds stages; each method is an arrow of the data flow and returns the name of its stage.

    Args:
        unseen: Embedders from outside that no training saw, by the name of their source.

    Attributes:
        stages: What was built, by name.
    """

    def __init__(self, unseen: Mapping[str, Embedder] | None = None) -> None:
        self.stages: dict[str, Stage] = {}
        self.unseen = dict(unseen or {})

    def _add(
        self,
        name: str,
        title: str,
        words: list[str],
        options: Mapping,
        output: str | None,
        numbers: str,
        seconds: float,
    ) -> str:
        if options:
            words = [*words, '--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        stage = Stage(name, title, tuple(words), output, numbers, seconds)
        if self.stages.setdefault(name, stage) != stage:
            raise ValueError(f'Two stages are named {name}.')
        return name

    def parts(self) -> str:
        """LFW → its parts."""
        words = ['tools/split_lfw.py', '{lfw}', '{pairs}', '{out}/parts', '--split', 'configs/mini/split.py']
        return self._add('parts', 'LFW cut into parts', words, {}, 'parts', 'parts', 15)

    def faces(self, part: str) -> str:
        """Real faces of a part."""
        return f'{{{self.parts()}}}/{part}'

    def _train(self, name: str, title: str, recipe: str, options: Mapping, seconds: float) -> str:
        words = ['tools/train.py', f'configs/mini/{recipe}.py', '--work-dir', '{out}', '--resume']
        return self._add(name, title, words, options, 'checkpoint', 'training', seconds)

    def first_mae(self) -> str:
        """The one pixel-trained MAE from which everything starts; people of no other part."""
        options = dict(train_faces=self.faces('start'), seed=0)
        return self._train('mae', 'plain MAE on fold 0', 'mae', options, 1560)

    def start(self) -> str:
        """That MAE, with its visible patches supervised."""
        options = dict(start_weights=f'{{{self.first_mae()}}}', train_faces=self.faces('start'), seed=0)
        return self._train('start', 'the pixel-trained start', 'start', options, 310)

    def mae(self, training: int = 0) -> str:
        """Plain MAE on W, for as many faces as FaceMAE sees with its start: 13 × 167 × 32 = 69,472."""
        options = dict(
            start_weights=f'{{{self.first_mae()}}}', train_faces=self.faces('train'), seed=training, epochs=13
        )
        return self._train(f'mae.w.{training}', f'plain MAE on W, training {training}', 'mae', options, 1400)

    def facemae(self, training: int = 0, part: str = 'train', **options: float | str) -> str:
        """FaceMAE, from the start."""
        varied = ''.join(f'.{key}={value}' for key, value in options.items())
        name = f'facemae{"" if part == "train" else f".{part}"}{varied}.{training}'
        options = dict(
            start_weights=f'{{{self.start()}}}',
            train_faces=self.faces(part),
            phi_cache='{out}/phi_features',
            seed=training,
            **options,
        )
        images = dict(train=5373, train_c=3640, train_sub1=2621, train_sub2=2752, train_overlap=5565)[part]
        return self._train(name, f'FaceMAE on {part}{varied}, training {training}', 'facemae', options, images / 2.6)

    def release(self, model: str, masks: int, part: str = 'deploy', **options: float | str) -> str:
        """Faces of a part → masked and reconstructed. `options` as of configs/mini/export.py."""
        varied = ''.join(f'.{key}={value}' for key, value in options.items())
        name = f'release.{model}{"" if part == "deploy" else f".{part}"}{varied}.m{masks}'
        words = ['tools/test.py', 'configs/mini/export.py', f'{{{model}}}', '--work-dir', '{out}']
        options = dict(deploy_faces=self.faces(part), release_dir='{out}/release', seed=masks, **options)
        return self._add(name, f'reconstructions by {model}, masks {masks}', words, options, 'release', 'release', 45)

    def distorted(self, kind: str, seed: int = 0) -> str:
        """Faces of C → distorted ones: 'masked', 'blur', 'noise', 'pixelate' or 'parts'."""
        words = ['tools/distort_faces.py', self.faces('deploy'), '{out}/release', '--kind', kind, '--seed', str(seed)]
        words += ['--workers', '0']
        name = f'release.{kind}.m{seed}'
        return self._add(name, f'{kind} faces, seed {seed}', words, {}, 'release', 'release', 30)

    def gan(self) -> str:
        """W → the generator of SynFace's rows."""
        options = dict(train_faces=self.faces('train'), phi_cache='{out}/phi_features', seed=0)
        return self._train('gan', 'identity-conditional GAN on W', 'gan', options, 2000)

    def synthetic(self, identity_mixup: bool, seed: int) -> str:
        """The generator → as many faces as C has, of people who do not exist (or, without mixup, of W's)."""
        words = ['tools/test.py', 'configs/mini/synthesise.py', f'{{{self.gan()}}}', '--work-dir', '{out}']
        options = dict(
            train_faces=self.faces('train'),
            like_faces=self.faces('deploy'),
            synthetic_dir='{out}/release',
            identity_mixup=identity_mixup,
            seed=seed,
        )
        name = f'release.gan{".mixup" if identity_mixup else ""}.s{seed}'
        return self._add(name, f'synthetic faces, seed {seed}', words, options, 'release', 'release', 120)

    def recogniser(self, faces: str, label: str, seed: int, network: str = 'r18', part: str = 'deploy') -> str:
        """Faces → a recogniser trained on them, from scratch; 'domain_mixup' blends them with real ones of W."""
        options = dict(recognition_faces=faces, num_classes=PEOPLE[part], seed=seed)
        if network == 'domain_mixup':
            options['real_faces'] = self.faces('train')
        title = f'{network} on {label}, seed {seed}'
        seconds = 10 * IMAGES[part] / RECOGNISERS[network] + 20
        return self._train(f'{network}.{label}.s{seed}', title, f'arcface_{network}', options, seconds)

    def verify(self, recogniser: str, network: str = 'r18', part: str = 'deploy') -> str:
        """A recogniser → its accuracy on the pairs of folds 9 and 10."""
        words = ['tools/test.py', f'configs/mini/arcface_{network}.py', f'{{{recogniser}}}', '--work-dir', '{out}']
        words += ['--out', '{out}/metrics.json', '--out-item', 'metrics']
        options = dict(
            num_classes=PEOPLE[part],
            verification_faces=self.faces('test'),
            verification_pairs=f'{{{self.parts()}}}/pairs.csv',
            answers='{out}/answers.csv',
        )
        name, title = f'verify.{recogniser}', f'accuracy of {recogniser}'
        return self._add(name, title, words, options, 'metrics.json', 'verification', 40)

    def utility(self, faces: str, label: str, seed: int, network: str = 'r18', part: str = 'deploy') -> str:
        """Faces → the accuracy of a recogniser trained on them."""
        return self.verify(self.recogniser(faces, label, seed, network, part), network, part)

    def judge(self) -> str:
        """An embedder that no reconstructor's training saw and that needs nothing from outside: trained on W."""
        return self.recogniser(self.faces('deploy_w'), 'w', 0, 'r18', 'deploy_w')

    def judges(self) -> dict[str, tuple[str, list[str]]]:
        """Embedders that training never saw: what a command names each by, and its flags."""
        found = {}
        for name, embedder in self.unseen.items():
            flags = []
            for option, value in zip(('--mean', '--std'), embedder, strict=True):
                flags += [option, *value.split('/')] if value else []
            found[name] = f'{{{name}}}', flags
        found['own'] = f'{{{self.judge()}}}', []
        return found

    def separation(self, faces: str, label: str, links: bool = True) -> dict[str, str]:
        """Faces → how well embedders that training never saw tell their people apart."""
        found = {}
        for judge, (embedder, flags) in self.judges().items():
            words = ['tools/separation.py', embedder, faces, '--out', '{out}/separation.json', *flags]
            words += ['--links', f'{faces}.private/links.csv'] if links else []
            title = f'separation of {label} under {judge}'
            found[judge] = self._add(f'separation.{judge}.{label}', title, words, {}, None, 'separation', 45)
        return found

    def audit(self, faces: str, label: str, imitations: Mapping[str, str] | None = None, part: str = 'deploy') -> str:
        """Real and released faces → leakage (Eq. 3), by φ and by an embedder that training never saw."""
        words = ['tools/audit.py', self.faces(part), faces, '--out', '{out}/audit', '--attackers', 'configs/audit.py']
        words += ['--links', f'{faces}.private/links.csv', '--no-card', '--no-pixels']
        for name, made in (imitations or {}).items():
            words += ['--imitation', f'{name}={made}:{made}.private/links.csv']
        options, only = {}, ['embedder']
        for name, embedder in self.unseen.items():
            options = dict(second_embedder=f'{{{name}}}')
            options |= {f'second_{key}': value for key, value in embedder._asdict().items() if value}
            only.append('second_embedder')
            break
        words += ['--only', *only]
        return self._add(f'audit.{label}', f'leakage of {label}', words, options, None, 'audit', 240)

    def _judged(self) -> tuple[str, list[str]]:
        """The first judge, as a command names it, and its flags."""
        return next(iter(self.judges().values()))

    def feature_map(self, sets: Mapping[str, str], accuracies: Mapping[str, str]) -> str:
        """Sets of faces by name, and stages with their accuracies → Figure 1."""
        embedder, flags = self._judged()
        words = ['tools/feature_map.py', *(f'{name}={faces}' for name, faces in sets.items())]
        words += ['--embedder', embedder, *flags, '--out', '{out}', '--accuracy']
        words += [f'{name}={{{stage}}}' for name, stage in accuracies.items()]
        return self._add(
            'fig1', 'Figure 1: sets in the space of a judge', words, {}, 'feature_map.svg', 'feature_map', 400
        )

    def compare_faces(self, sets: Mapping[str, str]) -> str:
        """Releases by name → Figure 4."""
        words = ['tools/compare_faces.py', *(f'{name}={faces}' for name, faces in sets.items())]
        words += ['--originals', self.faces('deploy'), '--out', '{out}']
        return self._add('fig4', 'Figure 4: faces side by side', words, {}, None, 'compare_faces', 120)

    def alignment(self, sets: Mapping[str, str]) -> str:
        """Releases by name → how well their faces are found and aligned (Table 7)."""
        words = ['tools/compare_faces.py', *(f'{name}={faces}' for name, faces in sets.items())]
        words += ['--originals', self.faces('deploy'), '--out', '{out}', '--detector', 'dlib', '--photos', '1000']
        return self._add('alignment', "how Table 7's faces align", words, {}, None, 'compare_faces', 300)
