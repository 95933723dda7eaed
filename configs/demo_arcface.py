# The demo's recogniser: a narrow IResNet-18 with ArcFace, trained on one set of faces and verified on unseen identities.
_base_ = './_base_/runtime.py'

recognition_faces = '{{$FACEMAE_RECOGNITION_FACES:work_dirs/release/demo_facemae}}'
num_classes = {{'$FACEMAE_NUM_CLASSES:14'}}
verification_faces = '{{$FACEMAE_VERIFICATION_FACES:work_dirs/demo/faces}}'
verification_pairs = '{{$FACEMAE_VERIFICATION_PAIRS:work_dirs/demo/pairs.csv}}'
needs = dict(
    recognition_faces='a folder of identity folders (--cfg-options recognition_faces=PATH num_classes=N)',
    verification_faces='the folder that the pairs name (--cfg-options verification_faces=PATH)',
    verification_pairs="pairs to verify: tools/demo.py writes the demo's (--cfg-options verification_pairs=PATH)",
)

model = dict(
    type='FaceRecognizer',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(type='IResNet', depth=18, base_channels=8, embedding_dim=128),
    head=dict(type='ArcFaceHead', num_classes=num_classes, in_channels=128, s=32.0, margin=dict(type='CombinedMargin', m2=0.3)),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=recognition_faces,
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='VerificationPairs',
        sets=dict(demo=dict(source=verification_faces, pairs=verification_pairs)),
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='PackInputs', meta_keys=('img_key', 'set_name', 'pair_index', 'side', 'same', 'identity')),
        ],
    ),
)
test_evaluator = dict(type='FaceVerification')
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(max_norm=5, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=4, convert_to_iter_based=True),
    dict(type='PolyLR', power=1, eta_min=0, begin=4, end=60, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=60)
