# Leakage of a released CASIA-WebFace (Eq. 3, Figure 3): real faces look for their owners among the released ones.
#
#   tools/test.py configs/leakage_casia.py none --cfg-options attacker_weights=weights/….pth
#
# The attacker's embedder is any that φ can be. Report the worst of several, φ itself among them.
_base_ = './_base_/runtime.py'

real_faces = '{{$FACEMAE_REAL_FACES:data/casia-webface/train.rec}}'
released_faces = '{{$FACEMAE_RELEASED_FACES:work_dirs/release/casia_facemae}}'
links = '{{$FACEMAE_LINKS:work_dirs/release/casia_facemae.private/links.csv}}'
attacker_weights = '{{$FACEMAE_ATTACKER_WEIGHTS:weights/ms1mv3_arcface_r50_fp16/backbone.pth}}'
needs = dict(
    real_faces='the real faces that the attacker holds (--cfg-options real_faces=PATH)',
    released_faces='the release: configs/export_casia.py makes one (--cfg-options released_faces=PATH)',
    links="the owner's links of the release, beside it in NAME.private (--cfg-options links=PATH)",
    attacker_weights='an arcface_torch IResNet-50 as a state dict (--cfg-options attacker_weights=PATH)',
)

model = dict(
    type='FaceRecognizer',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=True),
    backbone=dict(type='FaceEmbedder', backbone=dict(type='IResNet', depth=50), checkpoint=attacker_weights),
    head=dict(type='EmbeddingHead'),
)

pipeline = [
    dict(type='LoadFace'),
    dict(type='PackInputs', meta_keys=('img_key', 'identity', 'role')),
]
test_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(type='FaceRecordDataset', source=real_faces, role='query', pipeline=pipeline),
            dict(type='FaceRecordDataset', source=released_faces, role='gallery', pipeline=pipeline),
        ],
    ),
)
test_evaluator = dict(type='RetrievalLeakage', topk=(1, 2, 3, 4), links=links)
test_cfg = dict()
