"""torchrun with the exit code of the process that failed first; where a run was refused (2), without its report."""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

REFUSED = 2  # as facemae_mm.launch says; not imported, so that nothing is loaded twice


def main(args: list[str] | None = None) -> int:
    """Takes torchrun's arguments."""
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    try:
        run(parse_args(args))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code != REFUSED:
            print(error, file=sys.stderr)
        if code < 0:
            print(
                f'A process was ended by signal {-code} (9: killed, often for want of memory). An export goes on with '
                'the same command, a training with --resume.',
                file=sys.stderr,
            )
        return code if code > 0 else 1  # a signal counts as 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
