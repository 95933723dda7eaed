# ArcFace R50 on a released CASIA-WebFace (appendix A.1), verified on LFW, CFP-FP and AgeDB-30.
#
#   tools/dist_train.sh configs/arcface_r50_casia.py 4
#
# On the originals (the upper bound of Table 1: 99.35 / 94.38 / 94.73), or on any other folder of identity folders:
#   … --cfg-options recognition_faces=data/casia-webface/train.rec
# On FaceMAE's reconstructions the paper reaches 99.23 / 90.80 / 90.25. Not run by this project at this size.
_base_ = './_base_/runtime.py'

recognition_faces = '{{$FACEMAE_RECOGNITION_FACES:work_dirs/release/casia_facemae}}'
num_classes = {{'$FACEMAE_NUM_CLASSES:10572'}}  # CASIA in InsightFace's packing
lfw = '{{$FACEMAE_LFW:data/faces_emore/lfw.bin}}'
cfp_fp = '{{$FACEMAE_CFP_FP:data/faces_emore/cfp_fp.bin}}'
agedb_30 = '{{$FACEMAE_AGEDB_30:data/faces_emore/agedb_30.bin}}'
needs = dict(
    recognition_faces='faces to train on: a release (configs/export_casia.py makes one), a train.rec or a folder of '
    'identity folders (--cfg-options recognition_faces=PATH num_classes=N)',
    lfw="InsightFace's verification set (--cfg-options lfw=PATH); --no-validate trains without",
    cfp_fp="InsightFace's verification set (--cfg-options cfp_fp=PATH); --no-validate trains without",
    agedb_30="InsightFace's verification set (--cfg-options agedb_30=PATH); --no-validate trains without",
)

model = dict(
    type='FaceRecognizer',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(type='IResNet', depth=50),
    head=dict(type='ArcFaceHead', num_classes=num_classes, in_channels=512, s=64.0),
)

train_dataloader = dict(
    batch_size=128,  # per process, 4 processes
    num_workers=8,
    persistent_workers=True,
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
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='VerificationPairs',
        sets=dict(lfw=dict(source=lfw), cfp_fp=dict(source=cfp_fp), agedb_30=dict(source=agedb_30)),
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='PackInputs', meta_keys=('img_key', 'set_name', 'pair_index', 'side', 'same', 'identity')),
        ],
    ),
)
val_evaluator = dict(type='FaceVerification')
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# SGD 0.1 at 4 × 128, momentum 0.9, weight decay 5e-4; gradients clipped at 5 as arcface_torch does.
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True),
    clip_grad=dict(max_norm=5, norm_type=2),
)
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = [  # 34 epochs, one of warm-up, ×0.1 at 20, 28 and 32
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[20, 28, 32], gamma=0.1),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=34)
val_cfg = dict()
test_cfg = dict()
