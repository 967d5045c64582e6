"""Tokens per second of a conversation's answers: Koda's sampler in JAX, transformers and llama.cpp, on one model.

The model is a run's (`koda run --until convert` made its exports); greedy, one answer at a time; the end token
ends nothing, so that every peer makes the same number of tokens.

    .venv/bin/python bench/generate.py --run tiny
"""

import json
import time
from pathlib import Path

from alternate import Work, alternate, ratios, serve
from table import Spread, open_run, options, parse, show

PROMPT = "What does `os.path.join` do?"


def main() -> None:
    parser = options(__doc__, rounds=8, run="its model is read")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer (default: 100)")
    arguments = parse(parser, run="", rounds=1, tokens=8)
    if arguments.peer:
        serve(lambda: PEERS[arguments.peer](Path(arguments.run), arguments.tokens))
        return
    with open_run(arguments.run) as folder:
        figures = alternate(list(PEERS), arguments.rounds, "--run", str(folder))
        config = json.loads((folder / "extend/weights/COMMIT.json").read_text())["config"]
    ratio = ratios(figures, "tokens/s", "transformers, PyTorch")
    rows = [[name, Spread.of(own["tokens/s"]), Spread.of(own["prompt"]), ratio[name]] for name, own in figures.items()]
    shape = f"{config['num_hidden_layers']} × {config['hidden_size']}"
    head = ["", "tokens/s", "ms to the first", "ratio"]
    show(f"an answer of {arguments.tokens} tokens, {shape}, float32 (llama.cpp: F16)", head, rows, arguments.json)


def koda(folder: Path, tokens: int) -> Work:
    from model.export.runtime import Jax
    from model.sampling import Sampling

    runtime = Jax.load(folder / "extend/weights", folder / "tokenize/tokenizer.json")
    ids = prompt(runtime)

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), 0.0
        for _ in runtime.generator(ids, (), Sampling(limit=tokens)):
            first = first or time.perf_counter()
        return speed(tokens, began, first)

    return work


def transformers(folder: Path, tokens: int) -> Work:
    from model.export.formats.hf import Transformers

    runtime = Transformers(folder / "convert/hf")
    inputs = runtime.torch.tensor([prompt(runtime)])

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), [0.0]

        class Clock:
            def put(self, value) -> None:
                if value.shape[-1] == 1 or value.ndim == 1:  # the prompt comes first, whole
                    first[0] = first[0] or time.perf_counter()

            def end(self) -> None: ...

        runtime.model.generate(inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, streamer=Clock())
        return speed(tokens, began, first[0])

    return work


def llama_cpp(folder: Path, tokens: int) -> Work:
    from model.export.formats.gguf import LlamaCpp

    runtime = LlamaCpp(next((folder / "convert/gguf").glob("*-F16.gguf")), 256)
    request = {"prompt": prompt(runtime), "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), 0.0
        with runtime._open("/completion", {**request, "cache_prompt": False}) as reply:
            for _ in runtime._events(reply):
                first = first or time.perf_counter()
        return speed(tokens, began, first)

    return work


def prompt(runtime) -> list[int]:
    return runtime.tokenize(runtime.prompt([{"role": "user", "content": PROMPT}]))


def speed(tokens: int, began: float, first: float) -> dict[str, float]:
    """Tokens after the first by the second, and milliseconds to the first."""
    return {"tokens/s": (tokens - 1) / (time.perf_counter() - first), "prompt": 1000 * (first - began)}


PEERS = {"transformers, PyTorch": transformers, "koda, JAX": koda, "llama.cpp, F16": llama_cpp}

if __name__ == "__main__":
    main()
