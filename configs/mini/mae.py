# Plain MAE in miniature, MSE on removed patches: first on the people of no part (fold 0), as what everything starts from;
# with start_weights of that, on W, as the MAE of Tables 1 and 2, for as many faces as FaceMAE sees.
#
#   python tools/train.py configs/mini/mae.py --cfg-options train_faces=work_dirs/mini/parts/start
_base_ = '../_base_/mini_faces.py'

start_weights = '{{$FACEMAE_START_WEIGHTS:none}}'
epochs = {{'$FACEMAE_EPOCHS:50'}}  # 48 × 32 faces each: 76,800

load_from = None if start_weights == 'none' else start_weights
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=epochs - 1, eta_min=1e-5, begin=1, end=epochs, convert_to_iter_based=True
    ),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=epochs)
