"""Items of the standard suite by the second: Koda's scorer in JAX, and lm-evaluation-harness with transformers on the
Hugging Face export of the same model; and whether the two say the same.

The model is a run's (`koda run --until convert` made its export), or a random one with another vocabulary:

    .venv/bin/python bench/eval.py --data DIR
    .venv/bin/python bench/eval.py --data DIR --random FOLDER_WITH_GPT2_VOCABULARY
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from alternate import Spread, alternate, options, ratios, serve, show

from model.evaluation.published import TASKS
from tasks.run import folder_of

RANDOM = {"layers": 4, "hidden": 256, "heads": 8, "kv_heads": 4, "intermediate": 704, "context": 512}


def main() -> None:
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    parser = options(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--run", default="tiny", help="the run whose export is read (default: tiny)")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of the standard tasks")
    parser.add_argument("--random", metavar="FOLDER", help="a random model with the vocabulary in this folder instead")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        serve(PEERS[arguments.peer](arguments.model, arguments.data))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = folder_of(arguments.run) / "convert/hf"
        if arguments.random:
            model = random_model(Path(scratch) / "hf", arguments.random)
        sys.argv += ["--model", str(model)]
        found = alternate(list(PEERS), arguments.rounds)
        against = ratios(found, "items/s", "harness, batches of 16")
        rows = [[name, Spread.of(of["items/s"]), against[name]] for name, of in found.items()]
        what = f"random, {RANDOM}" if arguments.random else arguments.run
        show(f"the standard tasks in {arguments.data.name}, {what}", ["", "items/s", "ratio"], rows, arguments.json)
        agreement(model, arguments.data)


def random_model(folder: Path, vocabulary: str) -> Path:
    """A random LlamaForCausalLM as transformers makes it, with a vocabulary from files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from model.data import tokenizer as tokenizers
    from model.export.hf import write_tokenizer

    tokenizer = tokenizers.load(vocabulary)
    torch.manual_seed(0)
    end = tokenizers.end_of_text(tokenizer)
    shape = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=RANDOM["hidden"],
        num_hidden_layers=RANDOM["layers"],
        num_attention_heads=RANDOM["heads"],
        num_key_value_heads=RANDOM["kv_heads"],
        intermediate_size=RANDOM["intermediate"],
        max_position_embeddings=RANDOM["context"],
        initializer_range=0.1,
        bos_token_id=end,
        eos_token_id=end,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save(str(folder.parent / "tokenizer.json"))
    write_tokenizer(folder, folder.parent / "tokenizer.json", RANDOM["context"])
    return folder


def koda(model: Path, data: Path):
    from model.evaluation import standard
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import ask

    subject = open_model(model)
    scorer = Scorer(subject.model)

    def work() -> dict[str, float]:
        began = time.perf_counter()
        items = standard.items(standard.TASKS, str(data))
        ask(subject, scorer, items)
        return {"items/s": sum(map(len, items.values())) / (time.perf_counter() - began)}

    return work


def harness(model: Path, data: Path, batch: int):
    from lm_eval.models.huggingface import HFLM

    from model.evaluation.harness import results

    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch)
    count = sum(len(file.read_text().splitlines()) for file in data.glob("*.jsonl") if file.stem in TASKS)
    cache = Path(tempfile.mkdtemp())

    def work() -> dict[str, float]:
        began = time.perf_counter()
        quietly(results, lm, data, cache)
        return {"items/s": count / (time.perf_counter() - began)}

    return work


def agreement(model: Path, data: Path) -> None:
    """The figures of both, side by side."""
    from lm_eval.models.huggingface import HFLM

    from model.evaluation import standard
    from model.evaluation.harness import KodaLM, results
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import ask

    subject = open_model(model)
    ours = ask(subject, Scorer(subject.model), standard.items(standard.TASKS, str(data)))
    with tempfile.TemporaryDirectory() as cache:
        plugged = quietly(results, KodaLM(subject), data, Path(cache))
        lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=16)
        theirs = quietly(results, lm, data, Path(cache))
    rows = []
    for name, one in ours.items():
        for metric in ("acc", "acc_norm", "perplexity"):
            if one.figures[metric] is not None:
                found = (one.figures[metric], plugged[name][metric], theirs[name][metric])
                rows.append([f"{name}, {metric}", one.figures["n"], *(f"{value:.6g}" for value in found)])
    show("agreement", ["", "items", "koda eval", "Koda in the harness", "the export in the harness"], rows, None)


def quietly(function, *arguments):
    """Without the harness's progress bars and warnings."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


PEERS = {
    "harness, one at a time": lambda model, data: harness(model, data, 1),
    "harness, batches of 16": lambda model, data: harness(model, data, 16),
    "koda": koda,
}

if __name__ == "__main__":
    main()
