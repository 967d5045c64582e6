"""Stage 7: bits per byte beside xz, eight home-made tasks, and the eight standard ones."""

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from model.errors import KodaError
from model.figures import CorpusFigures, EvaluateFigures
from model.files import sha256
from tasks.runs.record import Built
from tasks.section import Section
from tasks.stage import stage
from tasks.supervise import call


class Evaluate(Section):
    items: PositiveInt = 200
    """Items of each task."""
    max_bytes: PositiveInt = 400_000
    """Held-out text that bits per byte are measured on, and xz beside them."""
    standard: str = ""
    """Where the eight standard tasks (HellaSwag, ARC, …) are read from: `hub`, or a folder of JSONL with the columns of
    the Hub's data sets, arc_easy.jsonl and so on, as many as there are; empty: they are left out."""
    standard_items: NonNegativeInt = 0
    """Items of each standard task at most; 0: all."""

    def check(self) -> None:
        if self.standard in ("", "hub"):
            return
        if not Path(self.standard).is_dir():
            raise KodaError(f"evaluate.standard = {self.standard!r}: neither `hub` nor a folder.")
        if not any(Path(self.standard).glob("*.jsonl")):
            raise KodaError(f"evaluate.standard = {self.standard!r}: no file ends in .jsonl there.")

    def fingerprint(self) -> str:
        self.check()
        return (
            "" if self.standard in ("", "hub") else " ".join(map(sha256, sorted(Path(self.standard).glob("*.jsonl"))))
        )


@stage(version=2)
def evaluate(out: Path, settings: Evaluate, model: Built, base: Built, tokens: Built[CorpusFigures]) -> EvaluateFigures:
    """Evaluate the final model, and the base model's bits per byte."""
    return call(
        "model.evaluation.suite:evaluate",
        out / "evaluate.log",
        EvaluateFigures,
        model=model / "weights",
        base=base / "weights",
        tokens=tokens.folder,
        out=out,
        items=settings.items,
        max_bytes=settings.max_bytes,
        standard_items=settings.standard,
        limit=settings.standard_items,
    )
