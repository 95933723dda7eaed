"""Recipes of recognisers: schedules, margins, a training by each, and on every kind of set by one option."""

import math
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS, PARAM_SCHEDULERS
from tiny import cfg_options, small_recipe, write_faces

from facemae_mm.datasets import FaceMask, open_faces
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.models import ArcFaceHead, FaceRecognizer
from facemae_mm.models.margins import AdaFaceMargin, CombinedMargin
from facemae_mm.models.partial_fc_head import PartialFCHead

IRESNET = {'model.backbone.depth': 18, 'model.backbone.base_channels': 4}

#: What shrinks each recipe's network.
RECIPES = {
    'adaface_r50_casia': IRESNET,
    'arcface_mbf_casia': {'model.backbone.blocks': (1, 1, 1, 1), 'model.backbone.scale': 1},
    'arcface_r100_casia': IRESNET,
    'arcface_r18_casia': IRESNET,
    'arcface_r18_small': IRESNET,
    'arcface_r50_casia': IRESNET,
    'arcface_r50_casia_poly': IRESNET,
    'arcface_vit_s_casia': {'model.backbone.embed_dims': 32, 'model.backbone.depth': 2},
    'cosface_mbf_small': {'model.backbone.blocks': (1, 1, 1, 1)},
    'cosface_r50_casia': IRESNET,
    'demo_arcface': IRESNET,
    'pfc_r100_webface42m': IRESNET | {'model.head.sample_rate': 0.5},
}


def quick(repository, name, folder, faces, **options):
    """A recipe made small, without validation, for one epoch of two steps."""
    loader = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}
    options = dict(recognition_faces=str(faces), num_classes=4) | RECIPES[name] | loader | options
    cfg = small_recipe(repository, name, **options)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(folder / 'work'), f'{name} {folder}', 'ERROR'
    cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size = 1, 8
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        cfg[key] = None
    return cfg


@pytest.mark.parametrize('name', RECIPES)
def test_every_recogniser_trains(repository, tmp_path, name):
    """Two steps at the schedule's full rate: what is trained moves, what is fixed does not."""
    cfg = quick(repository, name, tmp_path, write_faces(tmp_path / 'faces'))
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    before = {key: value.detach().clone() for key, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2 and isinstance(runner.model, FaceRecognizer)
    for key, value in runner.model.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, before[key]) != value.requires_grad or 'mask_token' in key, key


@pytest.mark.parametrize('name', RECIPES)
def test_every_recogniser_builds_at_its_size(repository, name):
    with torch.device('meta'):
        model = MODELS.build(small_recipe(repository, name, **{'model.head.num_classes': 5}).model)
    sizes = {'r18': 24.0, 'r50': 43.6, 'r100': 65.2, 'mbf': 2.1, 'vit': 76.3}  # millions of parameters
    millions = sum(value.numel() for value in model.backbone.parameters()) / 1e6
    kind = name.split('_')[1]
    if 'small' not in name and name != 'demo_arcface':
        assert millions == pytest.approx(sizes[kind], rel=0.02), millions
    else:
        assert millions < 2


def test_margins_and_heads(repository):
    def head(name):
        return MODELS.build(small_recipe(repository, name, **{'model.head.num_classes': 5}).model.head)

    def margins(name):
        margin = head(name).margin
        assert isinstance(margin, CombinedMargin)
        return margin.m1, margin.m2, margin.m3

    for name in ('arcface_r18_casia', 'arcface_r50_casia', 'arcface_r100_casia', 'arcface_vit_s_casia'):
        assert margins(name) == (1, 0.5, 0) and type(head(name)) is ArcFaceHead and head(name).s == 64
    assert margins('cosface_r50_casia') == (1, 0, 0.4)
    assert margins('pfc_r100_webface42m') == (1, 0, 0.4) and isinstance(head('pfc_r100_webface42m'), PartialFCHead)
    assert margins('cosface_mbf_small') == (1, 0, 0.2) and margins('arcface_r18_small') == (1, 0.3, 0)
    adaface = head('adaface_r50_casia')
    assert isinstance(adaface.margin, AdaFaceMargin) and adaface.gradient == 'exact'
    assert small_recipe(repository, 'pfc_r100_webface42m').model.head.num_classes == 2059906


def rates(repository, name, steps):
    """Learning rate of each step of a recipe's schedule, as ParamSchedulerHook drives it."""
    cfg = small_recipe(repository, name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    by_iteration, by_epoch = [], []
    for item in cfg.param_scheduler:
        options = dict(item)
        kind = PARAM_SCHEDULERS.get(options.pop('type'))
        if options.pop('convert_to_iter_based', False):
            by_iteration.append(kind.build_iter_from_epoch(optimizer, **options, epoch_length=steps))
        else:
            by_epoch.append(kind(optimizer, **options))
    found = []
    for _ in range(cfg.train_cfg.max_epochs):
        for _ in range(steps):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in by_iteration:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', ['arcface_r50_casia', 'arcface_r18_casia', 'arcface_r100_casia', 'arcface_mbf_casia'])
def test_the_papers_schedule(repository, name):
    """34 epochs, ×0.1 at 20, 28 and 32, one epoch of warm-up."""
    steps = 7
    found = rates(repository, name, steps)
    assert len(found) == 34 * steps
    assert found[0] < 0.001 and all(a < b for a, b in zip(found[: steps - 1], found[1:steps], strict=True))
    for epoch, rate in ((2, 0.1), (19, 0.1), (20, 0.01), (27, 0.01), (28, 0.001), (31, 0.001), (32, 1e-4), (33, 1e-4)):
        assert found[epoch * steps : (epoch + 1) * steps] == pytest.approx([rate] * steps)


@pytest.mark.parametrize('name', ['arcface_r50_casia_poly', 'pfc_r100_webface42m'])
def test_arcface_torchs_schedule(repository, name):
    """lr · (1 − t / T) in every iteration t, but for the very end: MMEngine comes to 0 one iteration earlier."""
    steps = 50
    found = rates(repository, name, steps)
    assert len(found) == 20 * steps
    assert found == pytest.approx([0.1 * (1 - t / (20 * steps)) for t in range(20 * steps)], abs=0.11 / (20 * steps))
    assert found[0] == 0.1 and all(a > b for a, b in zip(found, found[1:]))


def original(folder):
    return write_faces(folder / 'faces')


def masked(folder):
    mask = FaceMask(patch_size=16, mask_ratio=0.75, seed=0)
    mask_faces(open_faces(original(folder)), folder / 'masked', mask, workers=1)
    assert (folder / 'masked' / 'facemasked.json').is_file()
    return folder / 'masked'


def released(folder):
    """As ReconstructionExportHook leaves it: numbered identity folders, manifest and card."""
    shutil.move(original(folder), folder / 'released')
    for number, person in enumerate(sorted((folder / 'released').iterdir())):
        person.rename(person.with_name(f'{number:06d}'))
    (folder / 'released' / 'manifest.json').write_text('{}')
    (folder / 'released' / 'README.md').write_text('A card.')
    return folder / 'released'


def renamed(folder, person, image):
    """The faces with other names, by number of identity and of image, some at another size."""
    for identity in range(4):
        for number, path in enumerate(sorted((folder / 'faces' / f'person_{identity}').iterdir())):
            new = folder / 'synthetic' / person(identity) / image(identity, number)
            new.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(new), cv2.imread(str(path)))
    return folder / 'synthetic'


def numbered_folders(folder):
    original(folder)
    return renamed(folder, str, lambda identity, number: f'{number}.png')


def synface(folder):
    """SynFace's dataset.py reads both identities of a mixed face out of names like these."""
    original(folder)
    return renamed(folder, lambda i: f'id_{i:05d}', lambda i, n: f'{n:03d}_{i + 1}x0.7_({i + 2})x0.3.jpg')


def zipped(folder):
    return shutil.make_archive(str(folder / 'images'), 'zip', numbered_folders(folder))


SETS = dict(original=original, masked=masked, released=released, numbered=numbered_folders, synface=synface, zip=zipped)


@pytest.mark.parametrize('kind', SETS)
def test_a_recogniser_trains_on_every_kind_of_set(repository, tmp_path, kind):
    runner = Runner.from_cfg(quick(repository, 'arcface_r50_casia', tmp_path, SETS[kind](tmp_path)))
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert runner.iter == 2 and len(dataset) == 16
    labels = np.array([int(dataset[index]['data_samples'].gt_label) for index in range(16)])
    assert np.bincount(labels).tolist() == [4] * 4
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())


def test_faces_of_another_size_are_sent_to_preparation(repository, tmp_path):
    """Some synthetic sets are published larger than 112 pixels, and not aligned to the template."""
    faces = original(tmp_path)
    for path in faces.glob('*/*.png'):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (128, 128)))
    dataset = DATASETS.build(quick(repository, 'arcface_r50_casia', tmp_path, faces).train_dataloader.dataset)
    with pytest.raises(ValueError, match='person_0/0 is 128×128 pixels, not 112×112.*prepare_faces'):
        dataset[0]


def test_the_command_on_a_masked_dataset(repository, tmp_path):
    """What a user types, with the set as the one difference."""
    options = RECIPES['arcface_r18_small'] | {'train_dataloader.batch_size': 8, 'train_cfg.max_epochs': 1}
    options |= dict(recognition_faces=str(masked(tmp_path)), num_classes=4)
    command = [sys.executable, str(repository / 'tools' / 'train.py'), str(repository / 'configs/arcface_r18_small.py')]
    command += ['--work-dir', 'work', '--no-validate', '--cfg-options', *cfg_options(options)]
    env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()
