# The demo's release: reconstructions of identities that training never saw. Plain MAE's by its checkpoint.
#
# The masks come from a fixed seed, so that two runs give one table; a real release takes a secret (configs/export_casia.py).
_base_ = './demo_facemae.py'

deploy_faces = '{{$FACEMAE_DEPLOY_FACES:work_dirs/demo/faces}}'
release_dir = '{{$FACEMAE_RELEASE_DIR:work_dirs/release/demo_facemae}}'
needs = dict(deploy_faces="aligned faces: tools/prepare_orl.py makes ORL's (--cfg-options deploy_faces=PATH)")

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
            dict(type='FaceMask', patch_size=16, mask_ratio=0.75, fresh=False, seed=0),
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
