"""A stage: a plain function that fills a folder, as a retryable Prefect task whose result is kept by its key."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefect import task
from prefect.states import Completed

from tasks import retries
from tasks.progress import log_line
from tasks.runs.record import Built
from tasks.runs.run import Reached, Run
from tasks.runs.up_to_date import stage_key
from tasks.supervise import call

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Figures = TypeVar("Figures", bound="DataclassInstance")
Value = TypeVar("Value")


class Stage(Generic[Figures]):
    """`name(run, *inputs)` returns the result, built or up to date; the body is `name.body(folder, *inputs)`."""

    def __init__(self, body: Callable[..., Figures], *, version: int, resumes: bool):
        self.body, self.version, self.resumes = body, version, resumes
        self.name = body.__name__
        self.__doc__ = body.__doc__

    def __call__(self, run: Run, *inputs: Any) -> Built[Figures]:
        """Inputs are sections of the configuration and results of stages; together they make the stage's key."""
        key = stage_key(self.name, self.version, inputs)
        built: Built[Figures] | None = run.existing_result(self.name, key, inputs)
        if built is not None:
            _ = skipped.with_options(name=self.name, task_run_name=f"{self.name} · up to date")(built)
            log_line(f"{self.name:<10} {'up to date' if built.key == key else 'kept, built under other settings'}")
        elif self.resumes:  # its body runs tasks of its own
            built = self.build(run, key, inputs)
        else:
            built = build.with_options(name=self.name, task_run_name=self.name)(self, run, key, inputs)
        if run.until == self.name:
            raise Reached
        return built

    def build(self, run: Run, key: str, inputs: tuple[Any, ...]) -> Built[Figures]:
        """Build it, whatever is there; needs no Prefect."""
        log_line(f"{self.name:<10} …")
        built = run.build(self.name, key, self.resumes, lambda folder: self.body(folder, *inputs), inputs)
        log_line(f"{self.name:<10} done: {summary(asdict(built.figures), 6)}")
        return built


def stage(*, version: int, resumes: bool = False) -> Callable[[Callable[..., Figures]], Stage[Figures]]:
    """Make a stage of a function `(folder, *inputs) -> figures`; the figures are a dataclass.

    `version` is raised when the code makes something else of the same inputs: an edit that changes no result must not
    cost a user the training. `resumes`: the body goes on with what an interrupted attempt left in the folder.
    """
    return lambda body: Stage(body, version=version, resumes=resumes)


@task(**retries.STAGE)
def build(stage: Stage, run: Run, key: str, inputs: tuple[Any, ...]) -> Built:
    """A stage as a task run."""
    return stage.build(run, key, inputs)


def retried_call(function: str, log: Path, returns: type[Value], **arguments: Any) -> Value:
    """`call`, and where its process dies, Prefect starts it again: for the body of a stage that `resumes`, which is no
    task itself."""
    name = f"{log.stem} · {function.rpartition(':')[2]}"
    return called.with_options(name=name, task_run_name=name)(function, log, returns, arguments)


@task(**retries.STAGE)
def called(function: str, log: Path, returns: type[Value], arguments: dict[str, Any]) -> Value:
    """A function in a process of its own, as a task run."""
    return call(function, log, returns, **arguments)


@task(**retries.ONCE)
def skipped(built: Built) -> Any:
    """A stage whose result is up to date, shown as such in Prefect."""
    return Completed(name="Skipped", message=f"{built.folder} is up to date, key {built.key[:8]}", data=built)


def summary(figures: dict[str, Any], count: int) -> str:
    """The first figures that are numbers, on one line."""
    numbers = {k: v for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return " · ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in [*numbers.items()][:count])
