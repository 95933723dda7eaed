# Attackers of a released set of faces, for tools/audit.py; each runs by itself, and the worst is the headline.
#
#   tools/audit.py REAL RELEASED --links LINKS --attackers configs/audit.py --cfg-options attacker_embedder=weights/r50.pth
#
# An embedder is whatever `open_embedder` opens: 'dlib', an InsightFace pack, a checkpoint. Nothing in an ONNX graph says
# how its input was normalised; where that is not as the class declares, give three numbers:
#
#   --cfg-options second_embedder=weights/pack second_mean=123.675/116.28/103.53 second_std=58.395/57.12/57.375
custom_imports = dict(imports=['facemae_mm.audit.attackers'], allow_failed_imports=False)

attacker_embedder = '{{$FACEMAE_ATTACKER_EMBEDDER:dlib}}'  # as it is, and what the attackers that learn start from
attacker_mean = '{{$FACEMAE_ATTACKER_MEAN:own}}'
attacker_std = '{{$FACEMAE_ATTACKER_STD:own}}'
second_embedder = '{{$FACEMAE_SECOND_EMBEDDER:none}}'  # one more attacker, as it is
second_mean = '{{$FACEMAE_SECOND_MEAN:own}}'
second_std = '{{$FACEMAE_SECOND_STD:own}}'

embedder = dict(
    checkpoint=attacker_embedder,
    mean=None if attacker_mean == 'own' else [float(number) for number in attacker_mean.split('/')],
    std=None if attacker_std == 'own' else [float(number) for number in attacker_std.split('/')],
)
attackers = dict(
    embedder=dict(type='EmbedderAttacker', embedder=embedder),  # the paper's, section 3.4
    linear_map=dict(type='LinearMapAttacker', embedder=embedder, pairs=20000),
    fine_tuned=dict(type='FineTunedAttacker', embedder=embedder, faces=10000),  # of 5,000 pairs
    demasking=dict(type='DemaskingAttacker', embedder=embedder, faces=5000),
)
if second_embedder != 'none':
    attackers['second_embedder'] = dict(
        type='EmbedderAttacker',
        embedder=dict(
            checkpoint=second_embedder,
            mean=None if second_mean == 'own' else [float(number) for number in second_mean.split('/')],
            std=None if second_std == 'own' else [float(number) for number in second_std.split('/')],
        ),
    )
