"""Several processes: their gradients, and the command that a cluster runs."""

import json
import os
import re
import subprocess
import sys

import cv2
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from processes import free_port
from tiny import SMALL_FACEMAE, cfg_options, small_recipe, write_faces

import facemae_mm  # noqa: F401  registers the components

pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')


@pytest.fixture
def phi_weights(tmp_path):
    """Weights of a φ so narrow that eight processes run it on two cores."""
    torch.manual_seed(0)
    phi = MODELS.build(dict(type='IResNet', depth=18, base_channels=4))
    torch.save(phi.state_dict(), tmp_path / 'phi.pth')
    return tmp_path / 'phi.pth'


def gradients(rank, processes, model_cfg, port, out):
    """Gradients of one step on this rank's share of eight faces; rank 0 saves them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS.build(model_cfg)
    model.init_weights()
    inputs = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(8, 196, generator=torch.Generator().manual_seed(2))
    samples = [DataSample().set_mask(row) for row in (noise.argsort(1) >= 49).to(torch.uint8)]
    share = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    if processes > 1:
        dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=processes)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    else:
        wrapped = model
    wrapped(inputs[share], samples[share], mode='loss')['loss'].backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, out)
    if processes > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    'loss',
    [dict(gather=True, beta=2.0, mse_weight=0.5), dict(im_weight=0.0, beta=0.0, mse_weight=1.0)],
    ids=['relations gathered', 'mse'],
)
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(repository, tmp_path, phi_weights, loss):
    small = {key: value for key, value in SMALL_FACEMAE.items() if key.startswith('model.')}
    cfg = small_recipe(repository, 'facemae_vitb_webface', phi_weights=str(phi_weights), **small)
    cfg.model.head.loss.update(loss, cache=None)
    one, two = tmp_path / 'one.pth', tmp_path / 'two.pth'
    gradients(0, 1, cfg.model, 0, one)
    mp.spawn(gradients, (2, cfg.model, free_port(), two), nprocs=2)
    expected, found = (torch.load(path, weights_only=True) for path in (one, two))
    assert expected.keys() == found.keys() and len(found) > 20
    scale = max(grad.abs().max() for grad in expected.values())
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * scale, name


def dist_train(repository, faces, phi_weights, work, processes, *flags, **options):
    small = SMALL_FACEMAE | dict(train_faces=str(faces), phi_weights=str(phi_weights)) | options
    small |= dict(phi_cache=str(work / 'phi_features'))
    command = ['bash', 'tools/dist_train.sh', 'configs/facemae_vitb_webface.py', str(processes)]
    command += ['--work-dir', str(work), *flags, '--cfg-options', *cfg_options(small)]
    bin_folder = os.path.dirname(sys.executable)
    env = os.environ | dict(PATH=f'{bin_folder}:{os.environ["PATH"]}', PORT=str(free_port()))
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


def test_the_papers_command_takes_two_steps_on_eight_processes_and_resumes(repository, tmp_path, phi_weights):
    """`tools/dist_train.sh configs/facemae_vitb_webface.py 8` with a small network and batch; then one epoch more."""
    faces = write_faces(tmp_path / 'faces', identities=8, images=4)  # 32 faces: two steps of 8 × 2
    short = {
        'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        'param_scheduler': [],
        'default_hooks.checkpoint.max_keep_ckpts': 2,
    }
    code, text = dist_train(repository, faces, phi_weights, tmp_path / 'work', 8, **short)
    assert code == 0, text[-3000:]
    steps = re.findall(r'Epoch\(train\)\s+\[1\]\[(\d)/2\].*?loss: ([\d.]+)', text)
    assert [step for step, _ in steps] == ['1', '2'], text[-3000:]
    assert all(float(loss) > 0 for _, loss in steps) and 'irm_rm' in text
    assert '2 × 8' in text and '= 16' in text  # the effective batch
    first = torch.load(tmp_path / 'work' / 'epoch_1.pth', weights_only=True)
    assert not [name for name in first['state_dict'] if 'phi' in name]
    assert len(first['message_hub']['runtime_info']['phi_sha256']) == 64

    short['train_cfg.max_epochs'] = 2
    code, text = dist_train(repository, faces, phi_weights, tmp_path / 'work', 2, '--resume', **short)
    assert code == 0, text[-3000:]
    assert 'resumed epoch: 1' in text and re.search(r'Epoch\(train\)\s+\[2\]\[', text), text[-3000:]
    assert not re.search(r'Epoch\(train\)\s+\[1\]\[', text)
    second = torch.load(tmp_path / 'work' / 'epoch_2.pth', weights_only=True)
    moved = [k for k, v in second['state_dict'].items() if not torch.equal(v, first['state_dict'][k])]
    assert moved and second['meta']['epoch'] == 2


def test_the_leakage_recipe_gives_on_two_processes_what_it_gives_on_one(repository, tmp_path, phi_weights):
    """Its model trains nothing, so there is no gradient for DistributedDataParallel to share out."""
    real = write_faces(tmp_path / 'real', identities=5, images=3)  # 15 + 8 faces: shares of two lengths
    released, links = tmp_path / 'released', ['released_path,released_label,source_key,source_label']
    for label in range(3):
        (released / f'{label:06d}').mkdir(parents=True)
        for image in range(3 if label else 2):
            face = cv2.imread(str(real / f'person_{label}/{image}.png'))
            cv2.imwrite(str(released / f'{label:06d}/{image}.png'), cv2.blur(face, (9, 9)))
            links.append(f'{label:06d}/{image}.png,{label},person_{label}/{image},person_{label}')
    (tmp_path / 'links.csv').write_text('\n'.join(links) + '\n')
    options = dict(real_faces=real, released_faces=released, links=tmp_path / 'links.csv', attacker_weights=phi_weights)
    options = {name: str(path) for name, path in options.items()} | {
        'model.backbone.backbone.depth': 18,
        'model.backbone.backbone.base_channels': 4,
        'test_dataloader.batch_size': 5,
        'test_dataloader.num_workers': 0,
    }
    env = os.environ | dict(PYTHON=sys.executable, PORT=str(free_port()), OMP_NUM_THREADS='1')
    found = []
    for start, processes in (
        ([sys.executable, 'tools/test.py', 'configs/leakage_casia.py', 'none'], 1),
        (['bash', 'tools/dist_test.sh', 'configs/leakage_casia.py', 'none', '2'], 2),
    ):
        out, work = tmp_path / f'{processes}.json', tmp_path / f'work{processes}'
        command = [*start, '--out', out, '--out-item', 'metrics', '--work-dir', work, '--cfg-options']
        command = [*map(str, command), *cfg_options(options)]
        done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert ('GPU number: 2' in done.stdout + done.stderr) == (processes == 2)
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] and found[0]['leakage/queries'] == 9 and found[0]['leakage/gallery'] == 8
    assert found[0]['leakage/top1_with'] > found[0]['leakage/chance_top1_with']


def test_missing_data_is_one_message_and_exit_code_2(repository, tmp_path, phi_weights):
    code, text = dist_train(repository, tmp_path / 'nowhere', phi_weights, tmp_path / 'work', 2)
    assert code == 2
    assert text.count(str(tmp_path / 'nowhere')) == 1 and 'train_faces' in text and 'Traceback' not in text
