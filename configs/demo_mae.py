# The demo's plain MAE: MSE on removed patches. FaceMAE starts from it (configs/demo_facemae.py).
_base_ = './_base_/demo_faces.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=190, eta_min=1e-5, begin=10, end=200, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=200)
