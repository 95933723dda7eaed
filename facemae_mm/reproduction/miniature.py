"""The data flow in miniature: how each of its arrows becomes a command (LFW, `configs/mini`)."""

from collections.abc import Callable, Mapping

from mmengine.config import Config

from .data_flow import DataFlow, Size

#: Of the parts of `configs/mini/split.py` that recognisers train on.
SIZES = dict(deploy=Size(508, 2843), deploy_w=Size(774, 4061), deploy_sub1=Size(381, 1972), deploy_sub2=Size(393, 2089))

#: Recognisers of `configs/mini`: images of a set over seconds of a training on it, on one core.
RECOGNISERS = dict(r18=10.4, r18_augmented=5, r50=6.8, r100=4, mbf=4, vit=6, domain_mixup=9)


class Miniature(DataFlow):
    """Everything is trained anew, small; LFW is its one set of faces, and its pairs of two folds verify."""

    network = 'r18'
    batch = 32
    title = 'The paper in miniature'
    remarks = dict(
        table1='The separation of generated faces is that of other people, who were generated to differ: it compares '
        'with no other row. Augmented: recognisers trained for twice as many epochs, with colours jittered and parts '
        'erased (`configs/mini/arcface_r18_augmented.py`).',
        table2='All rows with IM or RM go on from the start; plain MAE, whose visible patches nothing supervises, does '
        'not. What IM and RM add shows against MSE of the whole face, on from the same start (each at its own learning '
        'rate).',
        table3='All start from the one start, which was trained at 75 %.',
        table4='W: folds 1 to 5; C: 6 to 8; halves of W by the hash of the name. In the last row the people of folds 6 '
        'and 7 train FaceMAE and are deployed. The start is of people of no part.',
        table5='All narrow: of the IResNets, 8 channels at the stem where the paper has 64 (`configs/mini`).',
        table6='The paper has N = 256; β · √(256 / N) weighs the same at another N.',
    )

    def parts(self) -> str:
        """LFW → its parts."""
        words = ['tools/split_lfw.py', '{lfw}', '{pairs}', '{out}/parts', '--split', 'configs/mini/split.py']
        return self._add('parts', 'LFW cut into parts', words, {}, 'parts', 'parts', 15)

    def faces(self, part: str) -> str:
        """A folder of `parts`, or the source 'synthetic'."""
        return '{synthetic}' if part == 'synthetic' else f'{{{self.parts()}}}/{part}'

    def size(self, part: str) -> Size:
        """Of `SIZES`, or of others' synthetic faces."""
        return self.synthetic_size if part == 'synthetic' else SIZES[part]

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

    def start_on_w(self) -> str:
        """The start, trained on by its own loss on W, for as many faces as FaceMAE is."""
        options = dict(start_weights=f'{{{self.start()}}}', train_faces=self.faces('train'), seed=0)
        return self._train('start.w', 'the start, trained on by MSE on W', 'start', options, 1080)

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

    def recogniser(self, faces: str, label: str, seed: int, network: str, part: str = 'deploy') -> str:
        """Faces → a recogniser trained on them, from scratch; 'domain_mixup' blends them with real ones of W."""
        options = dict(recognition_faces=faces, num_classes=self.size(part).people, seed=seed)
        if network == 'domain_mixup':
            options['real_faces'] = self.faces('train')
        title = f'{network} on {label}, seed {seed}'
        seconds = self.size(part).images / RECOGNISERS[network] + 20
        return self._train(f'{network}.{label}.s{seed}', title, f'arcface_{network}', options, seconds)

    def verify(self, recogniser: str, network: str, part: str = 'deploy') -> str:
        """A recogniser → its accuracy on the pairs of folds 9 and 10, and on what `bins` names."""
        words = ['tools/test.py', f'configs/mini/arcface_{network}.py', f'{{{recogniser}}}', '--work-dir', '{out}']
        words += ['--out', '{out}/metrics.json', '--out-item', 'metrics']
        options = dict(
            num_classes=self.size(part).people,
            verification_faces=self.faces('test'),
            verification_pairs=f'{{{self.parts()}}}/pairs.csv',
            answers='{out}/answers.csv',
            **{f'test_dataloader.dataset.sets.{name}.source': f'{{{name}}}' for name in self.bins},
        )
        name, title = f'verify.{recogniser}', f'accuracy of {recogniser}'
        return self._add(name, title, words, options, 'metrics.json', 'verification', 40)

    def described(self, record: Callable[[str], dict | None]) -> list[str]:
        """From the split and the recipes."""
        split = Config.fromfile('configs/mini/split.py')
        parts = (record('parts') or {}).get('numbers', {})

        def part(name: str) -> str:
            folds, counted = split.parts[name].folds, parts.get(name)
            named = f'folds {folds[0]} to {folds[-1]}' if len(folds) > 1 else 'fold 0'
            return named + (f' ({counted["people"]:,} people, {counted["images"]:,} faces)' if counted else '')

        def rate(name: str) -> str:
            return f'{self.stages[name].recipe()["optim_wrapper"]["optimizer"]["lr"]:g}'

        def seen(name: str) -> str:
            found = record(name)
            if found is None:
                return 'not run'
            batch = self.stages[name].recipe()['train_dataloader']['batch_size']
            return f'{found["numbers"]["iterations"] * batch:,} faces seen'

        recipe = self.stages['facemae.0'].recipe()
        model, batch = recipe['model'], recipe['train_dataloader']['batch_size']
        arch, neck, loss = model['backbone']['arch'], model['neck'], model['head']['loss']
        tests = ' and '.join(map(str, split.test_folds))
        tested = f', tested on {len(parts["pairs"]):,} pairs of {parts["test"]["people"]:,} people' if parts else ''
        unseen = next(iter(self.unseen), None)
        given = f' `{", ".join(self.unseen)}`: from outside, by `--unseen`.' if self.unseen else ''
        second = f', and `second_embedder`, which is {unseen}, a judge of separation too' if unseen else ''
        encoder, decoder = (arch['embed_dims'], arch['num_layers']), (neck['decoder_embed_dim'], neck['decoder_depth'])
        return [
            f'LFW by its ten folds, which share no person. W, {part("train")}, trains FaceMAE; C, the people of '
            f'{part("deploy")} with {split.parts.deploy.min_images} faces or more, is released; the pairs of folds '
            f'{tests} verify; the people whom no pair names ({part("start")}) train the one start of all. The split '
            'stood in `configs/mini/split.py` before the first result.',
            '',
            f'FaceMAE: {neck["num_patches"]} patches of {model["backbone"]["patch_size"]} pixels, encoder '
            f'{encoder[0]} × {encoder[1]}, decoder {decoder[0]} × {decoder[1]}; '
            f"φ is {loss['phi']['backbone']['type']}; N = {batch}, where the paper's β = 1 is {loss['beta']:.2f}. One "
            f'plain MAE, MSE on removed patches of the people whom no pair names ({seen("mae")}), is the origin of '
            f'all: it goes on as plain MAE on W ({seen("mae.w.0")}; the row MSE), or, for every FaceMAE, with the '
            f'visible patches supervised too ({seen("start")}; the start) and then on W by the loss of the row '
            f'({seen("facemae.0")}). Recognisers train from scratch, and are R18 where '
            'nothing else stands; those of the paper are R50 but for FaceCrowd, a row of FaceMAE and Table 5.',
            '',
            f"FaceMAE's learning rate, {rate('facemae.0')}, was chosen by training on one half of W and deploying on "
            "the other, by separation under MobileFaceNet, so Table 4's rows of halves are not untouched by that "
            'choice. That was after a first run, at 0.001, had been judged on C and on the test pairs; its page is in '
            f"this file's history. The rates of plain MAE, {rate('mae.w.0')}, and of the start and what goes on from "
            f'it by MSE, {rate("start.w")}, were not tuned.',
            '',
            f"Accuracy is that of a recogniser trained on a row's faces{tested} (50 is chance); it is weak at this "
            "size. Separation asks embedders that no reconstructor's training saw how well they tell the people of a "
            "row's faces apart: AUC, mean over people, % (50 is chance). `own` is an R18 that was trained on the real "
            f'faces of W.{given}',
            '',
            'Leakage (Eq. 3) is how often real photos of all people of C find their person, by the worst attacker of '
            f'`embedder`, which is φ{second}. "Without": what was made from the very photo is not in the gallery; '
            '"with": it is.',
            '',
        ]
