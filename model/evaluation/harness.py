"""Koda's weights as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness). Any of its
tasks can be run on them without an export:

    from lm_eval import simple_evaluate
    simple_evaluate(KodaLM(open_model(path, tokenizer)), tasks=["hellaswag"])

Only this module requires the package `lm-eval`.
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

from model.evaluation.score import Scorer
from model.evaluation.subject import Subject
from model.generate import Generator
from model.sampling import Sampling

# The harness's definition file of each standard task; ARC-Challenge differs from ARC-Easy in its items alone.
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
    """A subject of an evaluation, behind the harness's interface."""

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
        return self.subject.vocabulary.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(self, requests: list[Tokenized], **_: Any) -> list[tuple[float, bool]]:
        scores = self.scorer([(context, continuation) for _, context, continuation in requests])
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each after an end-of-text token, in nats."""
        logprobs = []
        for request in requests:
            ids = [self.eot_token_id, *self.tok_encode(request.args[0])]
            logprobs.append(float(self.scorer.stream(np.asarray(ids), self.scorer.context).sum(dtype=np.float64)))
        return logprobs

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The generated text before the first stop string of each request; greedy unless the request samples."""
        texts = []
        for request in requests:
            context, settings = request.args
            stops = [settings["until"]] if isinstance(settings.get("until"), str) else settings.get("until", [])
            temperature = settings.get("temperature", 0.0) if settings.get("do_sample", False) else 0.0
            limit = settings.get("max_gen_toks", 256)
            room = self.scorer.context - limit
            ids = self.tok_encode(context)[-max(1, room) :]
            generated: list[int] = []
            text = ""
            for token in self.generate(
                ids, self.subject.vocabulary.stops, Sampling(limit=limit, temperature=temperature)
            ):
                generated.append(token)
                text = self.subject.vocabulary.tokenizer.decode(generated)
                if any(stop in text for stop in stops):
                    break
            for stop in stops:
                text = text.partition(stop)[0]
            texts.append(text)
        return texts


def local_tasks(data: Path, cache: Path) -> list[ConfigurableTask]:
    """The harness's own tasks over the items in `data`, one for each NAME.jsonl that is there.

    `cache` is a folder for the package `datasets`.
    """
    root, tasks = Path(lm_eval.tasks.__file__).parent, []
    for name, definition in DEFINITIONS.items():
        file = data / f"{name}.jsonl"
        if not file.is_file():
            continue
        settings = {k: v for k, v in load_yaml(root / definition).items() if not k.endswith("_split")}
        tasks.append(
            ConfigurableTask(
                config={
                    **settings,
                    "task": name,
                    "dataset_path": "json",
                    "dataset_name": None,
                    "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(cache)},
                    "test_split": "test",
                }
            )
        )
    return tasks


def results(model: LM, data: Path, cache: Path) -> dict[str, dict[str, float]]:
    """`{task: {acc, acc_norm, perplexity}}` over local items, as the harness itself computes them."""
    evaluation = simple_evaluate(model, tasks=local_tasks(data, cache), bootstrap_iters=0, log_samples=False)
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if name.endswith(",none")}
        for task, figures in evaluation["results"].items()
    }
