"""The flow `koda`: text to a published model."""

from contextlib import suppress
from typing import Annotated

from prefect import flow

from flows.cancel import cancellable
from flows.config import as_toml, begun_with, load
from flows.forms import Name, Preset, field, form
from tasks.checkpoint import checkpoint
from tasks.convert import convert
from tasks.evaluate import evaluate
from tasks.extend import extend
from tasks.pretrain import pretrain
from tasks.publish import publish
from tasks.reports.run_report import report
from tasks.reports.training_page import links
from tasks.runs.paths import STAGES, folder_of
from tasks.runs.run import Reached, Run
from tasks.sft import sft
from tasks.tokenize import tokenize


@flow(name="koda", flow_run_name="{name}", validate_parameters=False)
@cancellable
def pipeline(
    preset: Preset = "",
    name: Name = "tiny",
    start: Annotated[str, field("From", list(STAGES))] = "",
    until: Annotated[str, field("Until", list(STAGES))] = "",
    settings: form() = None,  # type: ignore[valid-type]  # made from the configuration
) -> None:
    """Text to a published model: every stage, each skipped if its result is up to date.

    Args:
        preset: the settings to begin with; empty: the run's own settings, or tiny's for a new run.
        name: the run's name; everything it makes lies in runs/NAME.
        start: rebuild this stage and those after it.
        until: end with this stage.
        settings: what to change; what is left empty is as the preset or the run has it.
    """
    folder = folder_of(name)
    c = load(preset, settings, folder)
    c.check_files(until)  # what sft reads, before pretraining
    with Run(name, start=start, until=until, config_text=as_toml(begun_with(preset, folder), c)) as run:
        links(run.folder)
        with suppress(Reached):
            tokens = tokenize(run, c.tokenize)
            c.check_stages(until, tokens)  # what sft and extend need of them, before pretraining
            base = checkpoint(run, pretrain(run, c.pretrain, c.model, tokens))
            chat = sft(run, c.sft, base, tokens)
            long = extend(run, c.extend, chat, tokens)
            exports = convert(run, c.convert, c.about, long, chat, tokens)
            scores = evaluate(run, c.evaluate, long, base, tokens)
            publish(run, c.publish, c.about, exports, scores, long, tokens)
        report(run.folder)  # inside, so that an attempt that dies here counts as one that died
