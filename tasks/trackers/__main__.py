"""Mirror a training to a tracker until standard input ends: `python -m tasks.trackers NAME FOLDER`.

A run's process starts it and closes that end. With `< /dev/null` it sends what the tracker does not have yet, and ends.
"""

import argparse
import select
import sys
import traceback
from pathlib import Path

from model.errors import KodaError, one_line
from model.parent import die_with_parent
from tasks.trackers import TRACKERS, check_trackers
from tasks.trackers.mirror import mirror


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m tasks.trackers", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=TRACKERS)
    parser.add_argument("training", type=Path, help="the folder of a training, as runs/tiny/pretrain")
    arguments = parser.parse_args()
    try:
        check_trackers([arguments.name])
        mirror(TRACKERS[arguments.name](), arguments.training, stdin_ends_within)
    except KodaError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # each library has exceptions of its own
        traceback.print_exc()
        print(one_line(error), file=sys.stderr)  # the last line of the log is the cause
        return 1
    return 0


def stdin_ends_within(seconds: float) -> bool:
    """Wait for the end of standard input, which nobody writes to."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    sys.exit(main())
