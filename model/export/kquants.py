"""llama.cpp's K-quants (Q4_K_M and similar), made by llama.cpp's own quantiser from a GGUF file."""

from pathlib import Path
from typing import Any

from model.errors import KodaError
from model.files import atomic_write

KINDS = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M")
SUPERBLOCK = 256  # weights of a row that share their scales; rows of another length are stored otherwise, silently


def library() -> Any:
    """The extra `kquants`. Raises KodaError where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        raise KodaError(
            f"{', '.join(KINDS)} are made by llama.cpp's own quantiser, which is not installed: "
            "uv pip install --constraint requirements.lock --editable '.[kquants]' (it compiles for some minutes). F16 "
            "and Q8_0 need nothing."
        ) from None
    return llama_cpp


def write(path: Path, source: Path, kind: str) -> None:
    """Quantise the GGUF file `source`, which is F32, F16 or BF16, to `path`. Raises KodaError where that fails."""
    llama_cpp = library()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 0  # as many as there are cores
    with atomic_write(path, "wb") as beside:
        failed = llama_cpp.llama_model_quantize(str(source).encode(), beside.name.encode(), params)
    if failed:
        path.unlink(missing_ok=True)
        raise KodaError(f"llama.cpp could not quantise {source} to {kind}: exit code {failed}.")
