# AdaFace IR-50 on a released CASIA-WebFace, verified on LFW, CFP-FP and AgeDB-30: AdaFace's network, margin, colours
# (BGR) and steps (26 epochs, ×0.1 at 12, 20 and 24), without its crops, blur and photometric changes.
#
#   tools/dist_train.sh configs/adaface_r50_casia.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# The paper has no such row. Not run by this project.
_base_ = './arcface_r50_casia.py'

model = dict(
    data_preprocessor=dict(to_rgb=False),
    backbone=dict(_delete_=True, type='AdaFaceIR', depth=50),
    head=dict(margin=dict(type='AdaFaceMargin', m=0.4, h=0.333, t_alpha=0.01), gradient='exact'),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[12, 20, 24], gamma=0.1)]
train_cfg = dict(max_epochs=26)
