# ArcFace R50 on a released CASIA-WebFace by arcface_torch's current schedule: 20 epochs, polynomial of power 1 in every
# iteration, no warm-up. The rest is appendix A.1's.
#
#   tools/dist_train.sh configs/arcface_r50_casia_poly.py 4 --cfg-options recognition_faces=PATH num_classes=N
#
# The paper follows the older steps (arcface_r50_casia.py), so no number of its belongs here. Not run by this project.
_base_ = './arcface_r50_casia.py'

param_scheduler = [dict(type='PolyLR', power=1, eta_min=0, begin=0, end=20, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=20)
