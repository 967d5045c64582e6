"""`python -m model.training JOB.json UNTIL`: train to step UNTIL, from the newest checkpoint if there is one."""

import sys
from pathlib import Path

from model.errors import KodaError
from model.training.job import Job
from model.training.loop import train
from model.training.protocol import UNUSABLE, die_with_parent


def main() -> int:
    die_with_parent()
    try:
        return train(Job.read(Path(sys.argv[1])), until=int(sys.argv[2]))
    except KodaError as error:
        print(f"koda: {error}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
