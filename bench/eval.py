"""Items of the standard suite by the second: Koda's scorer in JAX, and lm-evaluation-harness with transformers on the
Hugging Face export of the same model; and whether the figures of the two agree.

The model is a run's (`koda run --until convert` made its export), or a random one with another vocabulary:

    .venv/bin/python bench/eval.py --data DIR
    .venv/bin/python bench/eval.py --data DIR --random FOLDER_WITH_GPT2_VOCABULARY

or somebody's, a Hugging Face folder: `--model FOLDER`. `--rounds 0` compares the figures without timing anything.

The exit code is 1 where the figures disagree.
"""

import contextlib
import io
import json
import logging
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alternate import Work, alternate, peer, ratios, serve
from table import Spread, open_run, options, parse, show

from model.evaluation.published import TASKS

RANDOM = {"layers": 4, "hidden": 256, "heads": 8, "kv_heads": 4, "intermediate": 704, "context": 512}


def main() -> int:
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    parser = options(__doc__, rounds=3, run="its export is read")
    parser.add_argument("--data", type=Path, help="JSONL of the standard tasks (required, but for --smoke)")
    parser.add_argument("--random", metavar="FOLDER", help="a random model with the vocabulary in this folder instead")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the model in this folder instead")
    arguments = parse(parser, run="", rounds=1)
    if arguments.peer:
        serve(lambda: PEERS[arguments.peer](arguments.model, arguments.data))
        return 0
    if not (arguments.data or arguments.smoke):
        parser.error("--data is required")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = arguments.data or sample_items(scratch / "items")
        if arguments.model:
            model, name = arguments.model.absolute(), arguments.model.name
        elif arguments.random:
            model, name = random_model(scratch / "hf", arguments.random), f"random, {RANDOM}"
        else:
            run = stack.enter_context(open_run(arguments.run))
            model, name = run / "convert/hf", run.name
        if arguments.rounds:
            figures = alternate(list(PEERS), arguments.rounds, "--model", str(model), "--data", str(data.absolute()))
            ratio = ratios(figures, "items/s", "harness, batches of 16")
            rows = [[peer_, Spread.of(own["items/s"]), ratio[peer_]] for peer_, own in figures.items()]
            show(f"the standard tasks in {data.name}, {name}", ["", "items/s", "ratio"], rows, arguments.json)
        with peer("the figures of both"):
            return agreement(model, data)


def sample_items(folder: Path) -> Path:
    """Four items each of three tasks, of words that are drawn."""
    from model.data import docs

    draw, words = random.Random(0), " ".join(topic.text for topic in docs.topics()).split()

    def some(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    def arc_easy() -> dict:
        return {"question": some(9), "choices": {"text": [some(3), some(2)], "label": ["A", "B"]}, "answerKey": "B"}

    def piqa() -> dict:
        return {"goal": some(6), "sol1": some(3), "sol2": some(3), "label": 0}

    def lambada_openai() -> dict:
        return {"text": some(12)}

    folder.mkdir()
    for task in (arc_easy, piqa, lambada_openai):
        lines = [json.dumps(task()) + "\n" for _ in range(4)]
        (folder / f"{task.__name__}.jsonl").write_text("".join(lines))
    return folder


def random_model(folder: Path, vocabulary: str) -> Path:
    """A random LlamaForCausalLM as transformers makes it, with a vocabulary from files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from model.data import tokenizer as tokenizers
    from model.export.formats.hf import write_tokenizer

    loaded = tokenizers.load(vocabulary)
    torch.manual_seed(0)
    end = loaded.end
    shape = LlamaConfig(
        vocab_size=loaded.size,
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
    write_tokenizer(folder, loaded, RANDOM["context"])
    return folder


def koda(model: Path, data: Path) -> Work:
    from model.evaluation import standard
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import score

    subject = open_model(model)
    scorer = Scorer(subject.model)

    def work() -> dict[str, float]:
        began = time.perf_counter()
        items = standard.items(standard.TASKS, str(data))
        score(subject, scorer, items)
        return {"items/s": sum(map(len, items.values())) / (time.perf_counter() - began)}

    return work


def harness(model: Path, data: Path, batch: int) -> Work:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch)
    count = sum(len(file.read_text().splitlines()) for file in data.glob("*.jsonl") if file.stem in TASKS)
    cache = Path(tempfile.mkdtemp())

    def work() -> dict[str, float]:
        began = time.perf_counter()
        quietly(results, lm, data, cache)
        return {"items/s": count / (time.perf_counter() - began)}

    return work


def results(lm: Any, data: Path, cache: Path) -> dict[str, dict[str, float]]:
    """`{task: {acc, acc_norm, perplexity}}` by the harness.

    It is not `simple_evaluate`, which reads the definitions of 14,000 tasks and lists the installed packages each time.
    """
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    from model.evaluation.harness import local_tasks

    tasks = TaskManager(include_defaults=False).load(local_tasks(data, cache))
    evaluation = evaluate(lm, tasks, bootstrap_iters=0, log_samples=False)
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if name.endswith(",none")}
        for task, figures in evaluation["results"].items()
    }


def agreement(model: Path, data: Path) -> int:
    """Print the figures of both, side by side; 1 where they disagree.

    One item may differ: two choices that are equally likely to float32's rounding may fall either way.
    """
    from lm_eval.models.huggingface import HFLM

    from model.evaluation import standard
    from model.evaluation.harness import KodaLM
    from model.evaluation.score import Scorer
    from model.evaluation.subject import open_model
    from model.evaluation.suite import score

    subject = open_model(model)
    ours = score(subject, Scorer(subject.model), standard.items(standard.TASKS, str(data)))
    with tempfile.TemporaryDirectory() as cache:
        plugged = quietly(results, KodaLM(subject), data, Path(cache))
        lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=16)
        theirs = quietly(results, lm, data, Path(cache))
    rows, disagreements = [], []
    for name, task in ours.items():
        for metric in ("acc", "acc_norm", "perplexity"):
            if (value := getattr(task.figures, metric)) is None:
                continue
            others = plugged[name][metric], theirs[name][metric]
            within = {"abs_tol": 1.001 / task.figures.n} if metric != "perplexity" else {"rel_tol": 5e-3}
            if not all(math.isclose(value, other, **within) for other in others):
                disagreements.append(f"{name}, {metric}")
            rows.append([f"{name}, {metric}", task.figures.n, *(f"{each:.6g}" for each in (value, *others))])
    show("agreement", ["", "items", "koda eval", "Koda in the harness", "the export in the harness"], rows, None)
    for figure in disagreements:
        print(f"bench: koda eval and the harness disagree about {figure}", file=sys.stderr)
    return 1 if disagreements else 0


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
    sys.exit(main())
