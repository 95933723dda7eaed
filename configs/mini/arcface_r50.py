# The miniature's recogniser with the blocks of IResNet-50.
_base_ = './arcface_r18.py'

model = dict(backbone=dict(depth=50))
