# A narrow IResNet-18 with ArcFace for two cores: minutes on some thousand faces, verified every fifth epoch on pairs of
# people whom it does not train on. Appendix A.1 in small, with arcface_torch's polynomial schedule after a warm-up.
#
#   python tools/train.py configs/arcface_r18_small.py --cfg-options recognition_faces=PATH num_classes=N \
#       verification_faces=PATH verification_pairs=pairs.txt
_base_ = './demo_arcface.py'

val_dataloader = _base_.test_dataloader
val_evaluator = _base_.test_evaluator
val_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='PolyLR', power=1, eta_min=0, begin=1, end=10, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=10, val_interval=5)
