# A small MobileFaceNet with CosFace for two cores, otherwise arcface_r18_small.py.
#
#   python tools/train.py configs/cosface_mbf_small.py --cfg-options recognition_faces=PATH num_classes=N \
#       verification_faces=PATH verification_pairs=pairs.txt
_base_ = './arcface_r18_small.py'

model = dict(
    backbone=dict(_delete_=True, type='MobileFaceNet', blocks=(1, 1, 1, 1), scale=1, embedding_dim=128),
    head=dict(margin=dict(m2=0.0, m3=0.2)),
)
