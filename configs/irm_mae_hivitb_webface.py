# IRM in MAE with a hierarchical encoder: HiViT-B, 224×224, 75 % of 14×14 patches removed; MMPretrain's schedule,
# 8 × 512, 400 epochs.
#
#   tools/dist_train.sh configs/irm_mae_hivitb_webface.py 8
#
# Not run by this project.
_base_ = ['mmpretrain::mae/mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py', './_base_/irm_webface.py']

data_preprocessor = dict(type='FacePreprocessor', size=224, patch_size=16)
model = dict(
    head=dict(norm_pix=False, loss=dict(_delete_=True, **_base_.irm, beta=0.71))  # β · √(256 / 512)
)

train_dataloader = dict(
    drop_last=True,
    sampler=dict(type='ResumableSampler'),
    dataset=dict(
        _delete_=True,
        **_base_.faces,
        pipeline=[  # φ needs aligned faces: no RandomResizedCrop
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)
resume = False  # MMPretrain's recipe resumes by itself; here --resume says so
train_cfg = dict(type='ResumableTrainLoop')
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
