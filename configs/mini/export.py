# The miniature's release: reconstructions of people that training never saw. Plain MAE's by its checkpoint.
#
#   python tools/test.py configs/mini/export.py CHECKPOINT --cfg-options deploy_faces=PATH release_dir=PATH
#
# The masks come from a fixed seed, as Table 7 compares seeds; a real release takes a secret (configs/export_casia.py).
_base_ = './facemae.py'

deploy_faces = '{{$FACEMAE_DEPLOY_FACES:work_dirs/mini/parts/deploy}}'
release_dir = '{{$FACEMAE_RELEASE_DIR:work_dirs/mini/release}}'
paste_visible = {{'$FACEMAE_PASTE_VISIBLE:False'}}  # real pixels in the release: a baseline alone
needs = dict(deploy_faces='a part of LFW: tools/split_lfw.py makes them (--cfg-options deploy_faces=PATH)')

model = dict(paste_visible=paste_visible)
test_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='FaceRecordDataset',
        source=deploy_faces,
        test_mode=True,
        pipeline=[
            dict(type='LoadFace', size=112),
            dict(
                type='FaceMask',
                patch_size=8,
                mask_ratio=_base_.mask_ratio,
                regions=[] if _base_.mask_regions == 'none' else [_base_.mask_regions],
                fresh=False,
                seed=_base_.seed,
            ),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)
test_cfg = dict(type='ChunkTestLoop')
test_evaluator = []
custom_hooks = [
    dict(type='ReconstructionExportHook', out_dir=release_dir),
    dict(type='StartWeightsHook'),  # the checkpoint must fit
]
