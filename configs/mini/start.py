# The start of every FaceMAE in miniature: the plain MAE of fold 0 goes on with the squared error of the whole face, so that
# its visible patches become a face as well. From random weights IRM does not leave the mean face at this size.
#
#   python tools/train.py configs/mini/start.py --cfg-options start_weights=PATH train_faces=work_dirs/mini/parts/start
_base_ = './mae.py'

start_weights = '{{$FACEMAE_START_WEIGHTS:work_dirs/mae/epoch_50.pth}}'
epochs = {{'$FACEMAE_EPOCHS:10'}}  # 48 × 32 faces each: 15,360
needs = dict(start_weights='a plain MAE: configs/mini/mae.py trains it (--cfg-options start_weights=PATH)')

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='IRMLoss',
            phi=None,
            im_weight=0.0,
            beta=0.0,
            mse_weight=1.0,
            mse_visible=True,
            mean=[127.5] * 3,
            std=[127.5] * 3,
            patch_size=8,
        )
    )
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [  # again: a base reads its own epochs
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=epochs - 1, eta_min=1e-5, begin=1, end=epochs, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=epochs)
