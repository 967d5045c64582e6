"""Where the model is that a command line names."""

import re
from pathlib import Path
from typing import NamedTuple

from model.errors import KodaError
from model.files import COMMIT
from model.training.records import CHECKPOINTS, lasting_first
from tasks.runs.paths import NAME, RUN_TOML, folder_of
from tasks.runs.up_to_date import check_inputs

STAGES = ("extend", "sft", "checkpoint")  # a run's name means the weights of the last of these that is done
TOKENIZER = "tokenize/tokenizer.json"


class Located(NamedTuple):
    """A model, and the folder `tokenize` of the run that it belongs to, if it belongs to one."""

    name: str
    path: Path
    tokens: Path | None


def locate(model: str) -> Located:
    """What MODEL names: a path to a model, a run, or RUN/STAGE.

    Raises KodaError for anything else, and for a run whose last weights are stale.
    """
    path = Path(model)
    if path.is_file() or any((path / name).is_file() for name in (COMMIT, "config.json")):
        run = next((parent for parent in path.absolute().parents if (parent / TOKENIZER).is_file()), None)
        return Located(model, path, run / "tokenize" if run else None)
    name, _, stage = model.partition("/")
    if not re.fullmatch(NAME, name) or not (folder_of(name) / RUN_TOML).is_file():
        raise KodaError(f"{model} is not a model: no run has that name, and no folder or file with a model.")
    folder = folder_of(name)
    if stage not in ("", *STAGES, "pretrain"):
        raise KodaError(f"{model}: weights are in {', '.join((*STAGES, 'pretrain'))}.")
    places = [folder / one / "weights" for one in STAGES if stage in ("", one)]
    if stage in ("", "pretrain"):
        checkpoints = folder / "pretrain" / CHECKPOINTS
        places += [checkpoints / str(step) for step in lasting_first(checkpoints)]
    weights = next((place for place in places if (place / COMMIT).is_file()), None)
    if weights is None:
        raise KodaError(f"{model} has no weights yet: the command that began the run goes on with it.")
    if not stage:
        check_inputs(folder, weights.relative_to(folder).parts[0])
    return Located(model, weights, folder / "tokenize")
