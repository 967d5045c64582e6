"""Peak compute and memory of accelerators, and the operations that a model needs per token."""

from typing import NamedTuple

from model.config import LlamaConfig

GIB = 2**30
USABLE = 0.92  # of a device's memory: the rest goes to the driver, the collectives, and gaps between buffers


class Accelerator(NamedTuple):
    """One device: the maker's figures for dense matrix products in bfloat16, and the memory that the driver reports."""

    flops: float  # peak, per second
    memory: float  # bytes
    dollars: float  # per hour; a usual price on demand in 2025, an assumption and not a quotation


ACCELERATORS = {
    # NVIDIA L40S data sheet: 362 TFLOPS (733 with sparsity), 48 GB
    "L40S": Accelerator(362.05e12, 46068 * 2**20, 1.0),
    # NVIDIA A100 data sheet: 312 TFLOPS (624 with sparsity), 80 GB
    "A100": Accelerator(312e12, 81920 * 2**20, 1.6),
    # NVIDIA H100 data sheet, SXM: 1,979 TFLOPS with sparsity, half of it dense, 80 GB
    "H100": Accelerator(989.4e12, 81559 * 2**20, 2.7),
    # NVIDIA H200 data sheet, SXM: as the H100, 141 GB
    "H200": Accelerator(989.4e12, 143771 * 2**20, 3.5),
}


def accelerator(device_kind: str) -> Accelerator | None:
    """The accelerator of a device name from JAX or PyTorch ("NVIDIA H100 80GB HBM3"); None for an unknown one.

    The PCIe form of the H100 is slower than the SXM form, and has its own figure.
    """
    if "PCIe" in device_kind and "H100" in device_kind:
        return ACCELERATORS["H100"]._replace(flops=756e12)
    return next((device for name, device in ACCELERATORS.items() if name in device_kind), None)


def flops_per_token(shape: LlamaConfig, sequence: int, *, causal: bool = False) -> float:
    """Floating-point operations of one training step per token, forward and backward, without recomputation.

    PaLM's convention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 N + 12 L · heads · head_dim · T. N is the
    number of weights in matrix products: the head counts, an embedding that is only looked up does not. With `causal`
    the masked half of attention counts as no work.
    """
    embedding = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * sequence
    return 6 * (shape.parameters - embedding) + attention / (2 if causal else 1)
