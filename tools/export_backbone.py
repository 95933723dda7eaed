"""Exports a trained recogniser: weights for arcface_torch or AdaFace, ONNX for InsightFace, class weights."""

import argparse
import sys
from pathlib import Path

from facemae_mm.backbone_export import load_recogniser, save_class_weights, save_onnx, save_state_dict
from facemae_mm.command_line import add_options, read_recipe
from facemae_mm.launch import refuse

WRITERS = {'.onnx': save_onnx, '.pth': save_state_dict, '.pt': save_state_dict, '.ckpt': save_state_dict}

EXAMPLES = """\
  export_backbone.py configs/arcface_r50_casia.py work_dirs/arcface_r50_casia/epoch_34.pth r50.pth r50.onnx

OUT.pth (.pt, .ckpt) is what arcface_torch's get_model('r50') loads strictly, for AdaFaceIR what AdaFace loads. OUT.onnx
is a recognition model of an InsightFace pack: insightface.model_zoo.get_model('r50.onnx'). OUT.npy: the weights of all
classes, (C, D) float32, row by label. CHECKPOINT may also be a backbone that a peer published. Give the --cfg-options
of the training here too."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help='recipe of the recogniser')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='its checkpoint')
    parser.add_argument(
        'out', metavar='OUT', nargs='+', type=Path, help='files to write, by ending: .pth, .onnx or .npy'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT where it exists')
    add_options(parser)
    parser.set_defaults(launcher='none')
    args = parser.parse_args()
    for out in args.out:
        if out.suffix not in (*WRITERS, '.npy'):
            refuse(f'export_backbone.py: {out} ends with none of {", ".join(WRITERS)}, .npy. Name it so.')
        if out.exists() and not args.overwrite:
            refuse(f'export_backbone.py: {out} exists already. Name another file, or give --overwrite.')
    config = read_recipe(args)
    try:
        model = load_recogniser(config, args.checkpoint)
        for out in args.out:
            source, write = (
                (model, WRITERS[out.suffix]) if out.suffix in WRITERS else (args.checkpoint, save_class_weights)
            )
            print(write(source, out), flush=True)
    except (OSError, ValueError, ImportError) as error:
        refuse(f'export_backbone.py: {error}')
    except KeyboardInterrupt:
        sys.exit('export_backbone.py: interrupted')


if __name__ == '__main__':
    main()
