# Plain MAE on 10 % of WebFace260M: the baseline of Tables 1 and 2 (MSE on the removed patches).
#
#   tools/dist_train.sh configs/mae_vitb_webface.py 8
#
# Paper, section 4.2: ViT-B, 224×224, patch 16, 75 % removed, 8 × 256, 200 epochs, 40 of warm-up, base lr 1.5e-4.
# Deployed on CASIA-WebFace it gives LFW 97.62, CFP-FP 87.14, AgeDB 85.68 (Table 1). Not run by this project.
_base_ = [
    'mmpretrain::_base_/models/mae_vit-base-p16.py',
    './_base_/runtime.py',
    './_base_/faces_webface.py',
]

model = dict(
    type='FaceMAE',
    data_preprocessor=dict(
        type='FacePreprocessor',
        size=224,
        patch_size=16,
        mean=[123.675, 116.28, 103.53],  # ImageNet's, as in the published MAE weights
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    head=dict(norm_pix=False),  # the output must be an image
)

# lr = 1.5e-4 · 2048 / 256 = 1.2e-3 for the effective batch 8 × 256 = 2048; facebookresearch/mae scales so.
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 2048 / 256, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            'ln': dict(decay_mult=0.0),
            'bias': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
            'mask_token': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
        }
    ),
)
auto_scale_lr = dict(base_batch_size=2048)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=160, begin=40, end=200, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=200)
