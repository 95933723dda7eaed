# The miniature of the paper's model: its 14×14 grid on stored faces of 112 (patches of 8, no enlarging), narrow. On one
# core that multiplies float32, without φ 51 faces a second, with dlib's φ 29.
_base_ = './demo_faces.py'

mask_ratio = {{'$FACEMAE_MASK_RATIO:0.75'}}  # Table 3
mask_regions = '{{$FACEMAE_MASK_REGIONS:none}}'  # Table 7: eyes, nose or mouth are always removed
seed = {{'$FACEMAE_SEED:0'}}  # of masks, weights and order
train_faces = '{{$FACEMAE_TRAIN_FACES:work_dirs/mini/parts/train}}'
needs = dict(
    train_faces="a part of LFW: tools/split_lfw.py makes them (--cfg-options train_faces=PATH)",
)

model = dict(
    data_preprocessor=dict(patch_size=8),
    backbone=dict(arch=dict(embed_dims=192, num_layers=4, num_heads=4, feedforward_channels=768), patch_size=8),
    neck=dict(
        num_patches=196, patch_size=8, embed_dim=192, decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4
    ),
    head=dict(patch_size=8),
)
train_dataloader = dict(
    dataset=dict(
        source=train_faces,
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='FaceMask',
                patch_size=8,
                mask_ratio=mask_ratio,
                regions=[] if mask_regions == 'none' else [mask_regions],
                seed=seed,
            ),
            dict(type='HashFace'),  # by which φ(original) is kept
            dict(type='PackInputs', meta_keys=('img_key', 'img_digest', 'sample_idx', 'flip')),
        ],
    ),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=seed)
