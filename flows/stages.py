"""The pipeline in parts: a flow for each part that is started by itself."""

from typing import Annotated, Any

from prefect import Flow, flow

from flows.forms import Name, Preset, field, form
from flows.koda import pipeline
from tasks.runs.paths import existing


def part(stage: str, what: str, *sections: str, until: str = "", begins: bool = False) -> Flow[Any, Any]:
    """The pipeline up to the stage `until`, or to `stage` itself, with the settings of these sections in its form.

    `begins`: it may begin a run; the others need an existing one, and keep its settings.
    """
    last = until or stage

    def stages(
        name: Name = "tiny",
        preset: Preset = "",
        rebuild: Annotated[bool, field("Rebuild")] = False,
        settings: form(*sections) = None,  # type: ignore[valid-type]  # made from the configuration
    ) -> Any:
        if not begins:
            existing(name)
        return pipeline.fn(preset=preset, name=name, start=stage if rebuild else "", until=last, settings=settings)

    stages.__doc__ = f"""{what}

    A stage before it whose result is up to date is skipped; one whose settings changed is built again.

    Args:
        name: the run's name; everything it makes lies in runs/NAME.
        preset: the settings to begin with; empty: the run's own settings{", or tiny's for a new run" * begins}.
        rebuild: build it again although its result is up to date.
        settings: what to change; what is left empty is as the preset or the run has it.
    """
    return flow(name="koda", flow_run_name=f"{{name}} · {stage}", validate_parameters=False)(stages)


pretrain = part(
    "pretrain",
    "Text → token shards → a trained and verified checkpoint.",
    "tokenize",
    "model",
    "pretrain",
    until="checkpoint",
    begins=True,
)
sft = part("sft", "The checkpoint and conversations → a model that answers and stops, and a LoRA adapter.", "sft")
extend = part("extend", "The model that answers → the same with a longer context.", "extend")
convert = part("convert", "Weights → Hugging Face, GGUF and MLX, each checked in its own runtime.", "about", "convert")
evaluate = part("evaluate", "Weights and held-out text → bits per byte and zero-shot tasks.", "evaluate")
publish = part("publish", "Exports → repositories with model cards, in a folder or on the Hub.", "about", "publish")
