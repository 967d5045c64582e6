"""Whether a model ends its answers by itself."""

from pathlib import Path

from model import weights
from model.data import chat
from model.data import tokenizer as tokenizers
from model.data.vocabulary import Vocabulary
from model.figures import EndingFigures
from model.files import read_json
from model.generate import Generator
from model.llama import Llama
from model.sampling import Sampling

CONVERSATIONS = 40  # held-out ones that the model answers


def ending_share(model: Llama, vocabulary: Vocabulary, prompts: Path, limit: int) -> EndingFigures:
    """Of the held-out `prompts`, the share whose greedy answer ends by itself within `limit` tokens."""
    generate, stops = Generator(model), vocabulary.stops
    encoded = [chat.encode_prompt(vocabulary, line["messages"]) for line in read_json(prompts)[:CONVERSATIONS]]
    ended = [list(generate(prompt, stops, Sampling(limit=limit)))[-1] in stops for prompt in encoded]
    return EndingFigures(ends_by_itself=round(sum(ended) / len(encoded), 4), asked=len(encoded))


def measure(model: str, tokenizer: str, prompts: str, limit: int) -> EndingFigures:
    """`ending_share` of the weights in the folder `model`."""
    return ending_share(weights.load(Path(model)), tokenizers.load(tokenizer), Path(prompts), limit)
