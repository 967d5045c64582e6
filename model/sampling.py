"""How the next token is chosen, in the setting names that the runtimes share."""

from typing import NamedTuple

GREEDY = 1e-6  # a temperature below it is as good as 0, and logits divided by it may not fit into float32


class Sampling(NamedTuple):
    """Settings of one answer; the defaults decode greedily."""

    limit: int = 100
    """Maximum number of new tokens."""
    temperature: float = 0.0
    """Divides the logits; 0: greedy, the likeliest token each time."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability (Holtzman et al. 2019)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred before, multiplies negative ones (Keskar et al. 2019,
    arXiv:1909.05858); 1: none."""
    seed: int = 0
    """The same seed gives the same answer in one runtime."""
