import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from model import arrays
from model.config import Compute
from model.llama import Llama
from model.training import distributed
from model.training.compiled import bytes_of
from model.training.heartbeat import Heartbeat
from model.training.job import Job, LoraRecipe
from model.training.loop import Attempt
from model.training.records import Event, read_events
from model.training.training import Training


@pytest.mark.parametrize(("dtype", "written"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_a_trainings_muon_computes_in_the_type_of_its_network(job: Job, dtype: str, written: str) -> None:
    """What a plan compiles is another matter: the two had different steps once."""
    program = Training(replace(job, compute=Compute(dtype=dtype))).program  # type: ignore[arg-type]
    state = program.shapes
    update = jax.make_jaxpr(program.optimizer.update)(state.params, state.optimizer, state.params)
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(update))
    assert products and set(products) == {written}


def test_auto_recomputes_as_little_as_the_memory_allows(job: Job) -> None:
    """Packed rows; what each form takes is the compiler's analysis, here as on a GPU."""
    auto = replace(job, compute=Compute(remat="auto"), recipe=replace(job.recipe, isolate_documents=True))
    taken = {form.remat: Training(replace(auto, compute=form)).step_bytes() for form in auto.compute.forms()}
    assert taken["full"] < taken["dots"] < taken["none"]
    training = Training(auto)
    for memory, remat in ((None, "none"), (taken["none"], "none"), (taken["none"] - 1, "dots"), (1, "full")):
        training.settle(memory)
        assert training.program.job.compute.forms()[0].remat == remat


def test_a_form_whose_compilation_runs_out_of_memory_does_not_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, where compiling takes memory too: the CPU's compiler is made to fail for all but `full`."""
    compiled = Training.compiled_step

    def short(training: Training) -> jax.stages.Compiled:
        if training.program.job.compute.remat == "full":
            return compiled(training)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(Training, "compiled_step", short)
    training = Training(replace(job, compute=Compute(remat="auto")))
    training.settle(1 << 40)
    assert training.program.job.compute.remat == "full"


def test_the_form_that_memory_decided_is_in_the_event_log(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "device_memory", lambda: 1)  # of a GPU, which is not here
    training = Training(replace(job, folder=str(tmp_path), compute=Compute(remat="auto")))
    with jax.set_mesh(training.mesh):
        Attempt(training, Heartbeat(training.folder, 0.0, True)).run(1)
    [record] = [record for record in read_events(training.folder) if record.event is Event.FORM]
    assert record.details == {"remat": "full", "scan": True}


def test_what_a_step_takes_counts_the_weights_that_stay(job: Job, tmp_path: Path) -> None:
    base = nnx.to_pure_dict(nnx.state(Llama(job.model, rngs=nnx.Rngs(0)), nnx.Param))
    arrays.write(tmp_path, base)
    lora = LoraRecipe(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    training = Training(replace(job, lora=lora, init=str(tmp_path)))
    kept, _ = bytes_of(training.compiled_step())
    assert kept > arrays.size(base) + arrays.size(training.program.shapes)
