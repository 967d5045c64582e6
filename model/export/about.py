"""What an exported file states about itself, beside its numbers."""

from typing import NamedTuple


class About(NamedTuple):
    """Whose model it is, and of what."""

    name: str
    author: str = ""
    license: str = ""
    """An identifier of the Hub or of SPDX."""
    url: str = ""
    datasets: tuple[str, ...] = ()
    """What it was trained on, by name; `hub:USER/NAME` is a data set of the Hub."""
    languages: tuple[str, ...] = ()
    """Codes of ISO 639: en."""
    base_model: str = ""
    """Where on the Hub the model is that it was made of: USER/NAME."""
    finetune: str = ""
    """What it was fine-tuned for, in the words of GGUF's file names: Chat, Instruct."""
    temperature: float | None = None
    """That it should be sampled with; None: no recommendation."""
