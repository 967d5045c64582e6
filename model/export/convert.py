"""All exports of one model."""

from pathlib import Path

from model import weights
from model.export import gguf, hf, mlx


def write(source: str, tokenizer: str, out: str, name: str, hf_dtype: str) -> dict[str, str]:
    """Write hf/, gguf/ and mlx/ below `out` from the weights in `source`; returns what each file or folder is.

    MLX is made from the HF folder; everything else from the weights themselves.
    """
    folder, tokenizer_file = Path(out), Path(tokenizer)
    model = weights.load(Path(source))
    hf.write(folder / "hf", model, tokenizer_file, hf_dtype)
    written = {"hf": "hf"}
    for kind in ("F16", "Q8_0"):
        path = f"gguf/{name}-{kind}.gguf"
        gguf.write(folder / path, model, tokenizer_file, kind, name)
        written[path] = "gguf"
    for label, bits in (("fp16", 16), ("8bit", 8)):
        mlx.write(folder / "mlx" / label, folder / "hf", bits)
        written[f"mlx/{label}"] = "mlx"
    return written
