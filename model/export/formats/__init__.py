"""The formats that a model is exported to, in the order they are written. Another one is a file and a line here."""

from model.export.formats.format import Format
from model.export.formats.gguf import Gguf
from model.export.formats.hf import HuggingFace
from model.export.formats.mlx import Mlx

FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        HuggingFace(),
        Gguf(),
        Mlx(),
    )
}
