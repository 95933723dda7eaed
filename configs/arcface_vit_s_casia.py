# ArcFace ViT-S on a released CASIA-WebFace (Table 5), verified on LFW, CFP-FP and AgeDB-30.
#
#   tools/dist_train.sh configs/arcface_vit_s_casia.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# On FaceMAE's reconstructions the paper reaches 98.45 / 90.12 / 90.18. Not run by this project at this size.
# Paper gap: no optimiser of its own for ViT-S; AdamW at 1e-3 and weight decay 0.1 are arcface_torch's for its ViTs
# (there at a larger batch), four epochs of warm-up its tenth. The step schedule stays the paper's.
_base_ = './arcface_r50_casia.py'

model = dict(backbone=dict(_delete_=True, type='ArcFaceViT', arch='vit_s'))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=4, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[20, 28, 32], gamma=0.1),
]
