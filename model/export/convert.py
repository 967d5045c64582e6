"""All exports of one model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model import weights
from model.data.chat import modelfile
from model.export import gguf, hf, kquants, mlx
from model.export.about import About
from model.weights import Stored


class Export(NamedTuple):
    """A file or folder that was written: what opens it, and in how many bits it holds a weight."""

    path: str
    kind: str  # hf, gguf or mlx
    bits: int


def write(
    source: str,
    tokenizer: str,
    out: str,
    about: dict[str, Any],
    hf_dtype: str,
    formats: Sequence[str],
    gguf_kinds: Sequence[str],
    mlx_kinds: Sequence[str],
) -> list[Export]:
    """Write the exports of these `formats` below `out`, and say what they are.

    MLX is made from the HF folder; everything else from the weights themselves, which are held in memory once.
    """
    model, told = weights.read(Path(source)), About(**{**about, "datasets": tuple(about["datasets"])})
    folder, tokenizer_file = Path(out), Path(tokenizer)
    written = []
    if {"hf", "mlx"} & set(formats):
        hf.write(folder / "hf", model, tokenizer_file, hf_dtype)
        stored = model.params["embedding"].dtype.name if hf_dtype == "auto" else hf_dtype
        written.append(Export("hf", "hf", 32 if stored == "float32" else 16))
    if "gguf" in formats and gguf_kinds:
        written += _gguf(folder, model, tokenizer_file, gguf_kinds, told)
    for label in mlx_kinds if "mlx" in formats else ():
        mlx.write(folder / "mlx" / label, folder / "hf", label)
        written.append(Export(f"mlx/{label}", "mlx", mlx.BITS[label]))
    return written


def _gguf(folder: Path, model: Stored, tokenizer: Path, kinds: Sequence[str], about: About) -> Iterator[Export]:
    for kind in kinds:
        path = f"gguf/{about.name}-{kind}.gguf"
        if kind in kquants.KINDS:
            whole = folder / "gguf/.whole.gguf"
            if not whole.exists():
                gguf.write(whole, model, tokenizer, "F32", about)
            kquants.write(folder / path, whole, kind)
        else:
            gguf.write(folder / path, model, tokenizer, kind, about)
        yield Export(path, "gguf", bits(kind))
    (folder / "gguf/.whole.gguf").unlink(missing_ok=True)
    smallest = min(kinds, key=bits)
    text = modelfile(f"{about.name}-{smallest}.gguf", model.config.max_position_embeddings)
    (folder / "gguf/Modelfile").write_text(text, encoding="utf-8")


def bits(kind: str) -> int:
    """Bits of a weight, of those that llama.cpp's name of a type says.

    >>> [bits(kind) for kind in ("F32", "BF16", "Q8_0", "Q4_K_M")]
    [32, 16, 8, 4]
    """
    return int(kind.lstrip("BFQ").partition("_")[0])
