"""The dataset card of a release, drawn from its manifest and from what was measured since."""

import re
from collections.abc import Mapping

#: Images, and what a hub calls a set of fewer.
SIZE_CATEGORIES = {
    1_000: 'n<1K',
    10_000: '1K<n<10K',
    100_000: '10K<n<100K',
    1_000_000: '100K<n<1M',
    10_000_000: '1M<n<10M',
    100_000_000: '10M<n<100M',
    1_000_000_000: '100M<n<1B',
    10_000_000_000: '1B<n<10B',
    100_000_000_000: '10B<n<100B',
    1_000_000_000_000: '100B<n<1T',
}

CARD = """\
---
pretty_name: Faces reconstructed by FaceMAE
license: other
license_name: to-be-stated-by-the-publisher
license_link: LICENSE
task_categories:
- image-feature-extraction
tags:
- face-recognition
- privacy-preserving
- synthetic
size_categories:
- {size_category}
---
# Faces reconstructed by FaceMAE

{images:,} images of {identities:,} identities, {from_least} an identity; {size}×{size} pixels, {encoding}.
{layout} Labels are opaque numbers, and neither they nor the order carry anything of the source.{skipped}

Name of this release (SHA-256 of `manifest.json`): `{name}`
{samples}
## How it was made

By FaceMAE-MM {version}: {removed} of each {stored}-pixel face were removed{regions},
and a masked autoencoder reconstructed the face from what was left.
{pasted}

{masks}

| | SHA-256 |
|---|---|
| model | `{model}` |
| embedder φ of its training | `{phi}` |

Computed on {device} in {precision}, in chunks of {chunk} faces; threads that computed one: {threads}.
On such a device the same model, secret and faces give the same bytes.
`python tools/release.py RELEASE --verify` holds every file against the manifest.

## Leakage

How often a real photo finds its owner in this set, as the share of real photos for which one of the K nearest released
images is of the same person, with 95 % intervals over identities.

{leakage}

{originals}

## Utility

{utility}

## Limits

- Reconstruction *reduces* how often a real photo finds its owner; it does not remove it. A person who is in no interval
  above may still be found.
- Where the masked faces themselves are published, so are the masks, and each face here can be paired with its own.
- Attackers are those that are named. Others, and stronger ones, may find more.
- The faces are of nobody in particular and resemble real people. Do not use them to identify anyone.
- What the model cannot reconstruct is missing here too: rare poses, occlusions, and groups that its training showed
  seldom come out worse.

## Licence

To be stated by the publisher, in place of the fields at the head of this page. The terms of the source faces still bind
what was made from them.
"""

NOT_MEASURED = 'Not measured yet.'


def draw_card(manifest: Mapping, name: str, audit: Mapping | None = None) -> str:
    """The card, Markdown with the front matter that dataset hubs read.

    Args:
        manifest: Of the release.
        name: SHA-256 of the manifest.
        audit: What `audit.json` says; see `release/audit.py`.
    """
    mask, image, compute = manifest['mask'], manifest['image'], manifest['compute']
    counts = manifest['images_by_identity']
    audit = audit or {}
    category = next((name for most, name in SIZE_CATEGORIES.items() if manifest['images'] < most), 'n>1T')
    return CARD.format(
        size_category=category,
        images=manifest['images'],
        identities=manifest['identities'],
        from_least=f'{min(counts)} to {max(counts)}' if min(counts) < max(counts) else str(counts[0]),
        size=image['size'],
        encoding='PNG' if image['format'] == 'png' else f'JPEG of quality {image["quality"]}',
        layout=_layout(manifest),
        skipped=_skipped(manifest['errors_skipped']),
        name=name,
        samples='\n![released faces](samples.png)\n' if manifest['samples'] else '',
        version=manifest['versions']['facemae_mm'],
        removed=f'{mask["ratio"]:.0%} of the {mask["patch_size"]}×{mask["patch_size"]} patches',
        stored=mask['stored_size'],
        regions=_regions(mask),
        pasted=(
            '**The visible patches of the real faces were pasted back: this set holds real pixels.**'
            if manifest['paste_visible']
            else 'The whole image is the output of its decoder; no real pixel was pasted back.'
        ),
        masks=(
            f'Masks were drawn by a secret that its owner keeps; its commitment is `{mask["commitment"]}`.'
            if mask['public_seed'] is None
            else f'**Masks were drawn by the public seed {mask["public_seed"]}**: who guesses the key of an image '
            'knows its mask. For tests and tables, not for publication.'
        ),
        model=manifest['model_sha256'] or 'no checkpoint was named',
        phi=manifest['phi_sha256'] or 'none recorded',
        device=compute['device'],
        precision=compute['precision'],
        chunk=compute['chunk_size'],
        threads=compute['threads'],
        leakage=_leakage(audit.get('leakage')),
        originals=_originals(manifest['originals']),
        utility=_utility(audit.get('utility')),
    )


def _layout(manifest: Mapping) -> str:
    each = (
        'one folder an identity'
        if manifest['layout'] == 'folders'
        else '`train.rec` with `.idx` and `property`, as `arcface_torch` reads them'
    )
    shards = len(manifest['shards'])
    return f'{each[0].upper()}{each[1:]}.' if manifest['shards'][0]['path'] == '.' else f'{shards} shards: {each}.'


def _skipped(count: int) -> str:
    return f' {count:,} source faces could not be read and are left out.' if count else ''


def _regions(mask: Mapping) -> str:
    if not mask['regions']:
        return ', drawn at random for each image'
    named = ' and '.join(mask['regions'])
    return f': {named} alone' if mask['region_only'] else f': {named} always, others at random for each image'


def _percent(metrics: Mapping, key: str) -> str:
    if key not in metrics:
        return 'not available'
    low, high = metrics.get(f'{key}_lo'), metrics.get(f'{key}_hi')
    interval = f' [{low:.1%}, {high:.1%}]' if low is not None and high is not None else ''
    return f'{metrics[key]:.1%}{interval}'


def _leakage(attackers: Mapping[str, Mapping] | None) -> str:
    if not attackers:
        return NOT_MEASURED
    lines = [
        '| attacker | K | other photos of the person | any photo, the source too | by chance |',
        '|---|---|---|---|---|',
    ]
    notes = []
    for attacker, metrics in attackers.items():
        for k in sorted(int(found[1]) for found in map(re.compile(r'top(\d{1,9})_with').fullmatch, metrics) if found):
            without, own = _percent(metrics, f'top{k}_without'), _percent(metrics, f'top{k}_with')
            lines.append(f'| {attacker} | {k} | {without} | {own} | {_percent(metrics, f"chance_top{k}")} |')
        queries, people, gallery, left_out, owned = (
            metrics.get(key) or 0
            for key in ('queries', 'identities', 'gallery', 'left_out_identities', 'owned_identities')
        )
        notes.append(
            f'{attacker}: {queries:,.0f} real photos of {people:,.0f} identities against {gallery:,.0f} released '
            f'images; {left_out:,.0f} identities with a single real photo or no released one are left out'
            + (f', and {owned:,.0f} whose pairs attackers own' if owned else '')
            + '.'
        )
    return '\n'.join([*lines, '', *notes])


def _utility(recognisers: Mapping[str, Mapping[str, Mapping]] | None) -> str:
    if not recognisers:
        return f'How well a recogniser trained on it verifies real faces: {NOT_MEASURED.lower()}'
    lines = [
        'Verification of real faces by a recogniser trained on this set: accuracy over ten folds with 95 % interval.',
        '',
        '| recogniser | set | pairs | accuracy | TAR at FAR 1e-3 |',
        '|---|---|---|---|---|',
    ]
    for recogniser, sets in recognisers.items():
        for name, metrics in sets.items():
            tar = _percent(metrics, 'tar@far=1e-3')
            lines.append(
                f'| {recogniser} | {name} | {metrics.get("pairs", 0):,.0f} | {_percent(metrics, "accuracy")} | {tar} |'
            )
    return '\n'.join(lines)


def _originals(found: Mapping | str) -> str:
    if found == 'not checked':
        return 'Distance of each face to the real one that it was made from: not checked.'
    rows = []
    for title, key, unit in (('PSNR', 'psnr', ' dB'), ('cosine under φ', 'phi_similarity', '')):
        for whose, of in (('own source', 'own'), ('another photo of the person', 'other')):
            values = found[key][of]
            if not values['images']:
                continue
            numbers = ' | '.join(
                f'{values[name]:.3g}{unit}' for name in ('minimum', 'quantile_01', 'median', 'quantile_99', 'maximum')
            )
            rows.append(f'| {title} | {whose} | {values["images"]:,} | {numbers} |')
    return '\n'.join(
        [
            f'Closeness of each face to the real one that it was made from (φ: `{found["phi_sha256"]}`):',
            '',
            '| | to | images | minimum | 1 % | median | 99 % | maximum |',
            '|---|---|---|---|---|---|---|---|',
            *rows,
        ]
    )
