"""torchrun with the exit code of the process that failed first; where a run was refused (2), without its report."""

import logging
import os
import sys
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

LAUNCHER = ['--launcher', 'pytorch']
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


def run_again(processes: int) -> NoReturn:
    """Runs this command in several processes, each told so by `--launcher pytorch`, and ends as they did."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # torchrun would say so at length; start_processes sets torch's
    sys.exit(main(['--standalone', f'--nproc_per_node={processes}', *sys.argv, *LAUNCHER]))


def typed_words(processes: int) -> list[str]:
    """The words of this command as the user typed them, without what `run_again` added."""
    return sys.argv[:-2] if processes > 1 and sys.argv[-2:] == LAUNCHER else sys.argv


if __name__ == '__main__':
    sys.exit(main())
