"""Call one function of this project in a process of its own: `python -m model.process CALL.json`.

The file says `{"function": "model.evaluation.suite:evaluate", "arguments": {…}, "result": PATH}`; what the function
returns is written to PATH as JSON.
"""

import importlib
import sys
from pathlib import Path

from model.errors import KodaError
from model.files import read_json, write_json
from model.training.protocol import UNUSABLE, die_with_parent


def main() -> int:
    die_with_parent()
    call = read_json(Path(sys.argv[1]))
    module, name = call["function"].split(":")
    try:
        result = getattr(importlib.import_module(module), name)(**call["arguments"])
    except KodaError as error:
        print(f"koda: {error}", file=sys.stderr)
        return UNUSABLE
    write_json(Path(call["result"]), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
