"""Stage 6: weights → exports for transformers, llama.cpp and MLX, each checked in its own runtime."""

from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from model.data.sources import is_docs, is_hub
from model.errors import KodaError
from model.export.kquants import KINDS as KQUANTS
from model.export.kquants import SUPERBLOCK, library
from model.export.runtimes import installed
from model.files import read_json, write_json
from tasks.about import About
from tasks.progress import progress
from tasks.run import Built
from tasks.section import Section, weighted
from tasks.stage import stage
from tasks.supervise import call

# For each number of bits: the largest mean KL divergence from the JAX model in nats, and the largest ratio of the
# perplexities. About ten times what was measured on trained models (bench/README.md).
LIMITS: dict[int, tuple[float, float]] = {
    32: (1e-6, 1.0005),
    16: (1e-4, 1.005),
    8: (5e-3, 1.02),
    6: (2e-2, 1.05),
    5: (5e-2, 1.1),
    4: (0.2, 1.3),
    3: (0.5, 2.0),
}


Gguf = Literal["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M"]


class Convert(Section):
    formats: tuple[Literal["hf", "gguf", "mlx"], ...] = ("hf", "gguf", "mlx")
    """Which exports are written; MLX is made from the Hugging Face folder, and brings it along."""
    hf_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the Hugging Face folder; auto: the one that the weights are stored in."""
    gguf: tuple[Gguf, ...] = ("F16", "Q8_0")
    """GGUF files, by llama.cpp's names of their types. Those with a K are made by llama.cpp's own quantiser (the extra
    `kquants`), and want widths that are multiples of 256."""
    mlx: tuple[Literal["fp16", "8bit", "4bit"], ...] = ("fp16", "8bit", "4bit")
    """MLX folders; the quantised ones in groups of 64."""
    limits: dict[int, tuple[float, float]] = LIMITS
    """What an export may differ by, by its bits: the mean KL divergence from the JAX model, in nats, and the ratio of
    the perplexities. {4 = [0.1, 1.2]} changes one of them and leaves the others. An export beyond its limit fails the
    stage."""

    @field_validator("limits")
    @classmethod
    def every_limit(cls, limits: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
        for bits, (kl, perplexity) in limits.items():
            if bits not in LIMITS or kl <= 0 or perplexity <= 1:
                raise ValueError(
                    f"convert.limits: {bits} = [{kl}, {perplexity}]: limits are set for {', '.join(map(str, LIMITS))} "
                    "bits; a KL divergence above 0, and a ratio above 1."
                )
        return LIMITS | limits

    @model_validator(mode="after")
    def quantiser(self) -> "Convert":
        if "gguf" in self.formats and set(self.gguf) & set(KQUANTS):
            library()
        return self

    def misfit(self, **widths: int) -> str:
        """Why matrices of these widths cannot be quantised as asked; empty where they can."""
        wanted = {"MLX's groups": 64 if "mlx" in self.formats and set(self.mlx) - {"fp16"} else 1}
        if "gguf" in self.formats:
            wanted["Q8_0"] = 32 if "Q8_0" in self.gguf else 1
            wanted["K-quants"] = SUPERBLOCK if set(self.gguf) & set(KQUANTS) else 1
        for name, width in widths.items():
            for what, block in wanted.items():
                if width % block:
                    return f"model.{name} = {width} is not a multiple of {block}, which {what} need."
        return ""


@stage(version=4)
def convert(out: Path, settings: Convert, about: About, model: Built, base: Built, tokens: Built) -> dict[str, Any]:
    """Write hf/, gguf/ and mlx/, reload each in its own runtime, and compare: parity.json. A disagreement fails."""
    installed(settings.formats)  # refuse before anything is written
    log = out / "convert.log"
    written = call(
        "model.export.convert:write",
        log,
        source=model / "weights",
        tokenizer=tokens / "tokenizer.json",
        out=out,
        about={
            "name": out.parent.name,
            "author": about.author,
            "license": about.license,
            "url": about.url,
            "datasets": sources(tokens),
        },
        hf_dtype=settings.hf_dtype,
        formats=settings.formats,
        gguf_kinds=settings.gguf,
        mlx_kinds=settings.mlx,
    )
    old_context = read_json(base / "weights/COMMIT.json")["config"]["max_position_embeddings"]
    parity: dict[str, Any] = {}
    with progress("convert", len(written)) as watch:
        for kind, exports in groupby(written, key=lambda export: export[1]):
            watch(len(parity), f"{kind} in its own runtime")
            parity |= call(
                "model.export.parity:compare",
                log,
                kind=kind,
                folder=out,
                limits={path: settings.limits[bits] for path, _, bits in exports},
                weights_folder=model / "weights",
                tokenizer=tokens / "tokenizer.json",
                heldout=tokens / "heldout",
                old_context=old_context,
            )
    write_json(out / "parity.json", parity)
    verdict(parity)
    return {
        "exports": len(parity),
        "max_kl_divergence": max((p["kl_divergence"] for p in parity.values()), default=0.0),
        "stopped": sum(p["stopped"] for p in parity.values()),
        "parity": parity,
    }


def sources(tokens: Built) -> list[str]:
    """The names of what a run's text was read from."""
    settings = read_json(tokens / "stage.json")["settings"]["tokenize"]
    named = weighted(settings["source"])
    return [name if is_docs(name) or is_hub(name) else Path(name).name for name in named]


def verdict(parity: dict[str, dict[str, Any]]) -> None:
    """Raises KodaError where an export failed, naming each with what is wrong and what first differs in it."""
    lines = [
        f"{path}: {'; '.join(figures['failed'])}. {figures['first_difference']}"
        for path, figures in parity.items()
        if figures["failed"]
    ]
    if lines:
        raise KodaError("exports that disagree with the JAX model are not published:\n" + "\n".join(lines))
