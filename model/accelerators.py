"""GPUs: what their makers say of their speed and memory, and what XLA's compiler must know of them.

A card that is not in the table is described in a TOML file with the same names (`koda plan --gpu FILE.toml`).
"""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from model.config import LlamaConfig
from model.errors import KodaError

GIB = 2**30
USABLE = 0.92  # of a device's memory: the rest goes to the driver, the collectives, and gaps between buffers


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU. Rates are the maker's peaks for dense matrix products with float32 sums."""

    name: str  # as the driver says it, or a part of that
    bfloat16: float  # FLOP/s
    tf32: float  # FLOP/s; what a float32 product is computed in, unless more is asked for
    float8: float = 0.0  # FLOP/s; 0: there is none
    memory: int  # bytes, as the driver reports them
    bandwidth: float  # bytes/s of the memory
    link: float  # bytes/s to the other cards, in each direction: NVLink where the card has it, else PCIe
    dollars: float  # an hour; a usual price on demand in 2025, an assumption and not a quotation
    capability: tuple[int, int]  # CUDA compute capability
    processors: int  # streaming multiprocessors
    clock: float  # GHz, boost
    l2: int  # bytes
    shared: int  # bytes of shared memory in a processor; a block may use 1 KiB less
    threads: int  # that a processor holds at once

    def target_config(self) -> str:
        """The card as XLA's compiler takes it (`GpuTargetConfigProto`), so that it compiles where no card is."""
        major, minor = self.capability
        extension = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{
                major: {major} minor: {minor} feature_extension: {extension}
              }}
              core_count: {self.processors} fpus_per_core: {64 if self.capability == (8, 0) else 128}
              clock_rate_ghz: {self.clock} memory_bandwidth: {round(self.bandwidth)} device_memory_size: {self.memory}
              l2_cache_size: {self.l2} shared_memory_per_core: {self.shared} shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared - 1024} threads_per_core_limit: {self.threads}
              threads_per_block_limit: 1024 threads_per_warp: 32
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


# Rates and memory: NVIDIA's data sheets (half of what they give "with sparsity"); the rest: CUDA's programming guide
# and the specifications in XLA's source (xla/backends/gpu/target_config/specs).
L40S = Accelerator(
    name="L40S",
    bfloat16=362.05e12,
    tf32=183e12,
    float8=733e12,
    memory=46068 * 2**20,
    bandwidth=864e9,
    link=32e9,
    dollars=1.0,
    capability=(8, 9),
    processors=142,
    clock=2.52,
    l2=96 * 2**20,
    shared=100 * 2**10,
    threads=1536,
)
RTX4090 = replace(
    L40S,
    name="RTX4090",
    bfloat16=165.2e12,
    tf32=82.6e12,
    float8=330.3e12,
    memory=24564 * 2**20,
    bandwidth=1008e9,
    dollars=0.5,
    processors=128,
    l2=72 * 2**20,
)
A100 = Accelerator(
    name="A100",
    bfloat16=312e12,
    tf32=156e12,
    memory=81920 * 2**20,
    bandwidth=2039e9,
    link=300e9,
    dollars=1.6,
    capability=(8, 0),
    processors=108,
    clock=1.41,
    l2=40 * 2**20,
    shared=164 * 2**10,
    threads=2048,
)
H100 = Accelerator(
    name="H100",
    bfloat16=989.4e12,
    tf32=494.7e12,
    float8=1978.9e12,
    memory=81559 * 2**20,
    bandwidth=3350e9,
    link=450e9,
    dollars=2.7,
    capability=(9, 0),
    processors=132,
    clock=1.98,
    l2=50 * 2**20,
    shared=228 * 2**10,
    threads=2048,
)
H200 = replace(H100, name="H200", memory=143771 * 2**20, bandwidth=4800e9, l2=60 * 2**20, dollars=3.5)
B200 = replace(
    H100,
    name="B200",
    bfloat16=2250e12,
    tf32=1125e12,
    float8=4500e12,
    memory=182642 * 2**20,
    bandwidth=7672e9,
    link=900e9,
    dollars=5.0,
    capability=(10, 0),
    processors=148,
    clock=1.965,
    l2=132644864,
)
ACCELERATORS = {card.name: card for card in (L40S, RTX4090, A100, H100, H200, B200)}


def named(name: str) -> Accelerator:
    """The card of this name, or the one that a TOML file describes. Raises KodaError where it is neither."""
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    if not name.endswith(".toml"):
        known = ", ".join(ACCELERATORS)
        wanted = ", ".join(field.name for field in fields(Accelerator))
        raise KodaError(f"--gpu {name}: known are {known}; another one is described in a TOML file with {wanted}.")
    try:
        written = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        return Accelerator(**{**written, "capability": tuple(written["capability"])})
    except OSError as error:
        raise KodaError(f"--gpu {name}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise KodaError(f"--gpu {name}: {str(error).removeprefix('Accelerator.__init__() ')}.") from error


def accelerator(device_kind: str) -> Accelerator | None:
    """The accelerator of a device name from JAX or PyTorch ("NVIDIA H100 80GB HBM3"); None for an unknown one.

    The PCIe form of the H100 is slower than the SXM form, and has its own figure.
    """
    if "PCIe" in device_kind and "H100" in device_kind:
        return replace(H100, bfloat16=756e12)
    joined = device_kind.replace(" ", "")
    return next((card for name, card in ACCELERATORS.items() if name in joined), None)


def flops_per_token(shape: LlamaConfig, sequence: int, *, causal: bool = False) -> float:
    """Floating-point operations of one training step per token, forward and backward, without recomputation.

    PaLM's convention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 N + 12 L · heads · head_dim · T. N is the
    number of weights in matrix products: the head counts, an embedding that is only looked up does not. With `causal`
    the masked half of attention counts as no work.
    """
    embedding = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    attention = 12 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * sequence
    return 6 * (shape.parameters - embedding) + attention / (2 if causal else 1)
