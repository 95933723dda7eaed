# The miniature's recogniser: a narrow IResNet-18 with ArcFace, trained from scratch on one set of faces, verified on the
# pairs of folds 9 and 10, whose people nobody trains on.
#
#   python tools/train.py configs/mini/arcface_r18.py --cfg-options recognition_faces=PATH num_classes=N
#   python tools/test.py configs/mini/arcface_r18.py work_dirs/arcface_r18/epoch_10.pth --out metrics.json --out-item metrics
_base_ = '../demo_arcface.py'

recognition_faces = '{{$FACEMAE_RECOGNITION_FACES:work_dirs/mini/release}}'
num_classes = {{'$FACEMAE_NUM_CLASSES:508'}}
verification_faces = '{{$FACEMAE_VERIFICATION_FACES:work_dirs/mini/parts/test}}'
verification_pairs = '{{$FACEMAE_VERIFICATION_PAIRS:work_dirs/mini/parts/pairs.csv}}'
answers = '{{$FACEMAE_ANSWERS:work_dirs/mini/answers.csv}}'  # of a test, pair by pair
seed = {{'$FACEMAE_SEED:0'}}  # of weights, order and flips
epochs = {{'$FACEMAE_EPOCHS:10'}}  # 44 × 64 faces each of C's 2,843
needs = dict(
    recognition_faces='a release, or another set with 508 identities (--cfg-options recognition_faces=PATH num_classes=N)',
    verification_faces='a part of LFW: tools/split_lfw.py makes them (--cfg-options verification_faces=PATH)',
    verification_pairs='pairs.csv beside the parts of LFW (--cfg-options verification_pairs=PATH)',
)

model = dict(head=dict(num_classes=num_classes))  # again: a base reads its own default
test_dataloader = dict(
    dataset=dict(sets=dict(_delete_=True, lfw=dict(source=verification_faces, pairs=verification_pairs)))
)
test_evaluator = dict(answers=answers)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=1, convert_to_iter_based=True),
    dict(type='PolyLR', power=1, eta_min=0, begin=1, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=seed)
