"""How the next token is chosen, in the words that every runtime has for it."""

from typing import NamedTuple


class Sampling(NamedTuple):
    """Settings of one answer; as they stand, the likeliest token is taken each time."""

    limit: int = 100
    """Tokens at most."""
    temperature: float = 0.0
    """The logits are divided by it; 0: the likeliest token each time."""
    top_k: int = 0
    """Choose among so many of the likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability (Holtzman et al. 2019)."""
    repetition_penalty: float = 1.0
    """Logits of tokens that were there before are divided by it, negative ones multiplied (Keskar et al. 2019,
    arXiv:1909.05858); 1: none."""
    seed: int = 0
    """The same seed, the same answer, in one runtime."""
