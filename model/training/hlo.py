"""What a compiled step does on one device, read from the program that XLA's GPU compiler printed (HLO text)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "partition-id", "after-all", "iota"}
CALLS = re.compile(r"(?:calls|to_apply|body|called_computations=\{)=?%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
LINE = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
CONTRACTED = re.compile(r'lhs_contracting_(?:dims=\{|dimensions":\[)([\d,"]*)')

Shape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Operation:
    """One kernel, and how often a step runs it. Figures are of one run, on one device."""

    kind: Literal["gemm", "attention", "collective", "other"]
    name: str  # gemm: the type of what is multiplied; collective: which one; else HLO's name of the operation
    times: int
    flops: float = 0.0
    bytes: float = 0.0  # read and written in the device's memory
    wire: float = 0.0  # bytes of a collective's result


@dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    code: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes, as printed


def operations(text: str) -> list[Operation]:
    """All kernels of a program, those in loops with their number of trips."""
    computations, entry = _computations(text)
    return list(_walk(computations, entry, 1))


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := LINE.match(line)):
            name, shape, code, rest = found.groups()
            inside = rest[: _closing(rest)]
            current.append(_Instruction(name, _shapes(shape), code, tuple(re.findall(r"%([\w.\-]+)", inside)), rest))
    return computations, entry


def _closing(rest: str) -> int:
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(rest)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple((kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in SHAPE.findall(text))


def _size(shapes: tuple[Shape, ...]) -> float:
    return sum(BYTES.get(kind, 1) * math.prod(sizes) for kind, sizes in shapes)


def _walk(computations: dict[str, list[_Instruction]], name: str, times: int) -> Iterator[Operation]:
    known = {instruction.name: instruction.shapes for instruction in computations[name]}
    for instruction in computations[name]:
        code, base = instruction.code, instruction.code.removesuffix("-start")
        called = [each for each in CALLS.findall(instruction.rest) if each in computations]
        if base in COLLECTIVES:
            shapes, count = instruction.shapes, len(instruction.operands)
            if code.endswith("-start") and len(shapes) >= 2 * count:  # it shows its operands too, before its results
                shapes = shapes[count : 2 * count]
            yield Operation("collective", base, times, wire=_size(shapes))
        elif code == "while":
            trips = TRIPS.search(instruction.rest)
            for body in called:
                yield from _walk(computations, body, times * (int(trips[1]) if trips else 1))
        elif code in ("call", "conditional", "async-start"):
            for body in called:
                yield from _walk(computations, body, times)
        elif code in FREE or code.endswith("-done"):
            continue
        else:
            yield _kernel(computations, instruction, known, called, times)


def _kernel(
    computations: dict[str, list[_Instruction]],
    instruction: _Instruction,
    known: dict[str, tuple[Shape, ...]],
    called: list[str],
    times: int,
) -> Operation:
    inside = [each for name in called for each in _within(computations, name)] if instruction.code == "fusion" else []
    moved = _moved(instruction, known, computations[called[0]] if inside else [])
    if "__cudnn$fmha" in instruction.rest:
        (_, (rows, time, heads, size)) = known[instruction.operands[0]][0]
        backward = "fmhaSoftmaxBackward" in instruction.rest
        flops = (5 if backward else 2) * rows * heads * time * time * size  # half of them are masked, and not computed
        return Operation("attention", "cudnn", times, flops=flops, bytes=moved)
    products = [(each, shapes) for each, shapes in inside if each.code == "dot"] or [(instruction, known)]
    flops, kind = 0, ""
    for product, shapes in products:
        contracted = CONTRACTED.search(product.rest)
        if contracted and shapes.get(product.operands[0]):
            kind, sizes = shapes[product.operands[0]][0]
            depth = math.prod(sizes[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
            flops += 2 * depth * math.prod(product.shapes[0][1])
    if flops:
        return Operation("gemm", kind, times, flops=flops, bytes=moved)
    return Operation("other", instruction.code, times, bytes=moved)


def _within(
    computations: dict[str, list[_Instruction]], name: str
) -> Iterator[tuple[_Instruction, dict[str, tuple[Shape, ...]]]]:
    """The instructions of a fused computation and of those fused into it, with the shapes that are known there."""
    known = {each.name: each.shapes for each in computations[name]}
    for each in computations[name]:
        yield each, known
        if each.code == "fusion":
            for called in CALLS.findall(each.rest):
                if called in computations:
                    yield from _within(computations, called)


def _moved(instruction: _Instruction, known: dict[str, tuple[Shape, ...]], fused: list[_Instruction]) -> float:
    """Bytes that a kernel reads and writes: of an operand of which it takes or replaces a slice, the slice alone."""
    read = {name: _size(known.get(name, ())) for name in instruction.operands}
    written = _size(instruction.shapes)
    parameters = {each.name: int(each.rest.split(")")[0]) for each in fused if each.code == "parameter"}
    shapes = {each.name: each.shapes for each in fused}
    for each in fused:
        source = parameters.get(each.operands[0]) if each.operands else None
        if source is None or source >= len(instruction.operands):
            continue
        if each.code in ("dynamic-slice", "gather"):
            read[instruction.operands[source]] = _size(each.shapes)
        elif each.code == "dynamic-update-slice":
            slice_bytes = _size(shapes.get(each.operands[1], ()))
            read[instruction.operands[source]] = 0.0
            written += slice_bytes - _size(each.shapes)
    return sum(read.values()) + max(written, 0.0)
