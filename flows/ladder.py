"""Small trainings of a run's family on its own text, and the law that fits them."""

from typing import Annotated

from prefect import flow

from flows.cancel import cancellable
from flows.config import as_toml, begun_with, load
from flows.forms import Name, Preset, field, form
from tasks.ladder import build, check
from tasks.pretrain import pretraining
from tasks.progress import log_line
from tasks.reports.ladder_page import page
from tasks.runs.paths import folder_of
from tasks.runs.run import Run
from tasks.tokenize import tokenize


@flow(name="koda", flow_run_name="ladder {name}", validate_parameters=False)
@cancellable
def ladder(
    name: Name = "tiny",
    preset: Preset = "",
    hours: Annotated[float, field("Hours", ge=0)] = 0.0,
    settings: form("tokenize", "model", "pretrain") = None,  # type: ignore[valid-type]  # made from the configuration
) -> None:
    """Train three or four smaller models of the run's family, each to several lengths, fit a law to their held-out bits
    per byte, and write runs/NAME/ladder/index.html. The run's own pretraining is forecast by it. Goes on where it was
    interrupted.

    Args:
        name: the run; it may be new.
        preset: the settings to begin with; empty: the run's own settings, or tiny's for a new run.
        hours: what it may take here; 0: a tenth of the run's compute for the longest training of each size.
        settings: what to change in the run; what is left empty is as the preset or the run has it.
    """
    folder = folder_of(name)
    c = load(preset, settings, folder)
    check(c.model, c.pretrain)  # before the text is tokenized
    with Run(name, config_text=as_toml(begun_with(preset, folder), c)) as run:
        tokens = tokenize(run, c.tokenize)
        finished = build(run.folder, tokens, c.model, c.pretrain, c.evaluate, hours)
        job = pretraining(c.pretrain, c.model, tokens, run.folder / "pretrain")
        log_line(f"ladder     {page(run.folder, finished, job)}")
