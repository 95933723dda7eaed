# IRM in SimMIM: Swin-B, 192×192, 60 % removed in blocks of 32; MMPretrain's schedule, 8 × 256, 100 epochs.
#
#   tools/dist_train.sh configs/irm_simmim_swinb_webface.py 8
#
# Its grid of 6×6 blocks does not divide 112 pixels, so faces are enlarged before they are masked. Not run by this project.
_base_ = ['mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py', './_base_/irm_webface.py']

model = dict(head=dict(loss=dict(_delete_=True, **_base_.irm, beta=1.0)))  # N = 256 per process, as in the paper

train_dataloader = dict(
    drop_last=True,
    sampler=dict(type='ResumableSampler'),
    dataset=dict(
        _delete_=True,
        **_base_.faces,
        pipeline=[  # φ needs aligned faces: no RandomResizedCrop
            dict(type='LoadFace', size=112),
            dict(type='Resize', scale=192, interpolation='bilinear'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='SimMIMMaskGenerator', input_size=192, mask_patch_size=32, model_patch_size=4, mask_ratio=0.6),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)
train_cfg = dict(type='ResumableTrainLoop')
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
