"""What the tools' flags do."""

import importlib.util
import os
import subprocess
import sys

import cv2
import pytest
import torch
from tiny import SMALL_FACEMAE, cfg_options, small_recipe, write_faces

SMALL_MAE = {key: value for key, value in SMALL_FACEMAE.items() if 'phi' not in key}


def tool(repository, name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', repository / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(module, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['tool', *args])
    return module.parse_args()


@pytest.fixture
def run(repository, tmp_path):
    """Runs a tool in a folder of its own; gives exit code and output."""

    def run_tool(*command):
        command = [sys.executable, str(repository / 'tools' / command[0]), *map(str, command[1:])]
        env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    return run_tool


@pytest.fixture
def trained(repository, monkeypatch):
    """A recipe after tools/train.py's flags."""

    def apply(*args, name='facemae_vitb_webface'):
        module = tool(repository, 'train')
        args = flags(module, monkeypatch, f'configs/{name}.py', *args)
        cfg = small_recipe(repository, name, **args.cfg_options)
        module.apply_flags(cfg, args)
        return cfg

    return apply


def test_resume(trained, tmp_path):
    """Without a checkpoint yet, start weights count as without the flag."""
    start = ('--work-dir', str(tmp_path), '--cfg-options', 'load_from=start.pth')
    assert (trained().resume, trained().load_from) == (False, None)
    for auto in (['--resume'], ['--resume', 'auto']):
        fresh = trained(*auto, *start)
        assert (fresh.resume, fresh.load_from) == (False, 'start.pth')
    torch.save({}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    for auto in (['--resume'], ['--resume', 'auto']):
        begun = trained(*auto, *start)
        assert (begun.resume, begun.load_from) == (True, None)
    given = trained('--resume', 'x.pth', *start)
    assert (given.resume, given.load_from) == (True, 'x.pth')


def test_amp_fits_the_machine(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert trained(name='demo_mae').optim_wrapper.type == 'OptimWrapper'
    assert trained('--amp', name='demo_mae').optim_wrapper.type == 'AutocastOptimWrapper'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    amp = trained('--amp', name='demo_mae').optim_wrapper
    assert (amp.type, amp.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert trained('--amp').optim_wrapper.type == 'AutocastOptimWrapper'  # the recipe's bfloat16 stays


def test_the_remaining_flags(trained):
    cfg = trained()
    assert cfg.work_dir == 'work_dirs/facemae_vitb_webface' and cfg.launcher == 'none'
    assert trained('--work-dir', 'w', '--launcher', 'slurm').work_dir == 'w'
    assert not cfg.auto_scale_lr.get('enable') and trained('--auto-scale-lr').auto_scale_lr.enable
    with pytest.raises(ValueError, match='auto_scale_lr.base_batch_size=N'):
        trained('--auto-scale-lr', name='demo_mae')
    assert cfg.train_dataloader.persistent_workers
    assert not trained('--no-persistent-workers').train_dataloader.persistent_workers
    assert not trained(name='demo_mae').train_dataloader.persistent_workers  # it has no workers
    assert not trained('--no-pin-memory').train_dataloader.pin_memory
    assert trained(name='arcface_r50_casia').val_dataloader is not None
    assert trained('--no-validate', name='arcface_r50_casia').val_dataloader is None


def test_flags_of_test(repository, monkeypatch):
    module = tool(repository, 'test')
    cfg = small_recipe(repository, 'leakage_casia')
    module.apply_flags(cfg, flags(module, monkeypatch, 'configs/leakage_casia.py', 'none', '--amp'))
    assert cfg.load_from is None and cfg.test_cfg.fp16
    cfg = small_recipe(repository, 'export_casia')
    args = flags(module, monkeypatch, 'x.py', 'epoch_1.pth', '--show-dir', 'pictures', '--interval', '3')
    module.apply_flags(cfg, args)
    assert cfg.load_from == 'epoch_1.pth'
    assert dict(cfg.custom_hooks[-1]) == dict(type='ReconstructionShowHook', out_dir='pictures', interval=3)
    assert cfg.custom_hooks[0].type == 'ReconstructionExportHook'
    with pytest.raises(SystemExit):
        flags(module, monkeypatch, 'x.py', 'none', '--out-item', 'metrics')


def test_a_wrong_option_is_one_line_and_code_2(run, repository):
    code, text = run('train.py', repository / 'configs/demo_mae.py', '--cfg-options', 'train_face=x')
    assert code == 2 and 'train_faces' in text and 'Traceback' not in text


def test_train_export_and_look(run, repository, tmp_path):
    """One epoch of the paper's baseline, small; its export with pictures beside."""
    faces = write_faces(tmp_path / 'faces', 2, 4)
    recipe = repository / 'configs/mae_vitb_webface.py'
    small = SMALL_MAE | {'train_faces': str(faces), 'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 1}
    code, text = run('train.py', recipe, '--amp', '--auto-scale-lr', '--cfg-options', *cfg_options(small))
    assert code == 0 and '4 × 1 processes × 1 accumulated = 4' in text, text[-3000:]
    work = tmp_path / 'work_dirs/mae_vitb_webface'
    assert (work / 'epoch_1.pth').is_file()

    model = {k: v for k, v in SMALL_MAE.items() if k.startswith('model.')}
    export = model | {'deploy_faces': str(faces), 'test_dataloader.num_workers': 0}
    command = ['test.py', repository / 'configs/export_casia.py', work / 'epoch_1.pth', '--show-dir', 'pictures']
    code, text = run(*command, '--cfg-options', *cfg_options(export))
    assert code == 0, text[-3000:]
    assert len(list((tmp_path / 'work_dirs/release/casia_facemae').rglob('*.png'))) == 8
    picture = cv2.imread(str(tmp_path / 'pictures/person_1/3.png'))
    assert picture.shape == (112, 224, 3)
    stored = cv2.imread(str(faces / 'person_1/3.png'))
    fed = picture[:, :112]
    same = (fed == stored).all(-1).reshape(14, 8, 14, 8).all((1, 3))
    assert same.sum() == 49
    removed = ~same.repeat(8, 0).repeat(8, 1)
    assert set(fed[removed].ravel().tolist()) <= {127, 128}  # nothing from behind the mask


def test_a_nan_loss_stops_the_run_and_keeps_the_last_checkpoint(run, repository, tmp_path):
    """One step an epoch at an absurd rate: the first loss is a number, the second is not."""
    faces = write_faces(tmp_path / 'faces', 2, 4)
    options = {'train_dataloader.batch_size': 8, 'train_cfg.max_epochs': 3, 'optim_wrapper.optimizer.lr': 1e35}
    options |= SMALL_MAE | {'train_faces': str(faces), 'param_scheduler': []}
    recipe = repository / 'configs/mae_vitb_webface.py'
    code, text = run('train.py', recipe, '--work-dir', 'work', '--cfg-options', *cfg_options(options))
    assert code not in (0, 2) and 'FloatingPointError: Loss is' in text, text[-3000:]
    assert 'epoch 2' in text and 'epoch_1.pth' in text.split('FloatingPointError')[-1]
    assert [path.name for path in (tmp_path / 'work').glob('*.pth')] == ['epoch_1.pth']


def test_browse_dataset(run, repository, tmp_path):
    faces = write_faces(tmp_path / 'faces', 3, 4)
    recipe = repository / 'configs/facemae_vitb_webface.py'
    flags = [f'train_faces={faces}', 'train_dataloader.dataset.subset=None']
    code, text = run('browse_dataset.py', recipe, '--number', 10, '--output-dir', 'sheets', '--cfg-options', *flags)
    assert code == 0, text[-3000:]
    sheet = cv2.imread(str(tmp_path / 'sheets/facemae_vitb_webface_train.png'))
    assert sheet.shape == (4 * 224, 8 * 224, 3)  # ten faces are two rows of eight, each with its masked row
    stored = cv2.resize(cv2.imread(str(faces / 'person_0/0.png')), (224, 224), interpolation=cv2.INTER_NEAREST)
    assert (sheet[:224, :224] == stored).all()
    patches = sheet[224:448, :224].reshape(14, 16, 14, 16, 3)
    assert (patches == 127).all((1, 3, 4)).sum() == 147
    assert (sheet[448:, 448:] == 255).all()

    other = repository / 'configs/irm_mae_hivitb_webface.py'  # its preprocessor stands outside its model
    code, text = run('browse_dataset.py', other, '--number', 2, '--output-dir', 'sheets', '--cfg-options', *flags)
    assert code == 0, text[-3000:]
    assert cv2.imread(str(tmp_path / 'sheets/irm_mae_hivitb_webface_train.png')) is not None

    code, text = run('browse_dataset.py', recipe, '--split', 'test')
    assert code == 2 and 'Choose --split train.' in text
    code, text = run('browse_dataset.py', recipe)
    assert code == 2 and 'train_faces = data/webface260m/train.rec' in text and 'phi_weights' not in text


@pytest.mark.parametrize(
    ('code', 'expected'), [('raise SystemExit(2)', 2), ('raise SystemExit(7)', 7), ('1 / 0', 1), ('', 0)]
)
def test_dist_run_ends_as_its_processes(run, tmp_path, code, expected):
    (tmp_path / 'job.py').write_text(code)
    found, text = run('dist_run.py', '--standalone', '--nproc_per_node=1', tmp_path / 'job.py')
    assert found == expected
    assert ('exitcode' in text) == (expected not in (0, 2))


@pytest.mark.parametrize(
    ('script', 'enough'),
    [('dist_train.sh', 2), ('dist_test.sh', 3), ('slurm_train.sh', 4), ('slurm_test.sh', 4)],
)
def test_scripts_say_how_they_are_called(repository, script, enough):
    command = ['bash', str(repository / 'tools' / script), *['x'] * (enough - 1)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f'tools/{script}' in done.stderr and os.access(command[1], os.X_OK)


def test_slurm_passes_everything_on(repository, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    env = os.environ | dict(
        PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4', SRUN_ARGS='--qos=high --time=1', PYTHON='py'
    )
    command = ['bash', str(repository / 'tools/slurm_train.sh'), 'part', 'job', 'x.py', 'my work', '--resume']
    sent = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sent[:7] == [
        '--partition=part',
        '--job-name=job',
        '--gres=gpu:4',
        '--ntasks=4',
        '--ntasks-per-node=4',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
    ]
    assert sent[7:11] == ['--qos=high', '--time=1', 'py', '-u'] and sent[11].endswith('tools/train.py')
    assert sent[12:] == ['x.py', '--work-dir=my work', '--launcher=slurm', '--resume']
