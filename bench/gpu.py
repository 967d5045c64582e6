"""The first hour on a GPU: what the engine does there, in four calls of at most ten minutes.

    python bench/gpu.py prepare FOLDER      # here: token shards and jobs, a few MB
    python bench/gpu.py A FOLDER            # there, then B, C and D; a line of JSON a case, as it ends

There it needs jax, flax, optax, orbax and numpy alone (and PyTorch with transformers for the peer of call D). Each case
is a process of its own with a limit of time, and one that fails is a line that says so. Lines go to $OUT, or to FOLDER.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from model.data.shards import ShardWriter
from model.training.job import Job

SMOKE = "--smoke" in sys.argv  # the smallest sizes, on whatever is here
STEPS = 3 if SMOKE else 15
WARM = 1 if SMOKE else 3  # of them, not timed
PARTS = ("state", "temporary")  # of the bytes of a step
Figures = dict[str, Any]


def prepare(folder: Path) -> None:
    """Text without meaning and the presets' jobs. Needs the whole of Koda, which a GPU's image need not have."""
    from flows.cli.plan import pretraining_job
    from flows.config import load, parsed

    small = {
        "model.hidden_size": "64",
        "model.intermediate_size": "128",
        "model.num_hidden_layers": "2",
        "model.num_attention_heads": "4",
        "model.num_key_value_heads": "2",
        "model.max_position_embeddings": "64",
        "pretrain.batch_size": "4",
        "tokenize.tokenizer": "train",
        "tokenize.vocab_size": "512",
    }
    for preset in ("koda-124m", "koda-1.3b"):
        job = pretraining_job(load(preset, parsed(small if SMOKE else {})))
        recipe = replace(job.recipe, steps=60, save_every_steps=20, evaluate_every_steps=20, warmup_steps=10)
        job = replace(job, recipe=recipe, folder=str(folder / "training"), cache=None)
        job = replace(job, train=str(folder / f"{preset}-train"), heldout=str(folder / f"{preset}-heldout"))
        # Zipf's law is enough of a language to be learned.
        random, size = np.random.default_rng(0), 200 * job.sequence_length if SMOKE else 2_000_000
        for part, tokens in ((job.train, size), (job.heldout, 40 * job.sequence_length)):
            writer = ShardWriter(Path(part), job.model.vocab_size, tokens)
            writer.add(random.zipf(1.2, tokens) % job.model.vocab_size)
            writer.close()
        job.write(folder / f"{preset}.json")


def facts(folder: Path) -> Figures:
    """Versions, the card as XLA's compiler takes it, and the flags that JAX runs under."""
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA", "JAX", "NCCL"))}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XLA_FLAGS"] = f"{flags.get('XLA_FLAGS', '')} --xla_dump_to={scratch}"  # read when XLA comes up
        import jax

        jax.block_until_ready(jax.jit(lambda x: x @ x)(np.ones((256, 256), "float32")))
        target = [path.read_text() for path in sorted(Path(scratch).glob("*target_config*"))[:1]]
    smi = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True).stdout if not SMOKE else ""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers")
    names += ("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-nccl-cu13")
    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in names if installed(name)},
        "device": jax.devices()[0].device_kind,
        "client": jax.devices()[0].client.platform_version,
        "memory": jax.devices()[0].memory_stats(),
        "flags": flags,
        "target": target,
        "nvidia_smi": [
            line.strip() for line in smi.splitlines() if any(w in line for w in ("Driver", "Clocks", "Power"))
        ],
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def timed(function: Callable, *arguments: Any, rounds: int = STEPS) -> float:
    """Seconds of one call, in the steady state."""
    import jax

    jax.block_until_ready(function(*arguments))
    began = time.perf_counter()
    for _ in range(rounds):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / rounds


def products(folder: Path) -> Figures:
    """The step's products, each alone: TFLOP/s. They replace the roofline's shares."""
    import jax
    import jax.numpy as jnp

    unit = 64 if SMOKE else 2048
    tokens, wide = (128, 172) if SMOKE else (32768, 5504)
    shapes = {"square": (4 * unit, 4 * unit, 4 * unit), "qkv": (tokens, unit, unit), "kv": (tokens, unit, unit // 4)}
    shapes |= {"up": (tokens, unit, wide), "down": (tokens, wide, unit), "dkernel": (unit, tokens, wide)}
    shapes |= {"head": (tokens // 8, unit, 512 if SMOKE else 50304)}
    rates: Figures = {}
    for dtype in ("bfloat16", "float32"):  # the second is TF32 on a GPU
        for name, (m, k, n) in shapes.items():
            a, b = drawn(m, k).astype(dtype), drawn(k, n).astype(dtype)
            rates[f"{name} {dtype} TFLOP/s"] = 2e-12 * m * k * n / timed(jax.jit(jnp.matmul), a, b)
    return rates


def drawn(*shape: int) -> Any:
    """Not ones: a card draws less power for them, and its clock stays higher."""
    import jax

    return jax.random.normal(jax.random.key(0), shape, "bfloat16")


def copies(folder: Path) -> Figures:
    """A copy in GB/s, read and written, and one stack of Muon's in TFLOP/s."""
    import jax
    import jax.numpy as jnp

    from model.training.muon import orthogonalize

    unit, wide = (64, 172) if SMOKE else (2048, 5504)
    rates: Figures = {}
    copied = jnp.ones((1 << (16 if SMOKE else 30),), "bfloat16")
    rates["copy GB/s"] = 2e-9 * copied.nbytes / timed(jax.jit(lambda x: x + 1), copied)
    stack = drawn(2 if SMOKE else 24, unit, wide)
    flops = stack.shape[0] * 5 * (4 * unit * unit * wide + 2 * unit**3)
    rates["muon TFLOP/s"] = 1e-12 * flops / timed(jax.jit(orthogonalize), stack, rounds=3)
    return rates


def attention(folder: Path) -> Figures:
    """The attention of the training, of whole and of packed rows, against the same in float64 on the host: values and
    gradients; and the milliseconds of its gradient."""
    import jax
    import jax.numpy as jnp

    from model import sharding
    from model.attention import Segments, attend, grouped_attention

    b, t, h, k, a = (1, 64, 4, 2, 16) if SMOKE else (2, 1024, 32, 8, 64)
    keys = jax.random.split(jax.random.key(0), 4)
    q, kk, v = (jax.random.normal(keys[i], (b, t, n, a), "bfloat16") for i, n in enumerate((h, k, k)))
    weight = jax.random.normal(keys[3], (b, t, h, a))
    packed = Segments(jnp.tile(jnp.arange(t) // (t // 3), (b, 1)))
    computed: dict[str, list[Any]] = {}
    figures: Figures = {}
    with jax.set_mesh(sharding.make_mesh(1, 1)):
        for name, segments in (("whole", None), ("packed", packed)):

            def value(*qkv: Any, segments: Segments | None = segments) -> Any:
                return (attend(*qkv, segments).astype("float32") * weight).sum()

            slope = jax.jit(jax.grad(value, (0, 1, 2)))
            computed[name] = [jax.jit(attend)(q, kk, v, segments), *slope(q, kk, v)]
            figures[f"{name} ms"] = 1e3 * timed(slope, q, kk, v)
    jax.config.update("jax_enable_x64", True)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        exact = [jnp.asarray(np.asarray(x), "float64") for x in (q, kk, v)]
        causal = jnp.tril(jnp.ones((t, t), bool))[None]
        same = np.asarray(packed.segments_BT)[:, :, None] == np.asarray(packed.segments_BT)[:, None]
        for name, mask in (("whole", causal), ("packed", causal & same)):

            def truth(*qkv: Any, mask: Any = mask) -> Any:
                return grouped_attention(*qkv, mask)

            slopes = jax.grad(lambda *qkv, f=truth: (f(*qkv) * np.asarray(weight)).sum(), (0, 1, 2))(*exact)
            for part, found, right in zip(
                ("", " dq", " dk", " dv"), computed[name], (truth(*exact), *slopes), strict=True
            ):
                error = np.abs(np.asarray(found, "float64") - np.asarray(right)).max()
                figures[name + part] = float(error / np.abs(np.asarray(right)).max())
    return figures


def trainer(folder: Path) -> Figures:
    """The real trainer: 60 steps, killed after 40, on again, stopped, and its weights read back."""
    from model import arrays
    from model.training.records import CHECKPOINTS, read_metrics

    job = folder / "koda-124m.json"
    where = Path(Job.read(job).folder)
    codes, resumed = [], []
    for sent, after in ((signal.SIGKILL, 40), (signal.SIGTERM, 50), (None, 60)):
        process = subprocess.Popen([sys.executable, "-P", "-m", "model.training", str(job)])
        while process.poll() is None:
            lines = read_metrics(where).training if (where / "metrics.jsonl").exists() else []
            if sent and lines and lines[-1].step >= after:
                process.send_signal(sent)
                break
            time.sleep(0.2)
        codes.append(process.wait(300))
        resumed.append(max((int(p.name) for p in (where / CHECKPOINTS).iterdir() if p.name.isdigit()), default=0))
    weights = arrays.read(where / CHECKPOINTS / str(resumed[-1]))
    metrics = read_metrics(where).training
    return {
        "codes": codes,
        "checkpoints": resumed,
        "steps": [metrics[0].step, metrics[-1].step],
        "losses": [metrics[0].loss, metrics[-1].loss],
        "finite": all(np.isfinite(array).all() for array in weights.values()),
    }


class Stepper:
    """A training step on one batch, again and again, without the trainer around it."""

    def __init__(self, folder: Path, preset: str, form: Figures, options: dict[str, Any] | None = None):

        from model import sharding
        from model.data.batches import Batches
        from model.training.compiled import compile_step
        from model.training.program import Program

        job = Job.read(folder / f"{preset}.json")
        recipe = {name: form[name] for name in ("optimizer", "batch_size") if name in form}
        compute = {name: form[name] for name in ("remat", "scan", "dtype") if name in form}
        self.job = replace(job, recipe=replace(job.recipe, **recipe), compute=replace(job.compute, **compute))
        recipe, mesh, length = self.job.recipe, sharding.make_mesh(1, 1), self.job.sequence_length
        began = time.perf_counter()
        self.step = compile_step(self.job, mesh, options)
        self.compile_seconds = time.perf_counter() - began
        batches = Batches(Path(self.job.train), batch_size=recipe.batch_size, sequence_length=length, seed=0)
        self.batch = sharding.place_rows(mesh, recipe.batch_size, lambda rows: batches.part(0, rows))
        self.state = Program(self.job).initialize(mesh)

    def __call__(self) -> Any:
        self.state, metrics = self.step(self.state, {}, self.batch)
        return metrics["loss"]


def step(preset: str, folder: Path, options: dict[str, Any] | None = None, **form: Any) -> Figures:
    """One form of the step: milliseconds, tokens/s, MFU (PaLM), seconds to compile, bytes said and taken, loss."""
    import jax

    from model.accelerators import accelerator, flops_per_token
    from model.training.compiled import bytes_of

    stepper = Stepper(folder, preset, form, options)
    for _ in range(WARM):
        jax.block_until_ready(stepper())
    times = []
    for _ in range(STEPS - WARM):
        began = time.perf_counter()
        loss = jax.block_until_ready(stepper())
        times.append(time.perf_counter() - began)
    shape, length = stepper.job.model, stepper.job.sequence_length
    speed = stepper.job.recipe.batch_size * length / float(np.median(times))
    card, stats = accelerator(jax.devices()[0].device_kind), jax.devices()[0].memory_stats() or {}
    return {
        "preset": preset,
        **form,
        "options": options or {},
        "ms": [1e3 * float(value) for value in (np.median(times), min(times), max(times))],
        "tokens_per_second": speed,
        "mfu": speed * flops_per_token(shape, length) / card.bfloat16 if card else None,
        "compile_seconds": stepper.compile_seconds,
        "bytes": dict(zip(PARTS, bytes_of(stepper.step), strict=True)),
        "peak_bytes_in_use": stats.get("peak_bytes_in_use"),
        "loss": float(loss),
    }


def compiled(folder: Path) -> Figures:
    """The step of koda-124m as `koda plan` compiles it for this card, beside what the card itself takes."""
    import jax

    from model.accelerators import accelerator
    from model.training.compiled import bytes_of, compile_step, mesh_of

    here = step("koda-124m", folder)
    if (card := accelerator(jax.devices()[0].device_kind)) is None:
        return {"here": here, "planned": None}
    planned = compile_step(Job.read(folder / "koda-124m.json"), mesh_of(card, 1, 1, 1))
    return {"here": here, "planned": dict(zip(PARTS, bytes_of(planned), strict=True))}


def profile(folder: Path) -> Figures:
    """Seconds of each kernel in three steps, the longest first."""
    import jax

    stepper = Stepper(folder, "koda-1.3b", {})
    jax.block_until_ready(stepper())
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            for _ in range(3):
                loss = stepper()
            jax.block_until_ready(loss)
        spent = Counter[str]()
        for path in Path(scratch).rglob("*.trace.json.gz"):
            events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            devices = {e["pid"] for e in events if e.get("name") == "process_name" and "/device" in e["args"]["name"]}
            for event in events:
                if event.get("ph") == "X" and (event["pid"] in devices or SMOKE):
                    spent[event["name"][:80]] += event["dur"] / 1e6
    return {"kernels": dict(spent.most_common(60)), "total": spent.total()}


def peer(folder: Path, recompute: bool, batch_size: int) -> Figures:
    """transformers in PyTorch on the same shape: bfloat16, SDPA, compiled, fused AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    job = Job.read(folder / "koda-1.3b.json")
    device, fields = "cuda" if torch.cuda.is_available() else "cpu", job.model.to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    config = LlamaConfig(**{name: fields[name] for name in names}, attn_implementation="sdpa", use_cache=False)
    network = LlamaForCausalLM(config).to(device)
    if recompute:
        network.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(network)
    length = job.sequence_length
    tokens = torch.randint(0, job.model.vocab_size, (batch_size, length + 1), device=device)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            logits = forward(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits
        times.append(time.perf_counter() - began)
    steady = times[WARM:]
    return {
        "recompute": recompute,
        "batch_size": batch_size,
        "ms": [1e3 * float(value) for value in (np.median(steady), min(steady), max(steady))],
        "tokens_per_second": batch_size * length / np.median(steady),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "loss": loss.item(),
    }


def save(folder: Path) -> Figures:
    """Two checkpoints of the whole state while it goes on: seconds until the step after it is done, and until it is
    committed; the state that was saved is the one before that step."""
    import jax

    from model import arrays
    from model.training.checkpoints import Checkpoints

    stepper = Stepper(folder, "koda-1.3b", {})
    figures: Figures = {"bytes": arrays.size(stepper.state), "stalls": [], "committed": [], "equal": []}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoints = Checkpoints(Path(scratch), "bench", lambda *_, **__: None, keep=1)
        for number in (1, 2):
            jax.block_until_ready(stepper())
            norm = arrays.flatten(stepper.state.params)["norm/scale"]
            before = np.array(norm)
            began = time.perf_counter()
            checkpoints.save(number, stepper.state, permanent=True)
            jax.block_until_ready(stepper())
            figures["stalls"].append(time.perf_counter() - began)
            checkpoints.wait()
            figures["committed"].append(time.perf_counter() - began)
            saved = arrays.read(Path(scratch) / str(number))
            figures["equal"].append(bool(np.array_equal(saved["params/norm/scale"], before)))
    return figures


def repeat(folder: Path, steps: int = 30) -> Figures:
    """A hash of all arrays after some steps; the case runs twice, and twice more with deterministic operations."""
    import jax

    stepper = Stepper(folder, "koda-124m", {})
    for _ in range(STEPS if SMOKE else steps):
        loss = stepper()
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(stepper.state):
        digest.update(np.asarray(leaf).tobytes())
    return {"loss": float(loss), "sha256": digest.hexdigest(), "flags": os.environ.get("XLA_FLAGS", "")}


SCANNED: Figures = {"scan": True, "optimizer": "muon"}
OPTIONS: dict[str, dict[str, Any]] = {
    "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "double buffering": {"xla_gpu_enable_while_loop_double_buffering": True},
    "no triton gemm": {"xla_gpu_enable_triton_gemm": False},
}
BILLION, SMALL = partial(step, "koda-1.3b"), partial(step, "koda-124m")
ROWS = 2 if SMOKE else 32
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Of each call: the cases, the seconds that each may take, and what it runs. "preset": the form that the preset has.
CALLS: dict[str, dict[str, tuple[int, Callable[[Path], Figures]]]] = {
    "A": {
        "facts": (60, facts),
        "products": (90, products),
        "copies": (60, copies),
        "attention": (90, attention),
        "trainer": (200, trainer),
        "compiled": (120, compiled),
    },
    "B": {
        "full, scanned": (120, partial(BILLION, remat="full", **SCANNED)),
        "dots, scanned": (120, partial(BILLION, remat="dots", **SCANNED)),
        "preset": (120, BILLION),
        "preset, AdamW": (120, partial(BILLION, optimizer="adamw")),
        "preset, twice the rows": (120, partial(BILLION, batch_size=2 * ROWS)),
        "dots, scanned, AdamW": (120, partial(BILLION, remat="dots", scan=True, optimizer="adamw")),
    },
    "C": {
        "profile": (120, profile),
        "dots, unrolled": (150, partial(BILLION, remat="dots")),
        **{name: (90, partial(BILLION, options=options)) for name, options in OPTIONS.items()},
        "koda-124m, four times the rows": (60, partial(SMALL, batch_size=4 * ROWS)),
    },
    "D": {
        "torch": (180, partial(peer, recompute=True, batch_size=ROWS)),
        "koda": (90, partial(BILLION, remat="full", scan=True, optimizer="adamw")),
        "torch, nothing recomputed, half the rows": (180, partial(peer, recompute=False, batch_size=ROWS // 2)),
        "koda, nothing recomputed, half the rows": (90, partial(BILLION, optimizer="adamw", batch_size=ROWS // 2)),
        "save": (300, save),
        **{f"repeat {number}": (50, repeat) for number in (1, 2)},
        **{f"repeat {number}, deterministic": (50, repeat) for number in (1, 2)},
    },
}


def call(name: str, folder: Path) -> int:
    """All cases of a call, each a process; a line for each as it ends. The exit code is 1 where one failed."""
    failed = False
    with (Path(os.environ.get("OUT", folder)) / f"{name}.jsonl").open("a") as lines:
        for case, (seconds, _) in CALLS[name].items():
            began = time.time()
            environment = {**os.environ, "XLA_CLIENT_MEM_FRACTION": "0.92"}
            if "deterministic" in case and not SMOKE:  # a flag that a CPU's XLA does not know would end the process
                environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
            command = [sys.executable, __file__, "case", str(folder), "--call", name, "--case", case]
            command += ["--smoke"] * SMOKE
            line: Figures = {"call": name, "case": case}
            limit = 600 if SMOKE else seconds  # a card's limits are not for a busy processor
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
                found = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
                line |= json.loads(found[0]) if found else {"error": done.stderr.strip()[-2000:]}
            except subprocess.TimeoutExpired:
                line["error"] = f"not done after {limit} s"
            line["case_seconds"] = round(time.time() - began, 1)
            failed |= "error" in line
            print(json.dumps(line), file=lines, flush=True)
            print(json.dumps(line), flush=True)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", *CALLS, "case"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, on whatever is here")
    parser.add_argument("--call", choices=CALLS, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.what == "prepare":
        prepare(arguments.folder)
    elif arguments.what == "case":
        print(json.dumps(CALLS[arguments.call][arguments.case][1](arguments.folder)))
    else:
        return call(arguments.what, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
