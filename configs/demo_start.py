# The pixel start of the demo's FaceMAE: plain MAE goes on with the squared error of the whole image, so that its visible
# patches become a face as well.
_base_ = './demo_mae.py'

mae_weights = '{{$FACEMAE_MAE_WEIGHTS:work_dirs/demo_mae/epoch_200.pth}}'
needs = dict(
    mae_weights='plain MAE: tools/train.py configs/demo_mae.py makes it (--cfg-options mae_weights=PATH)',
)

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
        )
    )
)
load_from = mae_weights

optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=39, eta_min=1e-5, begin=1, end=40, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=40)
