"""Any backbone or classifier of MMPretrain as φ, with MMPretrain's own checkpoints."""

import pytest
import torch
from mmpretrain.registry import MODELS
from test_embedders import randomised

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


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(MODELS.build({**RESNET, 'depth': 34}).state_dict(), path)
    with pytest.raises(ValueError, match=r'other\.pth does not fit ClassifierEmbedder: .*unexpected \(backbone\.'):
        FaceEmbedder(dict(type='ClassifierEmbedder', model=RESNET), path)
    with pytest.raises(ValueError, match=r'VisionTransformer gives \(1, 50, 192\).*out_type'):
        ClassifierEmbedder({**VIT, 'out_type': 'raw'}, input_size=112)
