import re
import shutil
import tomllib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from flows.config import as_toml, load, parsed, presets
from model.errors import KodaError
from model.figures import CorpusFigures
from tasks.pretrain import segment_ends
from tasks.runs.record import Built
from tests.records import FIGURES, write_record


@pytest.mark.parametrize("preset", presets())
def test_presets_survive_a_round_trip_through_toml(preset: str) -> None:
    config = load(preset)
    written = tomllib.loads(as_toml(preset, config))
    assert written.pop("preset") == preset
    assert written == config.model_dump(mode="json")


def test_reference_preset_has_its_parameter_count() -> None:
    assert load("koda-1.3b").model.llama(50257).parameters == 1_269_209_088


def test_overrides_are_parsed_to_their_types() -> None:
    overrides = {"pretrain.steps": "7", "tokenize.source": "a/b", "pretrain.learning_rate": "1e-3"}
    config = load("tiny", parsed(overrides))
    assert (config.pretrain.steps, config.tokenize.source, config.pretrain.learning_rate) == (7, "a/b", 1e-3)


@pytest.mark.parametrize(
    "name", ["2024", "2024.5", "1e5", "0x10", "inf", "true", "2024-01-01", "08:30:00", "7 # seven", "docs", "a b"]
)
def test_a_setting_that_takes_a_string_takes_what_was_typed(name: str) -> None:
    settings = {"tokenize.source": name, "sft.source": name, "tokenize.tokenizer": name, "about.author": name}
    config = load("tiny", parsed(settings))
    read = (config.tokenize.source, config.sft.source, config.tokenize.tokenizer, config.about.author)
    assert read == (name,) * 4


def test_a_setting_that_takes_a_string_among_others_is_read_as_toml() -> None:
    config = load("tiny", parsed({"tokenize.source": '"2024"', "sft.source": '{docs = 1, "2024" = 2.5}'}))
    assert config.tokenize.source == "2024" and config.sft.source == {"docs": 1, "2024": 2.5}
    assert load("tiny", parsed({"tokenize.quality": "true"})).tokenize.quality is True


@pytest.mark.parametrize("text", ["Q8_0", '"Q8_0"', '["Q8_0"]'])
def test_one_text_where_several_are_taken_is_a_list_of_one(text: str) -> None:
    config = load("tiny", parsed({"convert.gguf": text, "about.language": "en", "sft.metadata": "2024"}))
    assert (config.convert.gguf, config.about.language, config.sft.metadata) == (("Q8_0",), ("en",), ("2024",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain.step": "7"}, r"no setting pretrain\.step \(did you mean steps\?\)"),
        ({"pretrian.steps": "7"}, r"did you mean pretrain\?"),
        ({"steps": "7"}, r"section\.key"),
        ({"tokenize.source": "caf\udce9"}, r"tokenize\.source = 'caf\\udce9' is not UTF-8.* Rename"),
        ({"tokenize.sources": "2024"}, r"no setting tokenize\.sources \(did you mean source\?\)"),
        ({"tokeniz.source": "2024"}, r"did you mean tokenize\?"),
        ({"pretrain.steps": "many"}, r"pretrain\.steps = 'many': input should be a valid integer"),
        ({"pretrain.steps": "0"}, r"pretrain\.steps = 0: input should be greater than 0"),
        ({"model.num_attention_heads": "9", "model.num_key_value_heads": "4"}, "9 is not a multiple .*\n.*8 or 12"),
        ({"model.hidden_size": "102"}, r"model\.hidden_size = 102 is not a multiple"),
        ({"model.hidden_size": "20"}, "size must be even"),
        ({"sft.lora_targets": '["q_prj"]'}, "q_prj"),
        ({"tokenize.source": '["a.txt"]'}, r"^tokenize\.source = \['a\.txt'\]: .* string or a valid dictionary\.$"),
        ({"tokenize.source": "{docs = inf, x = 1}"}, r"^tokenize\.source\.docs = inf: .* a finite number\.$"),
        ({"pretrain.learning_rate": "inf"}, r"^pretrain\.learning_rate = inf: input should be a finite number\.$"),
        ({"extend.factor": "nan"}, r"^extend\.factor = nan: input should be a finite number\.$"),
        ({"convert.gguf": "Q9"}, r"^convert\.gguf\.0 = 'Q9': input should be 'auto', 'F32', "),
        ({"model.qk_norm": "true"}, r"model\.qk_norm = true: hf, gguf, mlx .* has no norm on queries"),
        ({"publish.to": "tiny"}, r"publish\.to = 'tiny': it takes `local`, or USER/NAME"),
        *(
            ({"publish.to": to}, rf"^publish\.to = '{re.escape(to)}': .*'{re.escape(named)}'")
            for to, named in (
                ("not/a repository", "not/a repository"),
                ("user/a--b", "user/a--b"),
                ("user/a..b", "user/a..b"),
                ("user/a.", "user/a."),
                ("user/a-", "user/a-"),
                ("user/a.git", "user/a.git"),
                ("user/a/b", "user/a/b"),
                ("user/" + "a" * 92, "user/" + "a" * 92 + "-GGUF"),
            )
        ),
    ],
)
def test_invalid_settings_are_refused_by_name(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(KodaError, match=message):
        load("tiny", parsed(overrides))


def test_a_name_among_several_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(KodaError, match=r"^sft\.source = .*caf\\udce9.* is not UTF-8"):
        load("tiny", {"sft": {"source": {"docs": 1, "caf\udce9": 1}}})


def test_longest_repository_name_of_the_hub_is_accepted() -> None:
    assert load("tiny", {"publish": {"to": "user/" + "a" * 91}}).publish.to.endswith("aaa")


def test_files_are_looked_for_before_the_first_stage_runs(tmp_path: Path) -> None:
    """Those of all stages that will run: a wrong sft.source must not be found after pretraining."""
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "text.txt").write_text("Text.")
    for name, setting, message in (
        ("nowhere", "sft.source", "sft.source = .* does not exist"),
        ("rows.csv", "sft.source", "sft.source = .* does not end in .jsonl"),
        ("text.txt", "sft.source", "sft.source = .* does not end in .jsonl"),
        (".", "sft.source", "sft.source = .* contains no text"),
        ("rows.csv", "tokenize.source", "tokenize.source = .* does not end in .txt"),
        (".", "tokenize.contamination", "contains no .jsonl file"),
    ):
        config = load("tiny", parsed({setting: str(tmp_path / name)}))
        with pytest.raises(KodaError, match=message):
            config.check_files("")
        if setting == "sft.source":
            config.check_files("checkpoint")
    for setting, wrong in (("tokenize", "hub:"), ("tokenize", "docs:no-such-package"), ("sft", "docs:stdlib")):
        with pytest.raises(KodaError):
            load("tiny", {setting: {"source": wrong}}).check_files("")
    load("tiny", parsed({"tokenize.source": str(tmp_path / "text.txt")})).check_files("")


@pytest.fixture
def tokens(tmp_path: Path, tokenizer_file: Path) -> Built[CorpusFigures]:
    """Of a run that has got no further; 129 of them are held out."""
    (tmp_path / "r/tokenize").mkdir(parents=True)
    shutil.copy(tokenizer_file, tmp_path / "r/tokenize/tokenizer.json")
    figures = replace(FIGURES["tokenize"], heldout_tokens=129)
    return Built("tokenize", tmp_path / "r/tokenize", "k", figures)


@pytest.mark.parametrize(
    ("settings", "until", "message"),
    [
        (
            {"model.max_position_embeddings": "16"},
            "",
            r"has 0 conversations .*\(2 were longer than a row of 16",
        ),
        ({"model.max_position_embeddings": "16"}, "checkpoint", ""),
        ({"model.max_position_embeddings": "64"}, "", ""),
        (
            {"model.max_position_embeddings": "16", "sft.too_long": "truncate", "sft.bad_input": "skip"},
            "",
            "0 were longer .* 2 were cut to it, 2 left out as nothing_to_learn",
        ),
        ({"sft.context": "12", "sft.too_long": "skip"}, "", "2 were longer than a row of 12 tokens"),
        ({"sft.context": "65"}, "", r"sft\.context = 65: the model's context is 64 tokens\."),
        (
            {"extend.factor": "2.5"},
            "",
            r"extend\.factor = 2\.5: the 129 held-out tokens are too few for .* 160",
        ),
        ({"extend.factor": "2.5"}, "sft", ""),
        ({"extend.factor": "2.02"}, "", r"extend\.factor = 2\.02: .* one row of 129"),
        ({"extend.factor": "2"}, "", ""),
    ],
)
def test_what_later_stages_cannot_use_is_refused_before_pretraining(
    tmp_path: Path, tokens: Built[CorpusFigures], settings: dict[str, str], until: str, message: str
) -> None:
    """Conversations of which none fits the context, and held-out text that is shorter than the longer one."""
    row = '{"instruction": "What is the answer to this long question?", "response": "It is the shortest of all."}\n'
    (tmp_path / "rows.jsonl").write_text(2 * row)
    changed = {"model.max_position_embeddings": "64", "sft.source": str(tmp_path / "rows.jsonl"), **settings}
    config = load("tiny", parsed(changed))
    with pytest.raises(KodaError, match=message) if message else nullcontext():
        config.check_stages(until, tokens)
    if message:  # what is done already is not tried again
        for stage in ("sft", "extend"):
            write_record(tmp_path / "r", stage, FIGURES[stage])
        config.check_stages(until, tokens)


def test_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(KodaError, match=r"no preset 'tny' \(did you mean tiny\?\)"):
        load("tny")


def test_segments_cover_the_steps() -> None:
    for steps, segments in ((10, 3), (1, 1), (7, 7), (1600, 2)):
        ends = segment_ends(steps, segments)
        assert ends[-1] == steps and len(ends) == segments and ends == sorted(set(ends))
