# What IRM in another masked image model needs beside MMPretrain's own recipe: faces, φ and the loss, as variables that
# the recipe puts in its places. The rest, schedule included, stays MMPretrain's.
_base_ = './plugin.py'

train_faces = '{{$FACEMAE_TRAIN_FACES:data/webface260m/train.rec}}'
phi_weights = '{{$FACEMAE_PHI_WEIGHTS:weights/ms1mv3_arcface_r50_fp16/backbone.pth}}'
needs = dict(
    train_faces="aligned faces to train on: a train.rec in InsightFace's packing, or a folder of identity folders "
    '(--cfg-options train_faces=PATH)',
    phi_weights='the weights of φ, an arcface_torch IResNet-50 (its model zoo has ms1mv3_arcface_r50_fp16), as a '
    'state dict (--cfg-options phi_weights=PATH)',
)

faces = dict(type='FaceRecordDataset', source=train_faces, subset=dict(part=0, of=10))  # section 4.1: 10 %, by identity
irm = dict(
    type='IRMLoss',
    phi=dict(type='FaceEmbedder', backbone=dict(type='IResNet', depth=50), checkpoint=phi_weights),
    mean=[123.675, 116.28, 103.53],  # as MMPretrain's data preprocessors have them
    std=[58.395, 57.12, 57.375],
)
