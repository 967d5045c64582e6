"""The standard suite agrees with lm-evaluation-harness, and reports invalid items by their number."""

import json
from pathlib import Path
from typing import Any

import pytest

from model import weights
from model.data import tokenizer as tokenizers
from model.errors import KodaError
from model.evaluation import standard
from model.evaluation.figures import average
from model.evaluation.score import Scorer
from model.evaluation.subject import open_model
from model.evaluation.suite import score
from model.export import gguf_file
from model.export.about import About
from model.export.formats import hf, mlx
from model.figures import TaskFigures


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, saved_model: Path, tokenizer_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "hf"
    hf.write(folder, weights.read(saved_model / "weights"), tokenizers.load(str(tokenizer_file)), "auto")
    return folder


@pytest.fixture
def quiet_harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The harness offline; returns a folder for its caches."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def test_figures_equal_those_of_the_harness_on_the_export_and_on_the_weights(
    saved_model: Path, tokenizer_file: Path, exported: Path, standard_items: Path, quiet_harness: Path
) -> None:
    """All eight tasks; the harness runs the Hugging Face export in transformers, and Koda's own weights in JAX.

    Some items are longer than the model's context of 128 and are truncated as in the harness. The tolerance is one item
    of twenty: two choices that are equally likely to float32's rounding may be ordered either way.
    """
    from lm_eval.models.huggingface import HFLM

    from model.evaluation.harness import KodaLM, results

    subject = open_model(saved_model / "weights", tokenizer_file)
    items = standard.items(standard.TASKS, str(standard_items))
    ours = score(subject, Scorer(subject.model), items)
    assert list(ours) == list(standard.TASKS) and sum(one.figures.truncated for one in ours.values()) > 5
    peers = {
        "the export in transformers": HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=8),
        "the weights in JAX": KodaLM(subject),
    }
    for peer, model in peers.items():
        theirs = results(model, standard_items, quiet_harness)
        for name, one in ours.items():
            for metric in ("acc", "acc_norm"):
                expected, actual = theirs[name].get(metric), getattr(one.figures, metric)
                assert (expected is None) == (actual is None), (peer, name, metric)
                assert actual is None or abs(actual - expected) <= 1 / 20 + 1e-3, (peer, name, metric)
            if name == "lambada_openai":
                assert one.figures.perplexity == pytest.approx(theirs[name]["perplexity"], rel=5e-3)


def test_the_harness_generates_with_koda_until_a_stop_string(saved_model: Path, tokenizer_file: Path) -> None:
    from lm_eval.api.instance import Instance

    from model.evaluation.harness import KodaLM
    from model.generate import Generator
    from model.sampling import Sampling

    subject = open_model(saved_model / "weights", tokenizer_file)
    tokens = list(Generator(subject.model)(subject.encode(["The "])[0], subject.vocabulary.stops, Sampling(limit=20)))
    whole = subject.vocabulary.tokenizer.decode(tokens)
    stop = whole[len(whole) // 2 :][:3]
    requests = [
        Instance("generate_until", {}, ("The ", {"until": until, "max_gen_toks": 20}), 0) for until in ([], [stop])
    ]
    assert KodaLM(subject).generate_until(requests) == [whole, whole.partition(stop)[0]]


def test_every_format_of_one_model_has_the_same_accuracies(
    saved_model: Path,
    tokenizer_file: Path,
    exported: Path,
    tmp_path: Path,
    standard_items: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, Hugging Face, GGUF and MLX in half precision: rounding may decide one item of twenty."""
    opened, original = [], gguf_file.opened
    monkeypatch.setattr(gguf_file, "opened", lambda path: opened.append(path) or original(path))
    stored = weights.read(saved_model / "weights")
    gguf_file.write(tmp_path / "m.gguf", stored, tokenizers.load(str(tokenizer_file)), "F16", About("m"))
    mlx.write(tmp_path / "mlx", exported, "fp16")
    items = standard.items(["arc_easy", "winogrande"], str(standard_items))
    accuracies = []
    for path in (saved_model / "weights", exported, tmp_path / "m.gguf", tmp_path / "mlx"):
        subject = open_model(path, tokenizer_file)
        tasks = score(subject, Scorer(subject.model), items)
        accuracies.append({name: one.figures.acc for name, one in tasks.items()})
    first, export, *half_precision = accuracies
    assert first == export and opened == [tmp_path / "m.gguf"]
    assert all(abs(other[name] - first[name]) <= 1 / 20 + 1e-9 for other in half_precision for name in other)


GOOD: dict[str, dict[str, Any]] = {
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "hellaswag": {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "1"},
    "winogrande": {"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "2"},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 1},
    "boolq": {"passage": "p", "question": "q", "label": 0},
    "lambada_openai": {"text": "some words here"},
}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("arc_easy", {"question": None}, "there is no column 'question'; it has choices, answerKey"),
        ("arc_easy", {"answerKey": "E"}, "the gold label is 'E', and the choices are A, B"),
        ("arc_easy", {"choices": {"text": ["a", " "], "label": ["A", "B"]}}, "choice 1 is empty"),
        ("arc_easy", {"choices": 7}, "'int' object"),
        ("hellaswag", {"label": "4"}, "the gold label is 4, and there are 2 choices"),
        ("hellaswag", {"label": ""}, "the gold label is '', and not a number"),
        ("winogrande", {"answer": "3"}, "the gold label is -1"),
        ("winogrande", {"sentence": "no gap"}, "has no `_`"),
        ("piqa", {"label": -1}, "the gold label is -1"),
        ("piqa", {"sol2": ""}, "choice 1 is empty"),
        ("boolq", {"label": 2}, "the gold label is 2"),
        ("lambada_openai", {"text": "word"}, "the text has no last word"),
    ],
)
def test_an_invalid_item_is_reported_by_its_number(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    bad = {key: value for key, value in {**GOOD[name], **changes}.items() if value is not None}
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (GOOD[name], GOOD[name], bad)))
    with pytest.raises(KodaError, match=f"{name}.jsonl, item 2: .*{message}"):
        standard.items([name], str(tmp_path))
    assert len(standard.items([name], str(tmp_path), limit=2)[name]) == 2


def test_missing_files_and_lines_that_are_not_rows_are_reported(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match=r"has none of arc_easy\.jsonl, piqa\.jsonl"):
        standard.items(["arc_easy", "piqa"], str(tmp_path))
    (tmp_path / "piqa.jsonl").write_text("{}\n")
    with pytest.raises(KodaError, match="item 0: there is no column"):
        standard.items(["arc_easy", "piqa"], str(tmp_path))
    (tmp_path / "piqa.jsonl").write_text("[1]\n")
    with pytest.raises(KodaError, match="item 0: the line is not a JSON object"):
        standard.items(["piqa"], str(tmp_path))
    (tmp_path / "piqa.jsonl").write_text("{\n")
    with pytest.raises(KodaError, match="item 0: the line is not JSON"):
        standard.items(["piqa"], str(tmp_path))
    (tmp_path / "piqa.jsonl").write_text("")
    with pytest.raises(KodaError, match="has no items"):
        standard.items(["piqa"], str(tmp_path))


def test_items_are_read_as_text_editors_and_other_tools_leave_them(tmp_path: Path) -> None:
    """A byte order mark, empty lines, and line ends of Windows; what cannot be read is named by its item."""
    row = json.dumps(GOOD["piqa"]).encode()
    file = tmp_path / "piqa.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row + b"\n\n \n")
    assert len(standard.items(["piqa"], str(tmp_path))["piqa"]) == 2
    file.write_bytes(row + b"\n\n" + row.replace(b'"g"', b'"caf\xe9"'))
    with pytest.raises(KodaError, match=r"piqa\.jsonl, item 1: it is not UTF-8: byte 13 of the line is 0xe9"):
        standard.items(["piqa"], str(tmp_path))
    file.write_bytes(row + b"\n" + row.replace(b'"g"', b'"half \\ud83d"'))
    with pytest.raises(KodaError, match=r"piqa\.jsonl, item 1: in its text, character 5 is half of a surrogate pair"):
        standard.items(["piqa"], str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(exported: Path, tmp_path: Path) -> None:
    from model.data import tokenizer as tokenizers

    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizers.train(
        iter(["other words altogether, and many of them: " * 3, *map(str, range(4000))]), 700
    ).write_tokenizer(tmp_path)
    with pytest.raises(KodaError, match="its tokenizer has 700 entries, the model 512"):
        open_model(tmp_path)


def test_a_folder_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KodaError, match="is not a model"):
        open_model(tmp_path)


def test_the_average_leaves_out_tasks_without_choices() -> None:
    tasks = {
        "a": TaskFigures(n=9, acc=0.5, acc_norm=0.3),
        "b": TaskFigures(n=9, acc=0.5),
        "c": TaskFigures(n=9, acc=0.9, perplexity=12.0),
    }
    assert average(tasks) == 0.4 and average({"c": tasks["c"]}) is None
