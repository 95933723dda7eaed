# The small network of the demo: faces at 112 in 7×7 patches of 16, no enlarging. The paper's grid of 14×14 costs five
# times as much and learns too little in the demo's minutes. `tools/demo.py` fills in the faces.
_base_ = ['mmpretrain::_base_/models/mae_vit-base-p16.py', './runtime.py']

train_faces = '{{$FACEMAE_TRAIN_FACES:work_dirs/demo/faces}}'
needs = dict(train_faces="aligned faces: tools/prepare_orl.py makes ORL's (--cfg-options train_faces=PATH)")

model = dict(
    type='FaceMAE',
    data_preprocessor=dict(
        type='FacePreprocessor', size=112, patch_size=16, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
    ),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=256, num_layers=4, num_heads=4, feedforward_channels=1024), img_size=112
    ),
    neck=dict(num_patches=49, embed_dim=256, decoder_embed_dim=192, decoder_depth=2, decoder_num_heads=4),
    head=dict(norm_pix=False),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,  # small faces decode faster than a worker starts
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=train_faces,
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='FaceMask', patch_size=16, mask_ratio=0.75, seed=0),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
