# The miniature's recogniser on synthetic faces blended with those of few labelled real people: SynFace's domain mixup.
#
#   python tools/train.py configs/mini/arcface_domain_mixup.py --cfg-options num_classes=508 \
#       recognition_faces=work_dirs/mini/synthetic real_faces=work_dirs/mini/parts/train
#
# recognition_faces are the synthetic ones; SynFace's own released folder serves as well.
_base_ = './arcface_r18.py'

real_faces = '{{$FACEMAE_REAL_FACES:work_dirs/mini/parts/train}}'
real_people = {{'$FACEMAE_REAL_PEOPLE:77'}}  # a tenth of W's 774 with two images or more; SynFace: 2,000 beside 10,000
needs = dict(real_faces='a set with identities, such as a part of LFW (--cfg-options real_faces=PATH)')

model = dict(head=dict(type='DomainMixupHead', num_classes=_base_.num_classes + real_people))
train_dataloader = dict(
    collate_fn=dict(type='mix_domains'),
    dataset=dict(
        _delete_=True,
        type='DomainPairs',
        synthetic=dict(source=_base_.recognition_faces, pipeline=_base_.train_dataloader.dataset.pipeline),
        real=dict(source=real_faces, pipeline=_base_.train_dataloader.dataset.pipeline),
        real_people=real_people,
    ),
)
