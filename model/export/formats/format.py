"""What Koda knows about a format of exports: how it is written, read, opened, and described to its users."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

from model.data.vocabulary import Vocabulary
from model.errors import KodaError
from model.export.about import About
from model.export.runtime import Runtime
from model.stored import Stored

LEFT_OUT = " left out: "  # in the line that is printed where roundings cannot be fitted to a text


class Source(NamedTuple):
    """The model that is exported."""

    model: Stored
    vocabulary: Vocabulary
    about: About
    text: Path | None = None  # token shards that roundings are fitted to; None: each number is rounded by itself


class Export(NamedTuple):
    """A file or folder that was written, and the bits that it stores a weight in."""

    path: str  # below the folder of all exports
    format: str
    bits: int


class Variant(NamedTuple):
    """One of the number types that a format has."""

    bits: int  # of a weight
    multiple: int = 1  # rows must be a multiple of so many weights


class Format(ABC):
    """A format. Instances have no state; all of them are in the table FORMATS (model/export/formats/__init__.py)."""

    name: ClassVar[str]  # as in `convert.formats`, and of its folder below convert/ and publish/
    suffix: ClassVar[str]  # of its repository's name
    runtime: ClassVar[str]  # what people open it in
    package: ClassVar[str]  # which brings that runtime
    library: ClassVar[str]  # what the Hub calls that runtime (`library_name`)
    variants: ClassVar[dict[str, Variant]]
    needs: ClassVar[tuple[str, ...]] = ()  # formats that it is made from
    usage: ClassVar[str]  # how to run it, for the model card; with {where}, {repository}, {name}, {file} and {question}

    @abstractmethod
    def write(self, source: Source, out: Path, variants: Sequence[str]) -> Iterator[Export]:
        """Write these variants below `out`, the folder of all exports."""

    @abstractmethod
    def read(self, path: Path) -> Stored:
        """The model in an export, what is quantised as float32. Raises KodaError for what is not Koda's network."""

    @abstractmethod
    def open(self, path: Path, context: int) -> Runtime:
        """An export in its own runtime, with `context` tokens."""

    @abstractmethod
    def exports(self, folder: Path) -> list[Path]:
        """The exports in the format's `folder`, the one to take by default first."""

    def check_runtime(self) -> None:
        """Raise KodaError where the runtime is not installed."""
        if find_spec(self.package) is None:
            raise KodaError(
                f"{self.runtime} ({self.package}), which opens the {self.name} export, is not installed. In Koda's "
                "folder, `uv pip install --constraint requirements.lock --editable . --group verify` installs it."
            )
