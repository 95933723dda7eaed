"""Any backbone or classifier of MMPretrain as φ, with MMPretrain's own checkpoints."""

import os
import subprocess
import sys

import pytest
import torch
from mmpretrain.registry import MODELS
from test_embedders import randomised
from torch import nn

from facemae_mm.models.embedders import ClassifierEmbedder, FaceEmbedder

RESNET = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
VIT = dict(type='VisionTransformer', arch='deit-tiny', img_size=112, patch_size=16)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=RESNET,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True),
)


class Plain(nn.Module):
    """A network of no parameters, built by hand."""

    input_size, embedding_dim, template = 8, 192, None
    channel_order, mean, std = 'rgb', (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, text):
        super().__init__()
        self.text = text


def test_a_classifier_gives_its_features(tmp_path):
    classifier = randomised(MODELS.build(CLASSIFIER))
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=classifier.state_dict(), meta={}), path)
    phi = FaceEmbedder(dict(type='ClassifierEmbedder', model=CLASSIFIER), path)
    faces = torch.rand(2, 3, 224, 224) * 255
    fed = (faces - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    with torch.no_grad():
        expected = classifier.extract_feat(fed, stage='neck')[-1]
    assert phi.embedding_dim == 64 and expected.std() > 1e-3
    torch.testing.assert_close(phi(faces)[0], expected, rtol=1e-4, atol=1e-4)
    alone = FaceEmbedder(dict(type='ClassifierEmbedder', model=RESNET, mean=(1, 2, 3), std=(4, 5, 6)), path)
    torch.testing.assert_close(alone(faces)[0], expected, rtol=1e-4, atol=1e-4)
    torch.save(classifier.backbone.state_dict(), path)  # the bare backbone's keys
    assert torch.equal(FaceEmbedder(dict(type='ClassifierEmbedder', model=CLASSIFIER), path)(faces)[0], phi(faces)[0])


def test_a_transformer_gives_its_class_token_and_gradients(tmp_path):
    backbone = MODELS.build(VIT)
    randomised(backbone)  # its train() returns nothing
    path = tmp_path / 'vit.pth'
    torch.save({f'backbone.{key}': value for key, value in backbone.state_dict().items()}, path)
    phi = FaceEmbedder(dict(type='ClassifierEmbedder', model=VIT, input_size=112, channel_order='bgr'), path)
    faces = (torch.rand(2, 3, 112, 112) * 255).requires_grad_(True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    with torch.no_grad():
        expected = backbone((faces.flip(1) - mean) / std)[-1]
    embedding = phi(faces)[0]
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)
    embedding.square().sum().backward()
    assert faces.grad.isfinite().all() and faces.grad.abs().amax((1, 2, 3)).min() > 0


FINGERPRINT = """
import sys
import torch
import facemae_mm
from facemae_mm.models.embedders import FaceEmbedder
print(FaceEmbedder(eval(sys.argv[1]), sys.argv[2]).fingerprint(torch.device('cpu')))
"""


def test_networks_of_one_file_that_embed_otherwise_have_other_fingerprints(repository, tmp_path):
    """By what has no parameters: nothing may take the embeddings of the one for those of the other."""
    for name, config in (('resnet', RESNET), ('vit', VIT)):
        backbone = MODELS.build(config)
        randomised(backbone)  # its train() returns nothing
        torch.save(backbone.state_dict(), tmp_path / f'{name}.pth')
    faces = torch.rand(1, 3, 112, 112) * 255
    shown = dict(type='ClassifierEmbedder', mean=(1, 2, 3), std=(4, 5, 6))
    resnets = [dict(model=RESNET), dict(model=RESNET, input_size=112), dict(model=RESNET | dict(strides=(1, 2, 2, 1)))]
    vits = [dict(model=VIT | dict(out_type=kind), input_size=112) for kind in ('cls_token', 'featmap')]
    for file, options in (('resnet.pth', resnets), ('vit.pth', vits)):
        configs = [shown | option for option in options]
        networks = [FaceEmbedder(config, tmp_path / file) for config in configs]
        fingerprints = [network.fingerprint(torch.device('cpu')) for network in networks]
        assert len(set(fingerprints)) == len(networks)
        embeddings = [network(faces)[0] for network in networks]
        assert not any(torch.allclose(a, b) for i, a in enumerate(embeddings) for b in embeddings[:i])
        networks[0].train().requires_grad_(True)
        assert networks[0].fingerprint(torch.device('cpu')) == fingerprints[0]  # used, and told to train
        again = FaceEmbedder(dict(reversed(configs[0].items())), tmp_path / file)
        assert again.fingerprint(torch.device('cpu')) == fingerprints[0]
    command = [sys.executable, '-c', FINGERPRINT, repr(configs[1]), str(tmp_path / file)]
    env = os.environ | dict(PYTHONPATH=str(repository), PYTHONHASHSEED='7')
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [fingerprints[1]]


@pytest.mark.filterwarnings('ignore:FaceEmbedder. Named has no checkpoint')
def test_an_address_in_a_networks_text_is_no_part_of_its_fingerprint():
    class Named(Plain):
        def extra_repr(self):
            return f'{object()!r}, {self.text}'

    found = {FaceEmbedder(Named(text)).fingerprint(torch.device('cpu')) for text in ('a', 'a', 'b')}
    assert len(found) == 2


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(MODELS.build({**RESNET, 'depth': 34}).state_dict(), path)
    with pytest.raises(ValueError, match=r'other\.pth does not fit ClassifierEmbedder: .*unexpected \(backbone\.'):
        FaceEmbedder(dict(type='ClassifierEmbedder', model=RESNET), path)
    with pytest.raises(ValueError, match=r'VisionTransformer gives \(1, 50, 192\).*out_type'):
        ClassifierEmbedder({**VIT, 'out_type': 'raw'}, input_size=112)
