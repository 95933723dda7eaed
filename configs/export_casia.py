# Deployment: the trained FaceMAE reconstructs CASIA-WebFace (section 3.1, appendix A.1), 490,000 faces, 10,572 identities.
#
#   tools/dist_test.sh configs/export_casia.py work_dirs/facemae_vitb_webface/epoch_200.pth 8
#
# The same recipe exports plain MAE's reconstructions: give its checkpoint and another release_dir. Not run by this
# project at this size.
_base_ = './facemae_vitb_webface.py'

deploy_faces = '{{$FACEMAE_DEPLOY_FACES:data/casia-webface/train.rec}}'
release_dir = '{{$FACEMAE_RELEASE_DIR:work_dirs/release/casia_facemae}}'
mask_secret = (
    '{{$FACEMAE_MASK_SECRET:work_dirs/private/mask_secret}}'  # drawn at first use; keep it, and keep it secret
)
release_size = {{'$FACEMAE_RELEASE_SIZE:112'}}  # or 224
image_format = '{{$FACEMAE_IMAGE_FORMAT:png}}'  # or jpeg
jpeg_quality = {{'$FACEMAE_JPEG_QUALITY:95'}}
layout = '{{$FACEMAE_LAYOUT:folders}}'  # or records: train.rec, as InsightFace trains on it
shard_size = {{'$FACEMAE_SHARD_SIZE:None'}}  # bytes of faces in a shard; None for one piece
samples = {{'$FACEMAE_SAMPLES:0'}}  # faces to show on the card
on_error = '{{$FACEMAE_ON_ERROR:raise}}'  # skip leaves out faces that cannot be read
mask_ratio = {{'$FACEMAE_MASK_RATIO:0.75'}}  # Tables 3 and 8
mask_regions = '{{$FACEMAE_MASK_REGIONS:none}}'  # Table 7: eyes, nose or mouth are always removed
needs = dict(
    deploy_faces='the aligned faces to protect: a train.rec or a folder of identity folders '
    '(--cfg-options deploy_faces=PATH)',
)

model = dict(output_size=release_size)

test_dataloader = dict(
    batch_size=256,  # faces in flight; the bytes do not depend on it
    num_workers=8,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),  # the loop has an order of its own
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
                mask_ratio=mask_ratio,
                regions=[] if mask_regions == 'none' else [mask_regions],
                fresh=False,
                secret=mask_secret,
            ),
            dict(type='PackInputs', meta_keys=('img_key',)),
        ],
    ),
)
test_cfg = dict(type='ChunkTestLoop')
test_evaluator = []
env_cfg = dict(dist_cfg=dict(timeout=7 * 24 * 3600))  # the first process waits for the last one's faces

custom_hooks = [
    dict(
        type='ReconstructionExportHook',
        out_dir=release_dir,
        image_format=image_format,
        quality=jpeg_quality,
        layout=layout,
        shard_size=shard_size,
        samples=samples,
        on_error=on_error,
    ),
    dict(type='StartWeightsHook'),  # the checkpoint must fit
]
