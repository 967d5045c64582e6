"""`koda import`: a run that begins with a model that others trained."""

from dataclasses import asdict
from pathlib import Path

from flows.config import Settings
from model.errors import KodaError
from model.export import adopt
from model.export.hf_config import from_hf_config
from model.files import read_json
from tasks.pretrain import Model
from tasks.run import folder_of


def settings(folder: Path, name: str) -> Settings:
    """The settings of a run `name` that begins with the model in `folder`: its shape, its weights, its tokenizer.

    Raises KodaError for a model that Koda cannot represent, and for a run that began with a training.
    """
    if not (folder / "config.json").is_file():
        raise KodaError(f"{folder} is no Hugging Face model: it has no config.json.")
    if (folder_of(name) / "pretrain/job.json").is_file():
        raise KodaError(f"runs/{name} began with a training of its own. Give this one another --name.")
    shape = asdict(from_hf_config(read_json(folder / "config.json"), str(folder / "config.json")))
    model = {field: shape[field] for field in Model.model_fields if field in shape}
    model |= {"weights": str(folder.absolute()), "weights_sha256": adopt.fingerprint(folder)}
    return {"model": model, "tokenize": {"tokenizer": str(folder.absolute())}}
