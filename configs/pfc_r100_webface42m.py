# CosFace R100 with PartialFC on WebFace42M: 2,059,906 identities, class-sharded over the processes, a fifth of each
# process's classes in a step; arcface_torch's wf42m_pfc02_r100: 20 epochs, polynomial of power 1, no warm-up, 8 × 128.
#
#   tools/dist_train.sh configs/pfc_r100_webface42m.py 8 --cfg-options recognition_faces=webface42m/train.rec
#
# The class weights and their momentum take 8.4 GB, 1.1 GB of each of 8 processes. The paper has no such row (its
# appendix A.1 trains on CASIA-WebFace). Not run by this project.
_base_ = './arcface_r50_casia.py'

num_classes = {{'$FACEMAE_NUM_CLASSES:2059906'}}
model = dict(
    backbone=dict(depth=100),
    head=dict(
        type='PartialFCHead',
        num_classes=num_classes,
        sample_rate=0.2,
        margin=dict(type='CombinedMargin', m1=1.0, m2=0.0, m3=0.4),
    ),
)
auto_scale_lr = dict(base_batch_size=1024)
param_scheduler = [dict(type='PolyLR', power=1, eta_min=0, begin=0, end=20, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=20)
