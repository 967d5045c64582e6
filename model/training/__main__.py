"""`python -m model.training JOB.json [UNTIL]`: train to step UNTIL, or to the last, from the newest checkpoint."""

import sys
import time
from pathlib import Path

BEGAN = time.time()  # before the imports, which take a second or two of the life


def main() -> int:
    from model.errors import KodaError
    from model.training.job import Job
    from model.training.loop import train
    from model.training.protocol import UNUSABLE, die_with_parent

    die_with_parent()
    try:
        job = Job.read(Path(sys.argv[1]))
        return train(job, int(sys.argv[2]) if len(sys.argv) > 2 else job.recipe.steps, BEGAN)
    except KodaError as error:
        print(f"koda: {error}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
