"""Every recipe parses, builds, and takes a step."""

import argparse
import inspect
from collections import Counter

import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from tiny import SMALL_FACEMAE, small_recipe, write_faces

import facemae_mm  # noqa: F401  registers the components
from facemae_mm.command_line import add_options
from facemae_mm.models import IRMLoss

RECIPES = [
    'adaface_r50_casia',
    'arcface_mbf_casia',
    'arcface_r100_casia',
    'arcface_r18_casia',
    'arcface_r18_small',
    'arcface_r50_casia',
    'arcface_r50_casia_poly',
    'arcface_vit_s_casia',
    'audit',
    'cosface_mbf_small',
    'cosface_r50_casia',
    'demo_arcface',
    'demo_export',
    'demo_facemae',
    'demo_leakage',
    'demo_mae',
    'demo_start',
    'export_casia',
    'facemae_vitb_webface',
    'irm_mae_hivitb_webface',
    'irm_mixmim_base_webface',
    'irm_simmim_swinb_webface',
    'leakage_casia',
    'mae_vitb_webface',
    'pfc_r100_webface42m',
]
pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')


def test_no_recipe_is_forgotten(repository):
    assert sorted(path.stem for path in (repository / 'configs').glob('*.py')) == RECIPES


@pytest.mark.parametrize('name', [name for name in RECIPES if name != 'audit'])  # its embedders say so themselves
def test_says_how_to_get_what_it_needs(repository, name):
    cfg = small_recipe(repository, name)
    assert set(cfg.needs) <= set(cfg) and all(len(remedy) > 20 for remedy in cfg.needs.values())


@pytest.mark.parametrize('name', [name for name in RECIPES if name.startswith(('facemae', 'irm', 'demo'))])
def test_the_loss_undoes_the_normalisation_of_its_recipe(repository, name):
    """Else `IRMTargetCheckHook` refuses its training."""
    cfg = small_recipe(repository, name)
    loss = cfg.model.get('head', {}).get('loss', {})
    if loss.get('type') != 'IRMLoss':
        return
    shown = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    defaults = inspect.signature(IRMLoss).parameters
    for key in ('mean', 'std'):
        assert list(loss.get(key, defaults[key].default)) == list(shown[key])


@pytest.fixture
def run(repository, tmp_path):
    """Trains a recipe on 16 pictures of 4 identities for one epoch, and tests it; returns runner and metrics."""
    faces = write_faces(tmp_path / 'faces')

    def run_recipe(name, train, **options):
        cfg = small_recipe(repository, name, **options)
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(tmp_path / 'work'), f'{name} {tmp_path}', 'ERROR'
        if train:
            cfg.train_cfg.max_epochs, cfg.param_scheduler = 1, []
            cfg.train_dataloader.batch_size = 8
        runner = Runner.from_cfg(cfg)
        if train:
            runner.train()
        return runner, runner.test() if cfg.get('test_dataloader') else None

    run_recipe.faces = str(faces)
    run_recipe.folder = tmp_path
    return run_recipe


def test_mae_and_facemae_of_the_paper_train(run):
    small = {k: v for k, v in SMALL_FACEMAE.items() if 'phi' not in k} | dict(train_faces=run.faces)
    runner, _ = run('mae_vitb_webface', True, **small)
    assert runner.iter == 2 and runner.model.head.norm_pix is False
    torch.manual_seed(0)
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), run.folder / 'phi.pth')
    files = dict(phi_weights=str(run.folder / 'phi.pth'), phi_cache=str(run.folder / 'features'))
    runner, _ = run('facemae_vitb_webface', True, train_faces=run.faces, **files, **SMALL_FACEMAE)
    scalars = runner.message_hub.log_scalars
    assert scalars['train/irm_n'].current() == 8 and scalars['train/irm_im'].current() > 0


def test_masks_are_fresh_in_every_epoch(run):
    small = {k: v for k, v in SMALL_FACEMAE.items() if 'phi' not in k} | dict(train_faces=run.faces)
    runner, _ = run('mae_vitb_webface', True, **small)
    dataset = runner.train_dataloader.dataset
    first = dataset[0]['data_samples'].mask
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]['data_samples'].mask, first)


def test_recogniser_of_the_paper_trains_and_verifies(run):
    pairs = run.folder / 'pairs.csv'
    rows = [(f'person_{i}/{a}', f'person_{i}/{b}', 1) for i in range(4) for a, b in ((0, 1), (2, 3))]
    rows += [(f'person_{i}/{a}', f'person_{(i + 1) % 4}/{a}', 0) for i in range(4) for a in (0, 1)]
    pairs.write_text('key1,key2,same\n' + ''.join(f'{a},{b},{c}\n' for a, b, c in rows))
    verification = dict(sets=dict(tiny=dict(source=run.faces, pairs=str(pairs))))
    runner, metrics = run(
        'arcface_r50_casia',
        True,
        recognition_faces=run.faces,
        num_classes=4,
        **{
            'model.backbone.depth': 18,
            'model.backbone.base_channels': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.num_workers': 0,
            'test_dataloader.num_workers': 0,
            'val_dataloader.dataset': dict(_delete_=True, type='VerificationPairs', **verification, pipeline=PAIRS),
            'test_dataloader.dataset': dict(_delete_=True, type='VerificationPairs', **verification, pipeline=PAIRS),
        },
    )
    assert 0 <= metrics['tiny/accuracy_lo'] <= metrics['tiny/accuracy'] <= metrics['tiny/accuracy_hi'] <= 1
    assert metrics['tiny/pairs'] == 16


PAIRS = [
    dict(type='LoadFace', size=112),
    dict(type='PackInputs', meta_keys=('img_key', 'set_name', 'pair_index', 'side', 'same', 'identity')),
]


def test_leakage_of_a_set_of_copies_is_total(run):
    """Released = real: the same picture is its own nearest, and others of a person lie near."""
    torch.manual_seed(0)
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), run.folder / 'phi.pth')
    _, metrics = run(
        'leakage_casia',
        False,
        real_faces=run.faces,
        released_faces=run.faces,
        attacker_weights=str(run.folder / 'phi.pth'),
        **{
            'model.backbone.backbone.depth': 18,
            'model.backbone.backbone.base_channels': 4,
            'test_dataloader.num_workers': 0,
            'test_evaluator.links': None,
        },
    )
    assert metrics['leakage/top1_with'] == 1.0
    assert metrics['leakage/queries'] == 16 and metrics['leakage/identities'] == 4
    # 15 others, 3 of them one's own: 1 − (12 · 11) / (15 · 14)
    assert metrics['leakage/chance_top2'] == pytest.approx(1 - 132 / 210)


def ablations(repository):
    """(table, row, options of training, options of deployment) of each row of configs/README.md."""
    text = (repository / 'configs' / 'README.md').read_text().split('## Ablations')[1]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:3] > '| 0']
    rows = [row for row in rows if row[0].isdigit()]
    return [(int(row[0]), row[1], *(_options(cell) for cell in row[2:4])) for row in rows]


def _options(cell):
    """As tools/ reads them behind --cfg-options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = [] if cell == '–' else cell.strip('`').split()
    return parser.parse_args(['--cfg-options', *words] if words else []).cfg_options


def test_every_row_of_the_papers_ablations_is_listed(repository):
    count = Counter(table for table, *_ in ablations(repository))
    assert count == {2: 5, 3: 4, 6: 4, 7: 4, 8: 5}


def step_of_an_ablation(cfg, options):
    """Checks that the loss of one step is that of the row's weights; gives the first face's mask."""
    model, dataset = MODELS.build(cfg.model), DATASETS.build(cfg.train_dataloader.dataset)
    data = model.data_preprocessor(default_collate([dataset[i] for i in range(2)]), True)
    loss = model(data['inputs'], data['data_samples'], mode='loss')['loss']
    loss.backward()
    scalars = MessageHub.get_current_instance().log_scalars
    expected = 0.0
    for name, (key, default) in dict(im=('im_weight', 1.0), rm=('beta', 1.0), mse=('mse_weight', 0.0)).items():
        weight = options.get(f'model.head.loss.{key}', default)
        expected += weight * float(scalars[f'train/irm_{name}'].current()) if weight else 0.0
    assert loss.item() == pytest.approx(expected, rel=1e-4), options
    return dataset[0]['data_samples'].mask


def test_every_ablation_takes_a_step_and_masks_what_is_deployed(repository, tmp_path):
    """The loss of each row from its own options, and the masks of training and deployment."""
    faces = str(write_faces(tmp_path / 'faces', 2, 2))
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), tmp_path / 'phi.pth')
    small = SMALL_FACEMAE | dict(train_faces=faces, phi_weights=str(tmp_path / 'phi.pth'))
    small |= {'model.head.loss.cache': None, 'model.head.loss.phi.precision': 'float32'}
    removed, drawn, deployed = {}, {}, {}
    for table, row, training, deployment in ablations(repository):
        if str(training) not in drawn:
            cfg = small_recipe(repository, 'facemae_vitb_webface', **small | training)
            drawn[str(training)] = step_of_an_ablation(cfg, training)
        if str(deployment) not in deployed:
            secret = tmp_path / deployment.get('mask_secret', 'mask_secret').replace('/', '_')
            options = deployment | dict(deploy_faces=faces, mask_secret=str(secret))
            cfg = small_recipe(repository, 'export_casia', **options)
            deployed[str(deployment)] = DATASETS.build(cfg.test_dataloader.dataset)[0]['data_samples'].mask
        removed[table, row] = drawn[str(training)], deployed[str(deployment)]
    counts = {key: tuple(int(mask.sum()) for mask in masks) for key, masks in removed.items()}
    assert counts[3, '30 % removed'] == (59, 59) and counts[3, '90 %'] == (177, 177)
    assert counts[8, '30 % at deployment alone'] == (147, 59) and counts[8, '85 %'] == (147, 167)
    assert all(count == (147, 147) for (table, _), count in counts.items() if table in (2, 6, 7))
    for place in range(2):
        assert not torch.equal(removed[7, 'seed 0'][place], removed[7, 'seed 1'][place])
        grids = [removed[7, row][place].reshape(14, 14) for row in ('eyes', 'mouth')]
        assert grids[0][6, 4] and grids[0][6, 9] and grids[1][11, 6] and grids[1][11, 7]
