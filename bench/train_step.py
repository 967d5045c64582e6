"""Tokens per second of a training step, Koda beside transformers' LlamaForCausalLM in PyTorch, at the same shapes.

Both take the same step: forward, loss, backward, global-norm clipping, AdamW, on the same token ids. PyTorch runs with
SDPA and the fused AdamW.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from alternate import Work, alternate, ratios, serve
from table import Spread, options, parse, show

STEPS = 4  # in one turn of a peer
TORCH = ("torch float32", "torch float32 compiled", "torch bfloat16", "torch bfloat16 compiled")
KODA = ("koda float32", "koda bfloat16", "koda float32 muon")
SIZE = {
    "layers": 6,
    "hidden": 256,
    "heads": 8,
    "kv-heads": 4,
    "intermediate": 704,
    "vocabulary": 4096,
    "batch": 16,
    "sequence": 256,
}
SMALLEST = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "intermediate": 64, "vocabulary": 128}


def main() -> None:
    parser = options(__doc__, rounds=8)
    parser.add_argument("--preset", help="a preset's shape and batch; the options below change it")
    for name, default in SIZE.items():
        parser.add_argument(f"--{name}", type=int, help=f"(default: {default})")
    parser.add_argument("--remat", choices=("none", "dots", "full"))
    parser.add_argument("--scan", action="store_true", default=None)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--peers", default=",".join((*TORCH, *KODA)), help="which, separated by commas")
    arguments = parse(parser, rounds=1, batch=2, sequence=16, **SMALLEST)
    step = TrainStep(arguments)
    if arguments.peer:
        serve(lambda: step.peer(arguments.peer))
        return
    names = arguments.peers.split(",")
    figures = alternate(names, arguments.rounds)
    ratio = ratios(figures, "tokens/s", names[0])
    rows = []
    for name in names:
        speed = Spread.of(figures[name]["tokens/s"])
        rows.append([name, speed, ratio[name], *step.utilisation(speed)])
    show(step.title(arguments.rounds), ["", "tokens/s", "ratio", *step.columns], rows, arguments.json)


class TrainStep:
    """The shape, the batch, and how each peer takes a step of it."""

    def __init__(self, arguments):
        from model.config import Compute, LlamaConfig

        size, compute = dict(SIZE), Compute()
        if arguments.preset:
            from flows.config import load

            config = load(arguments.preset)
            shape, train = config.model, config.pretrain
            size = {
                "layers": shape.num_hidden_layers,
                "hidden": shape.hidden_size,
                "heads": shape.num_attention_heads,
                "kv-heads": shape.num_key_value_heads,
                "intermediate": shape.intermediate_size,
                "vocabulary": 50257 if config.tokenize.tokenizer != "train" else config.tokenize.vocab_size,
                "batch": train.batch_size,
                "sequence": shape.max_position_embeddings,
            }
            compute = train.compute()
        for name in SIZE:
            option = getattr(arguments, name.replace("-", "_"))
            size[name] = size[name] if option is None else option
        self.arguments, self.size = arguments, size
        self.batch, self.sequence = size["batch"], size["sequence"]
        self.compute = Compute(
            remat=arguments.remat or ("none" if arguments.scan else compute.remat),
            scan=compute.scan if arguments.scan is None else arguments.scan,
        )
        self.shape = LlamaConfig(
            vocab_size=size["vocabulary"],
            hidden_size=size["hidden"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            num_key_value_heads=size["kv-heads"],
            intermediate_size=size["intermediate"],
            max_position_embeddings=size["sequence"],
            tie_word_embeddings=False,
        )
        self.accelerator = self.device()
        self.columns = ["MFU, PaLM", "MFU, causal"] if self.accelerator else []

    def title(self, rounds: int) -> str:
        s = self.size
        return (
            f"train step, {s['layers']} × {s['hidden']}, {s['heads']}/{s['kv-heads']} heads, vocabulary "
            f"{s['vocabulary']:,}, {s['batch']} × {s['sequence']} tokens, {rounds} rounds alternating, "
            "median (min–max)"
        )

    def device(self):
        """The accelerator that this runs on, as PyTorch names it, in a process of its own; None on a CPU."""
        from model.accelerators import accelerator

        code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
        name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
        return accelerator(name) if name else None

    def utilisation(self, tokens_per_second: Spread) -> list[str]:
        """Model FLOPs utilisation: the operations the model needs, over those the devices could have done."""
        from model.accelerators import flops_per_token

        if not self.accelerator:
            return []
        peak = self.arguments.fsdp * self.accelerator.bfloat16
        needed = [flops_per_token(self.shape, self.sequence, causal=causal) for causal in (False, True)]
        return [f"{100 * tokens_per_second.median * each / peak:.1f} %" for each in needed]

    def peer(self, name: str) -> Work:
        if name not in TORCH + KODA:
            raise ValueError(f"there is no such peer; the peers are {', '.join(TORCH + KODA)}")
        framework, dtype, *more = name.split()
        step = self.torch(dtype, *more) if framework == "torch" else self.koda(dtype, *more)

        def turn() -> dict[str, float]:
            began = time.perf_counter()
            for _ in range(STEPS):
                loss = step()
            assert 0 < float(loss) < 100
            return {"tokens/s": STEPS * self.batch * self.sequence / (time.perf_counter() - began)}

        return turn

    def rows(self):
        import numpy as np

        return np.random.default_rng(0).integers(0, self.shape.vocab_size, (self.batch, self.sequence + 1), np.int32)

    def torch(self, dtype: str, compiled: str = "") -> Callable:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from model.export.hf_config import to_hf_config

        device = "cuda" if torch.cuda.is_available() else "cpu"
        # No padding token: its embedding would be a constant.
        fields = to_hf_config(self.shape, dtype="float32") | {
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
            "use_cache": False,
        }
        model = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="sdpa")).to(device)
        assert model.num_parameters() == self.shape.parameters, "the peers have different shapes"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        forward = torch.compile(model) if compiled else model
        tokens = torch.from_numpy(self.rows().astype("int64")).to(device)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = forward(input_ids=tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.detach()

        return step

    def koda(self, dtype: str, optimizer: str = "adamw") -> Callable:
        from dataclasses import replace

        import jax
        import jax.numpy as jnp
        from flax import nnx

        from model import sharding, weights
        from model.data.batches import Batch
        from model.llama import Llama
        from model.training import optimizer as optimizers
        from model.training.step import State, make_step
        from tasks.pretrain import Pretrain

        recipe = Pretrain(optimizer=optimizer, warmup_steps=0).recipe()
        mesh = sharding.make_mesh(self.arguments.fsdp, 1)
        model = Llama(self.shape, replace(self.compute, dtype=dtype), rngs=nnx.Rngs(0))
        graph, abstract = nnx.split(model)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        optimizer_ = optimizers.build(recipe, self.shape.hidden_size, dtype)
        self.state = sharding.place(mesh, State(jnp.int32(0), params, optimizer_.init(params)))
        update = make_step(lambda p, f: weights.build(graph, abstract, f, p), optimizer_, recipe.z_loss)
        rows = self.rows()
        batch = Batch(rows[:, :-1], rows[:, 1:], (rows[:, 1:] >= 0).astype("float32"), None)

        def step():
            with jax.set_mesh(mesh):
                placed = sharding.place_rows(mesh, self.batch, lambda rows: jax.tree.map(lambda a: a[rows], batch))
                self.state, metrics = update(self.state, {}, placed)
            return metrics["loss"]

        return step


if __name__ == "__main__":
    sys.exit(main())
