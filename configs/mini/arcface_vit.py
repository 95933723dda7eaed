# The miniature's recogniser with a small ViT (Table 5); AdamW as arcface_torch's ViTs take it.
_base_ = './arcface_r18.py'

model = dict(
    backbone=dict(_delete_=True, type='ArcFaceViT', embed_dims=128, depth=4, embedding_dim=128)
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.1))
