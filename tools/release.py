"""A release after its export: is it what its manifest says, and what was measured on it, for its card."""

import argparse
from pathlib import Path

from facemae_mm.launch import refuse
from facemae_mm.release.audit import add_measurements, read_leakage, read_utility
from facemae_mm.release.check import check_release
from facemae_mm.release.manifest import read_manifest

EPILOG = """\
The manifest is final: its SHA-256 is the release's name. What is measured later goes to audit.json beside it, which
names that SHA-256, and from both the card (README.md) is drawn anew. Lines that you wrote into the card are lost then:
fill in the licence last.

examples:
  python tools/release.py work_dirs/release/casia_facemae --verify
  python tools/test.py configs/leakage_casia.py none --out leak.json --out-item metrics
  python tools/verify.py epoch_34.pth lfw.bin --out verify.json
  python tools/release.py work_dirs/release/casia_facemae --leakage R50=leak.json --utility R50=verify.json

exit codes: 0, or 2 with what is wrong."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('release', metavar='RELEASE', help='its directory, which holds manifest.json')
    add('--verify', action='store_true', help='hold every file against the manifest')
    measured = dict(nargs='+', default=[], metavar='NAME=FILE')
    add('--leakage', **measured, help='by attacker, metrics of a leakage recipe')
    add(
        '--utility',
        **measured,
        help='by recogniser, trained on the release: what tools/verify.py or tools/test.py wrote',
    )
    return parser.parse_args()


def by_name(texts: list[str]) -> dict[str, str]:
    """NAME=FILE as a dict.

    Raises:
        ValueError: Another form.
    """
    pairs = [text.partition('=') for text in texts]
    for text, (name, _, file) in zip(texts, pairs, strict=True):
        if not name or not file:
            raise ValueError(f'{text!r} is not NAME=FILE, such as R50=leak.json.')
    return {name: file for name, _, file in pairs}


def main() -> None:
    """Checks, adds, or says what the release is."""
    args = parse_args()
    try:
        if args.leakage or args.utility:
            leakage = {name: read_leakage(file) for name, file in by_name(args.leakage).items()}
            utility = {name: read_utility(file) for name, file in by_name(args.utility).items()}
            audit = add_measurements(args.release, leakage, utility)
            print(f'{audit} and the card beside it hold them.')
        if args.verify:
            print(check_release(args.release))
        if not (args.verify or args.leakage or args.utility):
            manifest, name = read_manifest(args.release)
            print(
                f'{Path(args.release)}: {manifest["images"]:,} faces of {manifest["identities"]:,} identities, '
                f'{manifest["image"]["size"]}×{manifest["image"]["size"]} {manifest["image"]["format"]}, '
                f'{manifest["mask"]["ratio"]:.0%} masked. Manifest {name}. Its files were not looked at: --verify does.'
            )
    except (OSError, ValueError) as error:
        refuse(f'release.py: {error}')
    except KeyboardInterrupt:
        refuse('release.py: interrupted.')


if __name__ == '__main__':
    main()
