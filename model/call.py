"""Call one function of this project in a process of its own: `python -m model.call CALL.json`.

The file has `{"function": "model.evaluation.suite:evaluate", "arguments": {…}, "result": PATH}`; what the function
returns is written to PATH as JSON. With `"background_gb"`, the process keeps out of the way of all others.
"""

import contextlib
import importlib
import os
import resource
import sys
from pathlib import Path

from model.errors import KodaError, out_of_memory
from model.exit_codes import UNUSABLE
from model.files import read_json, write_json
from model.niceness import set_niceness
from model.parent import die_with_parent


def keep_back(gigabytes: float) -> None:
    """Take idle processors only, so much memory at most, and be the first to go where none is left (Linux)."""
    set_niceness(os.getpid(), 19)
    size = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> int:
    die_with_parent()
    call = read_json(Path(sys.argv[1]))
    module, name = call["function"].split(":")
    if call["background_gb"]:
        keep_back(call["background_gb"])
    try:
        result = getattr(importlib.import_module(module), name)(**call["arguments"])
    except KodaError as error:
        print(f"koda: {error}", file=sys.stderr)
        return UNUSABLE
    except (MemoryError, RuntimeError) as error:
        bound = call["background_gb"]
        if not bound or not out_of_memory(error):
            raise
        print(f"koda: {name} needs more memory than the {bound:g} GB that it may take.", file=sys.stderr)
        return UNUSABLE
    write_json(Path(call["result"]), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
