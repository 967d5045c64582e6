"""A longer context for the same weights: the configuration of their positions is all that changes."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from model.config import LlamaConfig
from model.errors import KodaError
from model.figures import StretchFigures
from model.files import ARRAYS, COMMIT, link, read_object, write_json

Method = Literal["unchanged", "linear", "yarn", "ntk"]


def ntk_theta(theta: float, factor: float, head_dim: int) -> float:
    """The rotary base for a context `factor` times as long: θ · s^(d / (d - 2)).

    The fastest pair keeps its frequency and the slowest turns `factor` times slower, so that the far end of the new
    context looks like the far end of the old one (u/bloc97, "NTK-Aware Scaled RoPE", 2023; YaRN, arXiv:2309.00071).

    >>> round(ntk_theta(10000.0, 2, 64), 1)
    20452.2
    """
    return theta * factor ** (head_dim / (head_dim - 2))


def stretched(config: LlamaConfig, factor: float, method: Method) -> LlamaConfig:
    """The configuration for a context `factor` times as long.

    Raises KodaError where the positions are scaled already.
    """
    if config.rope_scaling != "none" and factor > 1:
        raise KodaError(
            f"the model's positions are scaled already ({config.rope_scaling}, {config.rope_factor} times): "
            "extend.factor can only be 1."
        )
    context = int(config.max_position_embeddings * factor)
    longer = replace(config, max_position_embeddings=context)
    if method == "unchanged" or factor == 1:
        return longer
    if method == "ntk":
        return replace(longer, rope_theta=ntk_theta(config.rope_theta, factor, config.head_dim))
    original = config.max_position_embeddings
    return replace(longer, rope_scaling=method, rope_factor=factor, rope_original_context=original)


def stretch(source: Path, out: Path, factor: float, method: Method) -> StretchFigures:
    """Give the model in `source` a longer context in `out`, which has the same arrays; imports no JAX for it."""
    facts = read_object(source / COMMIT)
    old = LlamaConfig(**facts["config"])
    new = stretched(old, factor, method)
    link(source / ARRAYS, out / ARRAYS)
    write_json(out / COMMIT, facts | {"config": new.to_dict()})
    return StretchFigures(
        context=new.max_position_embeddings,
        method=method if factor > 1 else "unchanged",
        rope_theta=new.rope_theta,
        old_rope_theta=old.rope_theta,
    )
