# CosFace R50 on a released CASIA-WebFace: appendix A.1 with CosFace's margin, cos θ − 0.4.
#
#   tools/dist_train.sh configs/cosface_r50_casia.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# The paper has no such row. Not run by this project.
_base_ = './arcface_r50_casia.py'

model = dict(head=dict(margin=dict(type='CombinedMargin', m1=1.0, m2=0.0, m3=0.4)))
