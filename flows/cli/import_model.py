"""`koda import`: a run that begins with a model that others trained."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.run import run
from flows.cli.settings import add_set, pairs
from flows.server.embedded import prepare_environment
from model.errors import KodaError

if TYPE_CHECKING:
    from flows.config import Settings
    from model.export.original import Original


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a Hugging Face folder (safetensors) or a .gguf file of a Llama"
    )
    parser.add_argument("--name", required=True, help="the run's name")
    parser.add_argument("--preset", default="tiny", help="what the stages after it are set to (default: tiny)")
    add_set(parser)


def main(arguments: argparse.Namespace) -> None:
    from model.export import original
    from tasks.runs.paths import folder_of

    if (folder_of(arguments.name) / "pretrain/job.json").is_file():
        raise KodaError(f"runs/{arguments.name} began with a training of its own. Give this one another --name.")
    given = pairs(arguments)
    model = original.read(arguments.model, given.get("tokenize.template", "own"))  # refuse before Prefect is imported
    prepare_environment()
    from flows.config import load, parsed

    chosen = parsed(given)
    factor = load(arguments.preset, chosen).extend.factor if "factor" in chosen.get("extend", {}) else 1
    if model.shape.rope_scaling != "none" and factor > 1:
        raise KodaError(
            f"{arguments.model}: its positions are scaled already ({model.shape.rope_scaling}), so that extend.factor "
            "can only be 1."
        )
    for section, values in settings(model).items():
        chosen[section] = values | chosen.get(section, {})
    run(arguments.name, arguments.preset, "", "checkpoint", chosen)
    print("\n".join(f"  {line}" for line in _notes(model, chosen)))
    print(f"  go on with koda run --name {arguments.name} --from sft")


def settings(model: "Original") -> "Settings":
    """The settings of a run that begins with this model: its shape, weights and tokenizer, and what its card says."""
    from model.export import adopt
    from tasks.pretrain import Model

    shape, path = asdict(model.shape), str(model.path.absolute())
    chosen: Settings = {
        "model": {field: shape[field] for field in Model.model_fields if field in shape}
        | {"weights": path, "weights_sha256": adopt.fingerprint(model.path)},
        "tokenize": {"tokenizer": path},
        "about": {
            "license": model.license or "other",
            "language": list(model.languages),
            "base_model": model.repository,
        },
    }
    if model.shape.rope_scaling != "none":
        chosen["extend"] = {"factor": 1}  # positions are scaled once
    if model.dtype != "float32":
        chosen["convert"] = {"hf_dtype": model.dtype}  # fine-tuning computes in float32
    return chosen


def _notes(model: "Original", chosen: "Settings") -> Iterator[str]:
    """What the exports will say of the model, and what was not stated."""
    vocabulary = model.vocabulary
    ends = ", ".join(map(vocabulary.text_of, vocabulary.stops))
    template = "its own" if vocabulary.special.template else "of Koda"
    yield f"chat template {template}; an answer ends with {ends}"
    about = chosen["about"]
    missing = [f"about.{name}" for name, value in about.items() if value in ("", [], "other")]
    yield f"licence {about['license']}" + (f"; not stated, to be set: {', '.join(missing)}" if missing else "")
    if "extend" in chosen and chosen["extend"].get("factor") == 1:
        yield "its context stays as it is (extend.factor = 1)"
