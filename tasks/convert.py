"""Stage 6: weights → exports for transformers, llama.cpp and MLX, each checked in its own runtime."""

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat

from model.files import read_json, write_json
from tasks.progress import progress
from tasks.run import Built
from tasks.section import Section
from tasks.stage import stage
from tasks.supervise import call


class Convert(Section):
    formats: tuple[Literal["hf", "gguf", "mlx"], ...] = ("hf", "gguf", "mlx")
    """Which exports are written; MLX is made from the Hugging Face folder, and brings it along."""
    hf_dtype: Literal["float32", "float16"] = "float32"
    """Number type of the Hugging Face folder."""
    limit_full: PositiveFloat = 1e-6
    """Largest mean KL divergence from the JAX model, in nats, for float32 exports."""
    limit_half: PositiveFloat = 1e-4
    """The same for 16-bit exports."""
    limit_eight: PositiveFloat = 5e-3
    """The same for 8-bit exports."""

    def limit(self, path: str) -> float:
        if "8" in Path(path).name.rpartition("-")[2]:
            return self.limit_eight
        return self.limit_full if path == "hf" and self.hf_dtype == "float32" else self.limit_half


@stage(version=1)
def convert(out: Path, settings: Convert, model: Built, base: Built, tokens: Built) -> dict[str, Any]:
    """Write hf/, gguf/ and mlx/, reload each in its own runtime, and compare: parity.json. A disagreement fails."""
    name = out.parent.name
    log = out / "convert.log"
    written = call(
        "model.export.convert:write",
        log,
        source=model / "weights",
        tokenizer=tokens / "tokenizer.json",
        out=out,
        name=name,
        hf_dtype=settings.hf_dtype,
        formats=settings.formats,
    )
    old_context = read_json(base / "weights/COMMIT.json")["config"]["max_position_embeddings"]
    parity = {}
    with progress("convert", len(written)) as watch:
        for number, (path, kind) in enumerate(written.items()):
            watch(number, path)
            parity[path] = call(
                "model.export.parity:compare",
                log,
                kind=kind,
                path=out / path,
                weights=model / "weights",
                tokenizer=tokens / "tokenizer.json",
                heldout=tokens / "heldout",
                old_context=old_context,
                limit=settings.limit(path),
            )
    write_json(out / "parity.json", parity)
    return {
        "exports": len(parity),
        "max_kl_divergence": max((p["kl_divergence"] for p in parity.values()), default=0.0),
        "stopped": sum(p["stopped"] for p in parity.values()),
        "parity": parity,
    }
