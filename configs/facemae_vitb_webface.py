# FaceMAE on 10 % of WebFace260M, the paper's model (section 4.2; Tables 1 to 8).
#
#   tools/dist_train.sh configs/facemae_vitb_webface.py 8
#
# Instance relation matching (Eq. 2, β = 1) in the feature space of InsightFace's R50, in place of MSE. Deployed on
# CASIA-WebFace the paper reaches LFW 99.23, CFP-FP 90.80, AgeDB 90.25 with an R50 recogniser. Not run by this project.
_base_ = './mae_vitb_webface.py'

phi_weights = '{{$FACEMAE_PHI_WEIGHTS:weights/ms1mv3_arcface_r50_fp16/backbone.pth}}'
phi_cache = '{{$FACEMAE_PHI_CACHE:work_dirs/phi_features}}'  # folder; none computes φ(original) at every step
needs = dict(
    phi_weights='the weights of φ, an arcface_torch IResNet-50 (its model zoo has ms1mv3_arcface_r50_fp16), as a '
    'state dict (--cfg-options phi_weights=PATH)',
)

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='IRMLoss',
            phi=dict(
                type='FaceEmbedder',
                backbone=dict(type='IResNet', depth=50),
                checkpoint=phi_weights,
                precision='bfloat16',  # as arcface_torch trains it; the loss itself stays float32
            ),
            beta=1.0,  # N = 256 per process, as in the paper; with another N take β · √(256 / N)
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            # φ(original) is computed once: 4 KiB a face with both flips, 17 GiB for 4.2 million.
            cache=None if phi_cache == 'none' else phi_cache,
        )
    )
)
