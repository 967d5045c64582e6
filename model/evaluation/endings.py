"""Does a model stop when it has said what it had to say?"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model import weights
from model.data import chat
from model.data import tokenizer as tokenizers
from model.evaluation.generate import Generator
from model.files import read_json
from model.llama import Llama
from model.sampling import Sampling

ASKED = 40  # held-out conversations put to the model


def ending_share(model: Llama, tokenizer: Tokenizer, prompts: Path, limit: int) -> dict[str, Any]:
    """Of the held-out `prompts`, the share whose greedy answer ends by itself within `limit` tokens."""
    generate, stop = Generator(model), tokenizers.end_of_text(tokenizer)
    asked = [chat.encode_prompt(tokenizer, line["messages"]) for line in read_json(prompts)[:ASKED]]
    ended = [list(generate(prompt, stop, Sampling(limit=limit)))[-1:] == [stop] for prompt in asked]
    return {"ends_by_itself": round(sum(ended) / len(asked), 4), "asked": len(asked)}


def measure(model: str, tokenizer: str, prompts: str, limit: int) -> dict[str, Any]:
    """The same of the weights in the folder `model`."""
    return ending_share(weights.load(Path(model)), tokenizers.load(tokenizer), Path(prompts), limit)
