"""Koda's weights as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), so that any
of its tasks can be run on them without an export:

    from lm_eval import simple_evaluate
    simple_evaluate(KodaLM(open_model(path, tokenizer)), tasks=["hellaswag"])

It needs the package `lm-eval`, which nothing else here does.
"""

from pathlib import Path
from typing import Any

import lm_eval.tasks
import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from model.evaluation.generate import Generator
from model.evaluation.score import Scorer
from model.evaluation.subject import Subject
from model.sampling import Sampling

# Where the harness keeps its definition of each standard task; ARC-Challenge differs in its items alone.
DEFINITIONS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_easy.yaml",
    "winogrande": "winogrande/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}

Tokenized = tuple[tuple[str, str], list[int], list[int]]


class KodaLM(TemplateLM):
    """A subject of an evaluation, asked by the harness."""

    backend = "causal"

    def __init__(self, subject: Subject):
        super().__init__()
        self.subject = subject
        self.scorer = Scorer(subject.model)
        self.generate = Generator(subject.model)

    @property
    def eot_token_id(self) -> int:
        return self.subject.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.subject.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(self, requests: list[Tokenized], **_: Any) -> list[tuple[float, bool]]:
        scores = self.scorer([(context, continuation) for _, context, continuation in requests])
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each after the end of another, nats."""
        found = []
        for request in requests:
            ids = [self.eot_token_id, *self.tok_encode(request.args[0])]
            found.append(float(self.scorer.stream(np.asarray(ids), self.scorer.context).sum(dtype=np.float64)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says until one of the texts that a request stops at, greedily unless it asks for more."""
        found = []
        for request in requests:
            context, settings = request.args
            stops = [settings["until"]] if isinstance(settings.get("until"), str) else settings.get("until", [])
            warm = settings.get("temperature", 0.0) if settings.get("do_sample", False) else 0.0
            limit = settings.get("max_gen_toks", 256)
            room = self.scorer.context - limit
            ids = self.tok_encode(context)[-max(1, room) :]
            said: list[int] = []
            text = ""
            for token in self.generate(ids, self.eot_token_id, Sampling(limit=limit, temperature=warm)):
                said.append(token)
                text = self.subject.tokenizer.decode(said)
                if any(stop in text for stop in stops):
                    break
            for stop in stops:
                text = text.partition(stop)[0]
            found.append(text)
        return found


def local_tasks(data: Path, cache: Path) -> list[ConfigurableTask]:
    """The harness's own tasks over the items in `data`, NAME.jsonl for as many of them as there are.

    `cache` is a folder for what `datasets` makes of these.
    """
    root, found = Path(lm_eval.tasks.__file__).parent, []
    for name, definition in DEFINITIONS.items():
        file = data / f"{name}.jsonl"
        if not file.is_file():
            continue
        defined = load_yaml(root / definition)
        kept = {key: value for key, value in defined.items() if not key.endswith("_split")}
        found.append(
            ConfigurableTask(
                config={
                    **kept,
                    "task": name,
                    "dataset_path": "json",
                    "dataset_name": None,
                    "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(cache)},
                    "test_split": "test",
                }
            )
        )
    return found


def results(model: LM, data: Path, cache: Path) -> dict[str, dict[str, float]]:
    """`{task: {acc, acc_norm, perplexity}}` over local items, as the harness itself computes them."""
    found = simple_evaluate(model, tasks=local_tasks(data, cache), bootstrap_iters=0, log_samples=False)
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if name.endswith(",none")}
        for task, figures in found["results"].items()
    }
