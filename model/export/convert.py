"""All exports of one model."""

from collections.abc import Sequence
from pathlib import Path

from model import weights
from model.export import gguf, hf, mlx


def write(source: str, tokenizer: str, out: str, name: str, hf_dtype: str, formats: Sequence[str]) -> dict[str, str]:
    """Write the exports of these `formats` below `out`; returns what each file or folder is.

    MLX is made from the HF folder; everything else from the weights themselves.
    """
    folder, tokenizer_file = Path(out), Path(tokenizer)
    model = weights.load(Path(source))
    written = {}
    if {"hf", "mlx"} & set(formats):
        hf.write(folder / "hf", model, tokenizer_file, hf_dtype)
        written["hf"] = "hf"
    for kind in ("F16", "Q8_0") if "gguf" in formats else ():
        path = f"gguf/{name}-{kind}.gguf"
        gguf.write(folder / path, model, tokenizer_file, kind, name)
        written[path] = "gguf"
    for label, bits in (("fp16", 16), ("8bit", 8)) if "mlx" in formats else ():
        mlx.write(folder / "mlx" / label, folder / "hf", bits)
        written[f"mlx/{label}"] = "mlx"
    return written
