"""The card of a model, and the files of the Hub beside it, as people and the Hub's own library read them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # huggingface_hub needs it as well
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from pydantic import ValidationError

from model.export.formats import FORMATS
from model.files import read_json, write_json
from tasks.about import About
from tasks.publish import Publish, lay_out
from tasks.reports.model_card import card
from tasks.runs.record import RECORD, read_built
from tests.hub import Hub
from tests.records import FIGURES, PLACES, READS, write_record, write_run

RESULTS = {0.575, 0.65, 0.99, 0.36, 0.44}  # the quoted figure of each task


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run in which only publish is left to do."""
    run = tmp_path / "runs/tiny"
    write_run(run)
    return run


@pytest.mark.parametrize("kind", PLACES)
def test_card_has_the_figures_of_the_run_for_the_hub_and_for_people(hub: Hub, run: Path, kind: str) -> None:
    inputs: Any = [read_built(run, stage) for stage in READS]
    text = card(FORMATS[kind], "tiny", PLACES[kind], About(author="Ada"), *inputs)
    read = ModelCard(text)
    read.validate()
    results = read.data.eval_results or []
    assert len(results) == len(RESULTS) and {result.metric_value for result in results} == RESULTS
    index = read.data.to_dict()["model-index"]
    assert len({json.dumps(result["dataset"]) for result in index[0]["results"]}) == len(RESULTS)
    assert {("allenai/ai2_arc", "ARC-Easy"), ("aps/super_glue", "boolq")} <= {
        (result.dataset_type, result.dataset_config) for result in results
    }
    assert read.data.license == "apache-2.0" and read.data.datasets == ["user/stories"]
    assert read.data.language == ["en"]  # what the exports state
    sections = ["How to run it", "Architecture", "Training", "Evaluation", "Data", "Limits", "Lineage"]
    assert [line for line in re.findall("^## (.+)$", text, re.MULTILINE) if line in sections] == sections
    for figure in ("by Ada", "2,410,176", "2,457,600", "1.429", "57.5 ± 3.5", "3,408,653", "| `hidden_size` | 192 |"):
        assert figure in text


@pytest.mark.parametrize(
    ("kind", "where", "steps", "base_model", "relation"),
    [
        ("hf", "user/tiny", 150, "their/model", "finetune"),
        ("hf", "user/tiny", 0, "their/model", None),  # the same weights
        ("gguf", "user/tiny-GGUF", 150, "user/tiny", "quantized"),
        ("mlx", ".", 150, "their/model", "finetune"),
        ("mlx", ".", 0, "their/model", "quantized"),
        ("hf", "user/tiny", 150, "", None),  # trained from scratch
        ("gguf", ".", 150, "", None),
    ],
)
def test_card_names_what_the_model_was_made_of_and_how(
    run: Path, kind: str, where: str, steps: int, base_model: str, relation: str | None
) -> None:
    for stage in ("sft", "extend"):
        write_record(run, stage, replace(FIGURES[stage], steps=steps))
    inputs: Any = [read_built(run, stage) for stage in READS]
    about = About(base_model="their/model" if base_model else "", language=("de", "no"))
    data = ModelCard(card(FORMATS[kind], "tiny", where, about, *inputs, "user/tiny-2")).data
    assert (data.base_model, data.get("base_model_relation")) == (base_model or None, relation)
    assert data.language == ["de", "no"] and data.get("new_version") == "user/tiny-2"


def test_only_the_model_itself_names_a_newer_version(hub: Hub, run: Path, tmp_path: Path) -> None:
    inputs: Any = [read_built(run, stage) for stage in READS]
    lay_out(tmp_path, Publish(new_version="user/tiny-2"), "", About(), *inputs)
    newer = {kind: ModelCard.load(tmp_path / kind / "README.md").data.get("new_version") for kind in PLACES}
    assert newer == {"hf": "user/tiny-2", "gguf": None, "mlx": None}
    for name in ("tiny", "user/a b"):
        with pytest.raises(ValidationError, match=re.escape(f"publish.new_version = {name!r}")):
            Publish(new_version=name)


@pytest.mark.parametrize("to", ["local", "user/tiny"])
def test_what_is_published_is_read_by_the_hubs_own_library(run: Path, tmp_path: Path, to: str) -> None:
    """Without a network: the card with its model-index, to the same YAML again; every name; .eval_results."""
    inputs: Any = [read_built(run, stage) for stage in READS]
    formats = lay_out(tmp_path, Publish(to=to), "", About(base_model="their/model"), *inputs)
    for format_ in formats:
        loaded = ModelCard.load(tmp_path / format_.name / "README.md")
        written = yaml.safe_load(loaded.content.split("---\n")[1])
        assert loaded.data.to_dict() == written == yaml.safe_load(loaded.data.to_yaml())
        name, results = model_index_to_eval_results(written["model-index"])
        assert name == "tiny" and {result.metric_value for result in results} == RESULTS
        for repository in (written["base_model"], *written["datasets"]):
            validate_repo_id(repository)
    files = sorted((tmp_path / "hf/.eval_results").iterdir())
    entries = [entry for file in files for entry in parse_eval_result_entries(yaml.safe_load(file.read_text()))]
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("allenai/ai2_arc", "ARC-Easy", 0.36),
        ("aps/super_glue", "boolq", 0.44),
    ]
    assert {entry.date for entry in entries} == {"2026-11-25T10:00:00Z"}
    assert entries[0].notes == "zero-shot, acc_norm of 100 items, split test, as lm-evaluation-harness scores it"


def test_tasks_that_were_scored_in_part_are_no_result_of_a_benchmark(run: Path, tmp_path: Path) -> None:
    """They stay in the card, with their number of items."""
    record = read_json(run / "evaluate" / RECORD)
    write_json(run / "evaluate" / RECORD, {**record, "settings": {"evaluate": {"standard_items": 100}}})
    inputs: Any = [read_built(run, stage) for stage in READS]
    lay_out(tmp_path, Publish(), "", About(), *inputs)
    assert not (tmp_path / "hf/.eval_results").exists()
    assert len(ModelCard.load(tmp_path / "hf/README.md").data.eval_results or []) == len(RESULTS)
