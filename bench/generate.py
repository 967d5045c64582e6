"""Tokens per second of a conversation's answers: Koda's sampler in JAX, transformers and llama.cpp, on one model.

The model is a run's (`koda run --until convert` made its exports); greedy, one answer at a time; the end token
ends nothing, so that every peer makes the same number of tokens.

    .venv/bin/python bench/generate.py --run tiny
"""

import json
import time
from pathlib import Path

from alternate import Spread, alternate, options, ratios, serve, show

from tasks.run import folder_of

TOKENS = 100
PROMPT = "What does `os.path.join` do?"


def main() -> None:
    parser = options(__doc__.splitlines()[0], rounds=8)
    parser.add_argument("--run", default="tiny", help="the run whose model is read (default: tiny)")
    arguments = parser.parse_args()
    folder = folder_of(arguments.run)
    if arguments.peer:
        serve(PEERS[arguments.peer](folder))
        return
    found = alternate(list(PEERS), arguments.rounds)
    against = ratios(found, "tokens/s", "transformers, PyTorch")
    rows = [[name, Spread.of(of["tokens/s"]), Spread.of(of["prompt"]), against[name]] for name, of in found.items()]
    config = json.loads((folder / "extend/weights/COMMIT.json").read_text())["config"]
    shape = f"{config['num_hidden_layers']} × {config['hidden_size']}"
    head = ["", "tokens/s", "ms to the first", "ratio"]
    show(f"an answer of {TOKENS} tokens, {shape}, float32 (llama.cpp: F16)", head, rows, arguments.json)


def koda(folder: Path):
    from model.export.runtimes import Jax
    from model.sampling import Sampling

    runtime = Jax(folder / "extend/weights", folder / "tokenize/tokenizer.json")
    ids = prompt(runtime)

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), 0.0
        for _ in runtime.generator(ids, -1, Sampling(limit=TOKENS)):
            first = first or time.perf_counter()
        return figures(began, first)

    return work


def transformers(folder: Path):
    from model.export.runtimes import HuggingFace

    runtime = HuggingFace(folder / "convert/hf")
    inputs = runtime.torch.tensor([prompt(runtime)])

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), [0.0]

        class Clock:
            def put(self, value) -> None:
                if value.shape[-1] == 1 or value.ndim == 1:  # the prompt comes first, whole
                    first[0] = first[0] or time.perf_counter()

            def end(self) -> None: ...

        runtime.model.generate(inputs, min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False, streamer=Clock())
        return figures(began, first[0])

    return work


def llama_cpp(folder: Path):
    from model.export.runtimes import LlamaCpp

    runtime = LlamaCpp(next((folder / "convert/gguf").glob("*-F16.gguf")), 256)
    asked = {"prompt": prompt(runtime), "n_predict": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}

    def work() -> dict[str, float]:
        began, first = time.perf_counter(), 0.0
        with runtime._open("/completion", {**asked, "cache_prompt": False}) as reply:
            for _ in runtime._events(reply):
                first = first or time.perf_counter()
        return figures(began, first)

    return work


def prompt(runtime) -> list[int]:
    from model.data.chat import prompt as render

    return runtime.tokenize(render([{"role": "user", "content": PROMPT}]))


def figures(began: float, first: float) -> dict[str, float]:
    """Tokens after the first by the second, and milliseconds to the first."""
    return {"tokens/s": (TOKENS - 1) / (time.perf_counter() - first), "prompt": 1000 * (first - began)}


PEERS = {"transformers, PyTorch": transformers, "koda, JAX": koda, "llama.cpp, F16": llama_cpp}

if __name__ == "__main__":
    main()
