# ArcFace MobileFaceNet (MBF) on a released CASIA-WebFace (Table 5), verified on LFW, CFP-FP and AgeDB-30.
#
#   tools/dist_train.sh configs/arcface_mbf_casia.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# On FaceMAE's reconstructions the paper reaches 98.40 / 88.94 / 88.56. Not run by this project at this size.
# Paper gap: no weight decay of its own for MBF; 1e-4 is arcface_torch's for this network.
_base_ = './arcface_r50_casia.py'

model = dict(backbone=dict(_delete_=True, type='MobileFaceNet'))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
