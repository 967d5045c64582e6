"""What is read from a compiled program, on one small enough to count by hand."""

import pytest

from model.accelerators import ACCELERATORS
from model.training.hlo import Operation, operations
from model.training.roofline import FAST, SLOW, estimate

PROGRAM = """
HloModule jit_step, is_scheduled=true

%product (a.1: bf16[8,64,32], b.1: bf16[32,16], i.1: s32[]) -> bf16[64,16] {
  %a.1 = bf16[8,64,32]{2,1,0} parameter(0)
  %b.1 = bf16[32,16]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = bf16[1,64,32]{2,1,0} dynamic-slice(%a.1, %i.1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %flat = bf16[64,32]{1,0} bitcast(%slice)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%flat, %b.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], bf16[8,64,32])) -> (s32[], bf16[8,64,32]) {
  %state = (s32[], bf16[8,64,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = bf16[8,64,32]{2,1,0} get-tuple-element(%state), index=1
  %w = bf16[32,16]{1,0} constant({...})
  %fusion = bf16[64,16]{1,0} fusion(%a, %w, %i), kind=kCustom, calls=%product, backend_config={"kind":"__triton_gemm"}
  %all-reduce-start = bf16[64,16]{1,0} all-reduce-start(%fusion), to_apply=%add
  %all-reduce-done = bf16[64,16]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %next = (s32[], bf16[8,64,32]{2,1,0}) tuple(%i, %a)
}

ENTRY %main (x: bf16[8,64,32]) -> f32[10] {
  %x = bf16[8,64,32]{2,1,0} parameter(0)
  %start = s32[] constant(0)
  %init = (s32[], /*index=1*/bf16[8,64,32]{2,1,0}) tuple(%start, %x)
  %while = (s32[], bf16[8,64,32]{2,1,0}) while(%init), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  %gathered = (f32[5]{0}, f32[10]{0}) all-gather-start(%half), dimensions={0}
  ROOT %all-gather-done = f32[10]{0} all-gather-done(%gathered)
}
"""


def test_products_collectives_and_bytes_are_counted_with_their_trips() -> None:
    """5 × a product of 64 × 32 by 32 × 16 out of a stack of 8, and its sum over devices; one gather of ten numbers."""
    read = 2 * (64 * 32 + 32 * 16) + 4  # of the stack, one layer
    assert operations(PROGRAM) == [
        Operation("gemm", "bf16", 5, flops=2 * 64 * 32 * 16, bytes=read + 2 * 64 * 16),
        Operation("collective", "all-reduce", 5, wire=2 * 64 * 16),
        Operation("collective", "all-gather", 1, wire=40),
    ]


def test_time_is_that_of_what_bounds_each_kernel() -> None:
    card = ACCELERATORS["L40S"]
    kernels = [
        Operation("gemm", "bf16", 2, flops=1e12, bytes=1e6),  # bound by arithmetic
        Operation("gemm", "f32", 1, flops=1e12),
        Operation("other", "fusion", 3, bytes=1e9),
        Operation("collective", "all-reduce", 1, wire=1e9),
    ]
    time = estimate(kernels, card, 2)
    slow = 2e12 / (SLOW.gemm * 362.05e12) + 1e12 / (SLOW.gemm * 183e12) + 3e9 / (SLOW.memory * 864e9)
    assert time.high == pytest.approx(slow + 1e9 / (SLOW.wire * 32e9))  # of two devices, each sends a byte once
    fast = 2e12 / (FAST.gemm * 362.05e12) + 1e12 / (FAST.gemm * 183e12) + 3e9 / (FAST.memory * 864e9)
    assert time.low == pytest.approx(max(fast, 1e9 / (FAST.wire * 32e9)))  # the wire is hidden
