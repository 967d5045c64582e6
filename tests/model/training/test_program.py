import re
from dataclasses import replace

import jax
import pytest

from model.config import Compute
from model.training.job import Job
from model.training.training import Training


@pytest.mark.parametrize(("dtype", "written"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_a_trainings_muon_computes_in_the_type_of_its_network(job: Job, dtype: str, written: str) -> None:
    """What a plan compiles is another matter: the two had different steps once."""
    program = Training(replace(job, compute=Compute(dtype=dtype))).program  # type: ignore[arg-type]
    state = program.shapes
    update = jax.make_jaxpr(program.optimizer.update)(state.params, state.optimizer, state.params)
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(update))
    assert products and set(products) == {written}
