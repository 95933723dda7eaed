# SynFace's faces in miniature: as many identities and images as the faces to release, of people who do not exist.
#
#   python tools/test.py configs/mini/synthesise.py CHECKPOINT --cfg-options train_faces=PATH synthetic_dir=PATH
#
# CHECKPOINT and train_faces are those of configs/mini/gan.py; like_faces only lends its numbers of images.
_base_ = './gan.py'

synthetic_dir = '{{$FACEMAE_SYNTHETIC_DIR:work_dirs/mini/synthetic}}'
like_faces = '{{$FACEMAE_LIKE_FACES:work_dirs/mini/parts/deploy}}'
identities = {{'$FACEMAE_IDENTITIES:0'}}  # 0: as many as like_faces
images = {{'$FACEMAE_IMAGES:0'}}  # of each; 0: as many as like_faces
identity_mixup = {{'$FACEMAE_IDENTITY_MIXUP:True'}}  # two people's codes; False: one training person's own

test_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=_base_.train_faces,
        test_mode=True,
        pipeline=[dict(type='LoadFace', size=112), dict(type='PackInputs', meta_keys=('img_key',))],
    ),
)
test_cfg = dict(
    type='SynthesisLoop',
    out_dir=synthetic_dir,
    like=like_faces,
    identities=identities,
    images=images,
    identity_mixup=identity_mixup,
    seed=_base_.seed,
)
test_evaluator = []
custom_hooks = [dict(type='StartWeightsHook')]  # the checkpoint must fit
