# The miniature's recogniser with a MobileFaceNet of one block a stage (Table 5).
_base_ = './arcface_r18.py'

model = dict(backbone=dict(_delete_=True, type='MobileFaceNet', blocks=(1, 1, 1, 1), scale=1, embedding_dim=128))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
