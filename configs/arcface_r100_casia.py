# ArcFace R100 on a released CASIA-WebFace (Table 5), verified on LFW, CFP-FP and AgeDB-30.
#
#   tools/dist_train.sh configs/arcface_r100_casia.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# On FaceMAE's reconstructions the paper reaches 99.53 / 91.91 / 90.51. Not run by this project at this size.
_base_ = './arcface_r50_casia.py'

model = dict(backbone=dict(depth=100))
