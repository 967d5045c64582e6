"""One table of formats: every entry is complete, and what an entry needs elsewhere follows from the table."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import Any, ClassVar, get_args

import pytest
from huggingface_hub import ModelCard
from pydantic import ValidationError

from flows.cli import chat
from model import weights
from model.errors import KodaError
from model.export.convert import write
from model.export.expectation import Expected
from model.export.formats import FORMATS
from model.export.formats.format import Export, Format, Source, Variant
from model.export.parity import Limits, judge
from model.export.runtime import Jax
from model.figures import PublishFigures
from model.stored import Stored
from tasks.about import About
from tasks.convert import LIMITS, Convert
from tasks.publish import Publish, lay_out, repository, would_change
from tasks.reports.status import closing_lines
from tasks.runs.record import read_built
from tests.conftest import SHAPE
from tests.records import put, record_exports, write_record, write_run

FIELDS = {"where", "repository", "name", "file", "question"}  # that a card fills into a format's `usage`


class Fake(Format):
    """Koda's own weights and the tokenizer, in a folder for each variant."""

    name = "fake"
    suffix = "-FAKE"
    runtime = "JAX itself"
    package = "jax"
    library = "koda"
    variants: ClassVar = {"whole": Variant(32), "halved": Variant(16, 48)}
    usage = "`fake --model {file} --prompt '{question}'`, of {name}, from {where}"

    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        for variant in variants:
            weights.write(out / "fake" / variant / "weights", source.model)
            source.vocabulary.write_tokenizer(out / "fake" / variant)
            yield Export(f"fake/{variant}", "fake", self.variants[variant].bits)

    def read(self, path: Path) -> Stored:
        return weights.read(path / "weights")

    def open(self, path: Path, context: int) -> Jax:
        return Jax.load(path / "weights", path / "tokenizer.json")

    def exports(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("*"), reverse=True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A format that is added to the table."""
    added = Fake()
    monkeypatch.setitem(FORMATS, added.name, added)
    return added


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run `tiny` whose exports are in the formats of the table, and in the fake one."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    write_run(tmp_path / "runs/tiny")
    write_record(tmp_path / "runs/tiny", "publish", PublishFigures(where="here", files=1, bytes=1, commits={}))
    put(tmp_path / "runs/tiny/convert/fake/whole/tokenizer.json", b"{}")
    record_exports(tmp_path / "runs/tiny")
    return tmp_path / "runs/tiny"


def executed_again(name: str) -> ModuleType:
    """A second copy of a module, which takes the table as it is now; nobody else sees it."""
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*FORMATS, Fake.name])
def test_format_is_complete(name: str) -> None:
    format_ = FORMATS.get(name, Fake())
    assert format_.name == name and re.fullmatch("[a-z]+", name)
    assert all((format_.runtime, format_.package, format_.library))
    assert {field for _, field, *_ in Formatter().parse(format_.usage) if field is not None} <= FIELDS
    assert "{question}" in format_.usage and ("{file}" in format_.usage or "{where}" in format_.usage)
    earlier = list(FORMATS)[: list(FORMATS).index(name)] if name in FORMATS else FORMATS
    assert set(format_.needs) <= set(earlier)  # what it is made from is written before it


@pytest.mark.parametrize("name", FORMATS)
def test_variants_have_a_limit_and_those_that_share_scales_a_multiple(name: str) -> None:
    """Below 16 bits, weights of a row share a scale; 0 bits are those that the weights are stored in."""
    assert FORMATS[name].variants
    for variant in FORMATS[name].variants.values():
        assert variant.bits in LIMITS or variant.bits == 0
        assert variant.multiple > 1 if 0 < variant.bits < 16 else variant.multiple == 1


@pytest.mark.parametrize(
    ("name", "files", "first"),
    [
        (
            "gguf",
            ["._m-Q8_0.gguf", ".unquantised.gguf", "m-F16.gguf", "m-F16.gguf~", "m-Q8_0.gguf"],
            ["m-Q8_0.gguf", "m-F16.gguf"],
        ),
        ("mlx", ["._8bit/config.json", ".ipynb_checkpoints/config.json", "4bit/config.json"], ["4bit"]),
    ],
)
def test_files_whose_names_begin_with_a_dot_are_no_exports(
    tmp_path: Path, name: str, files: list[str], first: list[str]
) -> None:
    """macOS and notebooks write them."""
    for file in files:
        put(tmp_path / file, b"{}")
    assert [path.name for path in FORMATS[name].exports(tmp_path)] == first


def test_formats_differ_in_name_and_repository() -> None:
    assert list(FORMATS) == [format_.name for format_ in FORMATS.values()]
    suffixes = [format_.suffix for format_ in FORMATS.values()]
    assert len(set(suffixes)) == len(suffixes) and suffixes.count("") == 1


def test_added_format_is_a_choice_of_the_convert_settings(fake: Fake) -> None:
    """Written by default, in all its variants; a width that one of them cannot have is named."""
    settings = executed_again("tasks.convert").Convert
    assert fake.name in get_args(get_args(settings.model_fields["formats"].annotation)[0])
    assert (
        settings().variants()[fake.name] == settings(formats=(fake.name,)).variants()[fake.name] == ("whole", "halved")
    )
    misfit = settings(formats=(fake.name,)).misfit(replace(SHAPE, hidden_size=64))
    assert all(part in misfit for part in ("hidden_size = 64", "48", "fake halved"))
    assert not settings(formats=(fake.name,)).misfit(replace(SHAPE, hidden_size=96, intermediate_size=96, head_dim=24))
    with pytest.raises(ValidationError):
        Convert(formats=(fake.name,))  # made of the table without it


def test_added_format_is_written_after_what_it_is_made_from(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "needs", ("hf", "gguf"))
    settings = executed_again("tasks.convert").Convert
    assert list(settings(formats=(fake.name,)).variants()) == ["hf", "gguf", "fake"]


def test_added_format_is_written_and_compared_in_its_own_runtime(
    fake: Fake, saved_model: Path, tokenizer_file: Path, tmp_path: Path, expected: Expected
) -> None:
    about = {"name": "m", "author": "", "license": "", "url": "", "datasets": []}
    source = str(saved_model / "weights")
    exports = write(source, str(tokenizer_file), str(tmp_path), about, {fake.name: ("whole",)})
    assert exports == [Export("fake/whole", "fake", 32)]
    figures = judge(fake.name, tmp_path / exports[0].path, Limits(1e-9, 1.000001), expected)
    assert figures.failed == [] and figures.kl_divergence == 0 and figures.same_answer
    (tmp_path / "fake/whole/tokenizer.json").unlink()
    failed = judge(fake.name, tmp_path / exports[0].path, Limits(1e-9, 1.000001), expected)
    assert failed.failed and "the fault is in the rest of it" in failed.first_difference  # it was read by the format


def test_added_format_has_a_repository_with_a_card_of_its_own(fake: Fake, run: Path, tmp_path: Path) -> None:
    inputs: Any = [read_built(run, stage) for stage in ("convert", "evaluate", "extend", "tokenize")]
    formats = lay_out(tmp_path / "out", Publish(to="user/tiny"), "", About(), *inputs)
    assert formats == list(FORMATS.values()) and repository("user/tiny", fake) == "user/tiny-FAKE"
    published = {path.name for path in (tmp_path / "out/fake").iterdir()}
    assert published == {"whole", "README.md", "CHECKSUMS", "lineage.json", "curve.png"}
    card = ModelCard.load(tmp_path / "out/fake/README.md")
    assert "`fake --model whole --prompt" in card.text and "of tiny, from user/tiny-FAKE" in card.text
    assert card.data.library_name == "koda" and card.data.base_model == "user/tiny"
    assert any("publish/fake" in line for line in would_change("tiny", "", Publish(), About()))


def test_added_format_bounds_the_name_of_the_repositories(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub takes 96 letters, the suffix of every format among them."""
    longest = "user/" + "a" * (96 - len("user/-GGUF"))
    assert Publish(to=longest).to == longest
    monkeypatch.setattr(Fake, "suffix", "-LONGER-THAN-GGUF")
    with pytest.raises(ValidationError, match="LONGER-THAN-GGUF"):
        Publish(to=longest)


def test_added_format_can_be_talked_to(fake: Fake, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the export that it names first, with the context of the model."""
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    assert parser.parse_args(["tiny", "--runtime", "fake"]).runtime == "fake"
    opened: list[Any] = []
    monkeypatch.setattr(Fake, "open", lambda self, *arguments: opened.append(arguments))
    put(run / "extend/weights/COMMIT.json", b'{"config": {"max_position_embeddings": 77}}')
    chat.open_runtime("tiny", "fake")
    assert opened == [(run / "convert/fake/whole", 77)]
    monkeypatch.setattr(Fake, "package", "no_such_package")
    with pytest.raises(KodaError, match="no_such_package"):
        chat.open_runtime("tiny", "fake")


def test_added_format_is_among_the_closing_lines_of_a_run(fake: Fake, run: Path) -> None:
    folders = {str(run / "convert" / name) for name in FORMATS}
    assert "fake" in FORMATS and folders <= {word for line in closing_lines("tiny") for word in line.split()}
