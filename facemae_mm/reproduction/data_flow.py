"""The data flow of the paper: how each of its arrows becomes a command, whatever the scale."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from .stage import Stage

#: People of a large set whose separation is measured, drawn by their names.
PEOPLE = 2000


class Embedder(NamedTuple):
    """An embedder that no training saw: what `open_embedder` opens, and its input."""

    mean: str | None = None
    std: str | None = None


class Size(NamedTuple):
    """Of a set of faces."""

    people: int
    images: int


class DataFlow(ABC):
    """Builds stages; each method is an arrow of the data flow and returns the name of its stage.

    Args:
        unseen: Embedders from outside that no training saw, by the name of their source.
        bins: Verification sets (`.bin`) beside the scale's own, by the name of their source.
        synthetic: Size of a set of others' synthetic faces, whose source is 'synthetic'; None where there is none.

    Attributes:
        stages: What was built, by name.
        network: Of recognisers where a table names none.
        batch: N of Eq. 2.
        title: Of the page.
        remarks: What a reader must know of tables at this scale, by their names.
    """

    network: str
    batch: int
    title: str
    remarks: Mapping[str, str]

    #: Further words of these commands.
    separation_flags: tuple[str, ...] = ()
    audit_flags: tuple[str, ...] = ()

    #: Options of `configs/audit.py`.
    attackers: Mapping[str, str] = {}

    def __init__(
        self,
        unseen: Mapping[str, Embedder] | None = None,
        bins: Collection[str] = (),
        synthetic: Size | None = None,
    ) -> None:
        self.stages: dict[str, Stage] = {}
        self.unseen = dict(unseen or {})
        self.bins = tuple(bins)
        self.synthetic_size = synthetic

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

    @abstractmethod
    def faces(self, part: str) -> str:
        """Real faces of a part; 'synthetic' for others' synthetic ones."""

    @abstractmethod
    def size(self, part: str) -> Size:
        """Of the faces of a part that is released or trained on as it is."""

    @abstractmethod
    def mae(self, training: int = 0) -> str:
        """Plain MAE on W."""

    @abstractmethod
    def facemae(self, training: int = 0, part: str = 'train', **options: float | str) -> str:
        """FaceMAE on a part; options: im_weight, rm_weight (β), mse_weight, mask_ratio, mask_regions."""

    @abstractmethod
    def release(self, model: str, masks: int, part: str = 'deploy', **options: float | str) -> str:
        """Faces of a part → masked and reconstructed; options: mask_ratio, mask_regions, paste_visible."""

    @abstractmethod
    def distorted(self, kind: str, seed: int = 0) -> str:
        """Faces of C → distorted ones: 'masked', 'blur', 'noise', 'pixelate' or 'parts'."""

    @abstractmethod
    def recogniser(self, faces: str, label: str, seed: int, network: str, part: str = 'deploy') -> str:
        """Faces → a recogniser trained on them, from scratch."""

    @abstractmethod
    def verify(self, recogniser: str, network: str, part: str = 'deploy') -> str:
        """A recogniser, and the network and part it was trained with → its accuracy on every verification set."""

    @abstractmethod
    def described(self, record: Callable[[str], dict | None]) -> list[str]:
        """What a reader must know before the numbers, in Markdown.

        Args:
            record: Gives what is known of a stage by its name; None where it has not run.
        """

    def utility(self, faces: str, label: str, seed: int, network: str, part: str = 'deploy') -> str:
        """Faces → the accuracy of a recogniser trained on them."""
        return self.verify(self.recogniser(faces, label, seed, network, part), network, part)

    def judge(self) -> str:
        """An embedder that no reconstructor's training saw and that needs nothing from outside.

        It is trained on real faces of W's people, so it judges no faces of theirs.
        """
        return self.recogniser(self.faces('deploy_w'), 'w', 0, self.network, 'deploy_w')

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

    def separation(
        self, faces: str, label: str, links: bool = True, part: str = 'deploy', of_w: bool = False
    ) -> dict[str, str]:
        """Faces → how well embedders that training never saw tell their people apart.

        Args:
            faces: Words for them.
            label: Name of them.
            links: Whether `FACES.private` says from which photos they were made.
            part: Of which faces they were made.
            of_w: They show people of W, though they were made for another part.
        """
        found = {}
        for judge, (embedder, flags) in self.judges().items():
            if judge == 'own' and (of_w or part not in ('deploy', 'synthetic')):
                continue  # it knows these people
            words = ['tools/separation.py', embedder, faces, '--out', '{out}/separation.json', *flags]
            words += ['--links', f'{faces}.private/links.csv'] if links else []
            words += self.separation_flags
            title, seconds = f'separation of {label} under {judge}', 45.0
            if part == 'synthetic':  # as large as it likes
                words += [] if '--people' in words else ['--people', str(PEOPLE)]
                people, images = self.size(part)
                seconds += images * min(PEOPLE / people, 1) / 60
            found[judge] = self._add(f'separation.{judge}.{label}', title, words, {}, None, 'separation', seconds)
        return found

    def audit(self, faces: str, label: str, imitations: Mapping[str, str] | None = None, part: str = 'deploy') -> str:
        """Real and released faces → leakage (Eq. 3), by φ and by an embedder that training never saw."""
        words = ['tools/audit.py', self.faces(part), faces, '--out', '{out}/audit', '--attackers', 'configs/audit.py']
        words += ['--links', f'{faces}.private/links.csv', '--no-card', '--no-pixels']
        for name, made in (imitations or {}).items():
            words += ['--imitation', f'{name}={made}:{made}.private/links.csv']
        words += self.audit_flags
        options, only = dict(self.attackers), ['embedder']
        for name, embedder in self.unseen.items():
            options['second_embedder'] = f'{{{name}}}'
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
