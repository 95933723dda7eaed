# 10 % of WebFace260M by identity, in InsightFace's packing, aligned at 112×112.
train_faces = '{{$FACEMAE_TRAIN_FACES:data/webface260m/train.rec}}'
needs = dict(
    train_faces="aligned faces to train on: a train.rec in InsightFace's packing, or a folder of identity folders "
    '(--cfg-options train_faces=PATH)',
)
mask_ratio = {{'$FACEMAE_MASK_RATIO:0.75'}}  # Table 3
mask_regions = '{{$FACEMAE_MASK_REGIONS:none}}'  # Table 7: eyes, nose or mouth are always removed
mask_seed = {{'$FACEMAE_MASK_SEED:0'}}  # Table 7

train_dataloader = dict(
    batch_size=256,  # per process; the paper's 8 × 256
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=train_faces,
        subset=dict(part=0, of=10),  # section 4.1: '10% data for FaceMAE training'
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='FaceMask',
                patch_size=8,  # of 112: 16 of 224
                mask_ratio=mask_ratio,
                regions=[] if mask_regions == 'none' else [mask_regions],
                seed=mask_seed,
            ),
            dict(type='HashFace'),  # by which IRMLoss's cache knows a face
            dict(type='PackInputs', meta_keys=('img_key', 'sample_idx', 'flip', 'img_digest')),
        ],
    ),
)
