"""A stage: a plain function that fills a folder, as a retryable Prefect task whose result is kept by its key."""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from model.errors import KodaError
from tasks.progress import say
from tasks.run import Built, Reached, Run

Body = Callable[..., dict[str, Any]]


def worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """A retry helps against a crash, not against an error that a person must mend."""
    try:
        state.result()
    except KodaError:
        return False
    except Exception:
        return True
    return False


class Stage:
    """`name(run, *inputs)` gives the stage's result, built or found. The body is `name.body(folder, *inputs)`."""

    def __init__(self, body: Body, *, version: int, resumes: bool):
        self.body, self.version, self.resumes = body, version, resumes
        self.name = body.__name__
        self.__doc__ = body.__doc__

    def __call__(self, run: Run, *inputs: Any) -> Built:
        """Inputs are sections of the configuration and results of stages; together they make the stage's key."""
        key = run.key(self.name, self.version, inputs)
        found = run.standing(self.name, key, inputs)
        if found is not None:
            _ = skipped.with_options(name=self.name, task_run_name=f"{self.name} · stands")(found)
            say(f"{self.name:<10} stands{'' if found.key == key else ', built under other settings'}")
        elif self.resumes:  # its body runs tasks of its own
            found = self.build(run, key, inputs)
        else:
            found = build.with_options(name=self.name, task_run_name=self.name)(self, run, key, inputs)
        if run.until == self.name:
            raise Reached
        return found

    def build(self, run: Run, key: str, inputs: tuple[Any, ...]) -> Built:
        """Build it, whatever stands; needs no Prefect."""
        say(f"{self.name:<10} …")
        built = run.build(self.name, key, self.resumes, lambda folder: self.body(folder, *inputs), inputs)
        shown = (f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in built.figures.items() if _number(v))
        say(f"{self.name:<10} done: {' · '.join(list(shown)[:6])}")
        return built


def stage(*, version: int, resumes: bool = False) -> Callable[[Body], Stage]:
    """Make a stage of a function `(folder, *inputs) -> figures`.

    `version` is raised when the code comes to make something else of the same inputs: an edit that changes no result
    must not cost a user the training. `resumes`: the body goes on with what an interrupted life left in the folder.
    """
    return lambda body: Stage(body, version=version, resumes=resumes)


# How a task that works on a stage is tried again.
RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": [2, 10],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
}


@task(**RETRIED)
def build(stage: Stage, run: Run, key: str, inputs: tuple[Any, ...]) -> Built:
    """A stage as a task run."""
    return stage.build(run, key, inputs)


@task(cache_policy=NO_CACHE, persist_result=False)
def skipped(found: Built) -> Any:
    """A stage whose result stands, shown as such in Prefect."""
    return Completed(name="Skipped", message=f"{found.folder} stands under key {found.key[:8]}", data=found)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
