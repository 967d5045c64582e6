"""What a training step needs, before it runs: compiled ahead of time on shapes alone, in each form that it may have.

Where XLA's CUDA compiler is installed it is compiled for the card in question, which need not be here.
"""

import math
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax

from model import arrays, sharding
from model.accelerators import USABLE, Accelerator
from model.config import Compute
from model.training.compiled import bytes_of, compile_step, mesh_of
from model.training.forms import DOUBLINGS, Form, Plan
from model.training.hlo import operations
from model.training.job import Job
from model.training.program import Program
from model.training.roofline import estimate

# XLA's options for a CPU, where no step is run: the same memory within a thousandth, a fifth of the time to compile.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
UNROLLED = 1.5  # times the memory of `dots` that keeping everything was seen to take, in unrolled layers


def cuda_compiler() -> bool:
    """Is XLA's CUDA compiler installed, with a card or without?"""
    if find_spec("jax_plugins") is None:
        return False
    return any(find_spec(f"jax_plugins.xla_cuda{version}") for version in (13, 12))


def plan(job: dict[str, Any], card: dict[str, Any], devices: int) -> Plan:
    """Compile the job's step in each form worth trying, and choose. Raises KodaError for a mesh that does not divide.

    `job` and `card`: the fields of a Job and of an Accelerator.
    """
    order, gpu = Job.from_dict(job), Accelerator(**{**card, "capability": tuple(card["capability"])})
    usable, compiles = USABLE * gpu.memory, _Compiler(gpu, devices)
    order, configured = _settled(compiles, order, usable)
    forms = [configured]
    if compiles.backend == "gpu":
        forms += _alternatives(compiles, order, configured, usable)
    fitting = [form for form in forms if form.bytes <= usable]
    chosen = min(fitting, key=lambda form: sum(form.seconds or (0, 0))) if fitting else configured
    return Plan(
        backend=compiles.backend,
        checkpoint=arrays.size(Program(order).shapes),
        configured=configured,
        chosen=chosen,
        tried=tuple(forms),
        rows_that_fit=_rows(compiles, order, configured, usable),
    )


class _Compiler:
    """Compiles forms of a job for one card, or for this process's devices where there is no compiler for it."""

    def __init__(self, card: Accelerator, devices: int):
        self.card, self.devices = card, devices
        self.known: dict[tuple[Compute, int, int], Form] = {}
        self.backend = "gpu" if cuda_compiler() else "cpu"

    def mesh(self, fsdp: int, tensor: int) -> jax.sharding.Mesh:
        if self.backend == "gpu":
            return mesh_of(self.card, self.devices, fsdp, tensor)
        return sharding.make_mesh(fsdp, tensor)

    def __call__(self, job: Job) -> Form:
        key = (job.compute, job.fsdp, job.recipe.batch_size)  # all that differs between the forms of a plan
        if key not in self.known:
            self.known[key] = self._compiled(job)
        return self.known[key]

    def _compiled(self, job: Job) -> Form:
        mesh = self.mesh(job.fsdp, job.tensor)
        compiled = compile_step(job, mesh, None if self.backend == "gpu" else UNOPTIMISED)
        state, temporary = bytes_of(compiled)
        form = Form(
            remat=job.compute.remat,
            scan=job.compute.scan,
            fsdp=mesh.shape["fsdp"],
            rows=job.recipe.batch_size,
            state=state,
            temporary=temporary,
        )
        if self.backend == "cpu":
            return form
        kernels = operations(compiled.as_text() or "")
        flops, wire = defaultdict[str, float](float), defaultdict[str, float](float)
        for kernel in kernels:
            if kernel.kind == "gemm":
                flops[kernel.name] += kernel.times * kernel.flops
            elif kernel.kind == "collective":
                wire[kernel.name] += kernel.times * kernel.wire
        time = estimate(kernels, self.card, self.devices)
        return replace(
            form,
            attention="cudnn" if any(kernel.kind == "attention" for kernel in kernels) else "blocks",
            flops=dict(flops),
            wire=dict(wire),
            seconds=(time.low, time.high),
            parts=time.parts,
        )


def _settled(compiles: _Compiler, job: Job, usable: float) -> tuple[Job, Form]:
    """The job in the form that its training will take on this card, and what that needs; by the CPU's analysis, at
    most `dots`: unrolled layers compile slowly, and take more memory on a CPU than on a card."""
    forms = job.compute.forms()
    for compute in forms[1:] if len(forms) > 1 and compiles.backend == "cpu" else forms:
        settled = replace(job, compute=compute)
        form = compiles(settled)
        if form.bytes <= usable:
            break
    return settled, form


def _alternatives(compiles: _Compiler, job: Job, configured: Form, usable: float) -> list[Form]:
    """Other forms: first with whole weights on each card, which crosses the wire least; spread over them where no such
    form fits. The less a form computes again the better, as far as there is memory for it."""
    forms: list[Form] = []

    def tried(remat: str, scan: bool, fsdp: int) -> Form:
        if (remat, scan, fsdp) == (configured.remat, configured.scan, configured.fsdp):
            return configured
        compute = Compute(dtype=job.compute.dtype, remat=remat, scan=scan)  # type: ignore[arg-type]  # one of three
        forms.append(compiles(replace(job, fsdp=fsdp, compute=compute)))
        return forms[-1]

    for fsdp in sorted({1, compiles.devices // job.tensor}):
        dots = tried("dots", True, fsdp)
        if dots.state + UNROLLED * dots.temporary <= usable:
            tried("none", False, fsdp)  # scanned, it keeps its residuals in float32
        if dots.bytes <= usable or tried("full", True, fsdp).bytes <= usable:
            break
    return forms


def _rows(compiles: _Compiler, job: Job, configured: Form, usable: float) -> int:
    """How many rows fit in a step of this form: at most 2 ** DOUBLINGS times the configured ones. 0: none do.

    Memory is nearly linear in the rows: two sizes show the line, and a third is tried near its end.
    """
    unit = max(1, compiles.devices // job.tensor) * job.recipe.gradient_accumulation_steps
    rows = configured.rows

    def tried(count: int) -> Form:
        return compiles(replace(job, recipe=replace(job.recipe, batch_size=count)))

    other = tried(2 * rows if configured.bytes <= usable else max(unit, rows // 2 // unit * unit))
    each = (other.bytes - configured.bytes) / ((other.rows - rows) or 1)
    room = 0.97 * (usable - configured.bytes) / each if each > 0 else math.inf
    guess = min(rows << DOUBLINGS, rows + int(max(-rows, min(room, rows << DOUBLINGS))) // unit * unit)
    fitting = [form.rows for form in (configured, other) if form.bytes <= usable]
    if guess > max(fitting, default=0) and tried(guess).bytes <= usable:
        fitting.append(guess)
    return max(fitting, default=0)
