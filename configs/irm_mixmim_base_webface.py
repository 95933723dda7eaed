# IRM in MixMIM: 224×224, two faces mixed by one mask of 7×7 patches of 32, half of them removed from each; MMPretrain's
# schedule, 16 × 128, 300 epochs.
#
#   tools/dist_train.sh configs/irm_mixmim_base_webface.py 16
#
# Not run by this project.
_base_ = ['mmpretrain::mixmim/mixmim_mixmim-base_16xb128-coslr-300e_in1k.py', './_base_/irm_webface.py']

data_preprocessor = dict(type='FacePreprocessor', size=224, patch_size=32)
model = dict(
    head=dict(
        norm_pix=False,
        loss=dict(_delete_=True, **_base_.irm, beta=1.41, patch_size=32),  # β · √(256 / 128)
    )
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
train_cfg = dict(type='ResumableTrainLoop')
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
