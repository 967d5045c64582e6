"""A run's evaluation in the Hub's two forms: the card's `model-index`, and the files of `.eval_results`."""

from collections.abc import Iterator

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from model.evaluation.published import TASKS
from model.evaluation.standard import TASKS as DATA
from model.figures import EvaluateFigures
from tasks.reports.tables import scored
from tasks.runs.record import Built, read_record

FOLDER = ".eval_results"  # where the Hub looks for them (https://huggingface.co/docs/hub/eval-results)


def model_index(figures: EvaluateFigures) -> list[EvalResult]:
    """Both suites, for the card."""
    standard = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=DATA[task].path,
            dataset_name=task,
            dataset_config=DATA[task].config,
            dataset_split=DATA[task].split,
            metric_type=TASKS[task],
            metric_value=getattr(f, TASKS[task]),
        )
        for task, f in scored(figures.standard).items()
    ]
    homemade = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type="koda-homemade",
            dataset_config=task,
            dataset_name=f"{task} (held-out text of the run)",
            metric_type="acc",
            metric_value=f.acc,
        )
        for task, f in scored(figures.tasks).items()
    ]
    return standard + homemade


def eval_results(scores: Built[EvaluateFigures]) -> Iterator[tuple[str, str]]:
    """A file for each standard task whose items were all scored, and its text; a part of them is no benchmark's figure.
    The values are shares, as in the card."""
    record = read_record(scores.folder) or {}
    if record["settings"].get("evaluate", {}).get("standard_items"):
        return
    for task, figures in scored(scores.figures.standard).items():
        entry = EvalResultEntry(
            dataset_id=DATA[task].path,
            task_id=DATA[task].config or "default",
            value=getattr(figures, TASKS[task]),
            date=scores.finished,
            notes=f"zero-shot, {TASKS[task]} of {figures.n:,} items, split {DATA[task].split}, as "
            "lm-evaluation-harness scores it",
        )
        yield f"{FOLDER}/{task}.yaml", yaml_dump(eval_result_entries_to_yaml([entry]))
