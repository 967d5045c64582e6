"""`koda import`: a run that begins with a model that others trained."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.run import run
from flows.cli.settings import add_set, pairs
from flows.server.embedded import prepare_environment
from model.errors import KodaError

if TYPE_CHECKING:
    from flows.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="config.json, safetensors and the tokenizer")
    parser.add_argument("--name", required=True, help="the run's name")
    parser.add_argument("--preset", default="tiny", help="what the stages after it are set to (default: tiny)")
    add_set(parser)


def main(arguments: argparse.Namespace) -> None:
    prepare_environment()  # before anything imports Prefect
    from flows.config import parsed

    chosen = parsed(pairs(arguments))
    for section, values in settings(arguments.folder, arguments.name).items():
        chosen[section] = values | chosen.get(section, {})
    run(arguments.name, arguments.preset, "", "checkpoint", chosen)
    print(f"  go on with koda run --name {arguments.name} --from sft")


def settings(folder: Path, name: str) -> "Settings":
    """The settings of a run `name` that begins with the model in `folder`: its shape, its weights, its tokenizer.

    Raises KodaError for a model that Koda cannot represent, and for a run that began with a training.
    """
    from model.export import adopt
    from model.export.hf_config import from_hf_config
    from model.files import read_json
    from tasks.pretrain import Model
    from tasks.runs.paths import folder_of

    if not (folder / "config.json").is_file():
        raise KodaError(f"{folder} is no Hugging Face model: it has no config.json.")
    if (folder_of(name) / "pretrain/job.json").is_file():
        raise KodaError(f"runs/{name} began with a training of its own. Give this one another --name.")
    shape = asdict(from_hf_config(read_json(folder / "config.json"), str(folder / "config.json")))
    model = {field: shape[field] for field in Model.model_fields if field in shape}
    model |= {"weights": str(folder.absolute()), "weights_sha256": adopt.fingerprint(folder)}
    return {"model": model, "tokenize": {"tokenizer": str(folder.absolute())}}
