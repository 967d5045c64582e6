"""llama.cpp's K-quants (Q4_K_M and similar): which type each matrix gets, and llama.cpp's own code that rounds to it.

That code, `ggml_quantize_chunk` of ggml.h, is in the wheel that opens the GGUF exports.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from model.errors import KodaError

KINDS = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M")
SUPERBLOCK = 256  # weights of a row that share their scales
BLOCK = 32  # the same, of the types that llama.cpp takes for rows that are not a multiple of it
NARROW = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def tensor_type(kind: str, name: str, width: int, layers: int, tied: bool) -> str:
    """The type of the matrix with this name in GGUF and rows of `width` weights, as llama.cpp's quantiser chooses it.

    Matrices whose rounding costs most get more bits: the head, and in some layers the values and `ffn_down`.
    """
    matrix = name.removesuffix(".weight").rpartition(".")[2]
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    eighth = layers // 8
    sensitive = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    values, down = matrix == "attn_v", matrix == "ffn_down"
    type_ = kind[:4]
    if matrix == "output" or (tied and matrix == "token_embd"):
        type_ = "Q6_K"
    elif kind in ("Q4_K_M", "Q5_K_M"):
        type_ = "Q6_K" if (values or down) and sensitive else type_
    elif kind == "Q4_K_S":
        type_ = "Q5_K" if (values and layer < 4) or (down and layer < eighth) else type_
    elif kind == "Q3_K_M" and (values or down or matrix == "attn_output"):
        type_ = "Q5_K" if (values and layer < 2) or (down and layer < layers // 16) else "Q4_K"
    return NARROW[type_] if width % SUPERBLOCK else type_


def quantise(rows: np.ndarray, type_: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows of float32 weights, `[outputs, inputs]`, as bytes of this type, `[outputs, bytes of a row]`.

    `importance`, `[inputs]`: how much a squared error in each column costs; None: as much in all.

    Raises KodaError where llama.cpp is not installed.
    """
    from gguf import GGMLQuantizationType, quants  # here, because gguf-py takes half a second to import

    number, (count, width) = GGMLQuantizationType[type_], rows.shape
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    assert importance is None or importance.shape == (width,)
    ggml = _library()
    stored = np.empty(quants.quant_shape_to_byte_shape(rows.shape, number), np.uint8)
    columns = None if importance is None else np.ascontiguousarray(importance, np.float32)
    weights = None if columns is None else columns.ctypes.data

    def part(first: int, last: int) -> int:
        where = (rows.ctypes.data, stored.ctypes.data, first * width, last - first, width)
        return ggml.ggml_quantize_chunk(number, *where, weights)

    threads = os.cpu_count() or 1
    ends = np.linspace(0, count, min(count, threads) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(part, ends[:-1], ends[1:]))
    assert written == stored.nbytes
    return stored


@cache
def _library() -> Any:
    """llama.cpp in the wheel of xllamacpp, which exports what ggml.h declares."""
    try:
        from xllamacpp import xllamacpp
    except ImportError:
        raise KodaError(
            f"{', '.join(KINDS)} are made by llama.cpp's own quantiser (xllamacpp), which is not installed. In Koda's "
            "folder, `uv pip install --constraint requirements.lock --editable . --group verify` installs it."
        ) from None
    library = ctypes.CDLL(xllamacpp.__file__)
    number, array = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, array, array, number, number, number, array]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library
