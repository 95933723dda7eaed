# The plugin and its hooks alone, for recipes that take everything else from MMPretrain's.
custom_imports = dict(imports=['facemae_mm'], allow_failed_imports=False)

custom_hooks = [
    dict(type='StartWeightsHook'),  # load_from: converts others' names, refuses what does not fit
    dict(type='PreprocessorCheckHook'),  # mean, std and channel order of IRMLoss
    dict(type='FaceEpochHook'),  # fresh masks in each epoch
    dict(type='InvalidLossHook'),  # NaN: stop, say where
]
