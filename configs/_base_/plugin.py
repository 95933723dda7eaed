# The plugin and its hooks alone, for recipes that take everything else from MMPretrain's.
custom_imports = dict(imports=['facemae_mm'], allow_failed_imports=False)

custom_hooks = [
    dict(type='StartWeightsHook'),  # load_from: converts others' names, refuses what does not fit
    dict(type='IRMTargetCheckHook'),  # is what φ will see a face
    dict(type='EmbedderCheckHook'),  # does φ tell the training set's people apart
    dict(type='KeyedRandomnessHook'),  # fresh masks in each epoch; one seed, one result
    dict(type='ReconstructionPanelHook', interval=500),  # faces to look at: original, masked, output
    dict(type='DivergenceHook'),  # NaN, or a loss gone up for good: stop, say where
]
