# The miniature's recogniser with augmented faces, for twice as many epochs: without, it learns a small set by heart.
#
#   python tools/train.py configs/mini/arcface_r18_augmented.py --cfg-options recognition_faces=PATH num_classes=N
#
# Tried at 10 epochs on FaceMAE's and MAE's faces of C, by the pairs of W's folds 1 to 5, before its rows were run.
_base_ = './arcface_r18.py'

epochs = {{'$FACEMAE_EPOCHS:20'}}

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='mmpretrain.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
            dict(
                type='mmpretrain.RandomErasing',
                erase_prob=0.8,
                min_area_ratio=0.1,
                max_area_ratio=0.5,
                mode='rand',
                fill_color=[127] * 3,
                fill_std=[60] * 3,
            ),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ]
    )
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='PolyLR', power=1, eta_min=0, begin=1, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs)
