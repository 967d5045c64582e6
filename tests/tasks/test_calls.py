"""Every function that runs in a process of its own is called by its name, its arguments and its result.

Neither mypy nor an import sees through the text `"module:function"`; a wrong one would fail once the stage gets there.
"""

import ast
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest

PROJECT = Path(__file__).parents[2]
CALLS = {"call": 3, "retried_call": 3, "Order": 2}  # and how many arguments they have without a name
OWN = {"environment", "background_gb"}  # keywords of `call` itself


class Call(NamedTuple):
    """A `call(function, log, returns, **arguments)` in the source, a `retried_call` or an `Order` of several calls."""

    place: str
    function: str  # module:function
    returns: Any
    arguments: set[str]


def calls() -> list[Call]:
    paths = sorted(path for folder in ("tasks", "flows") for path in (PROJECT / folder).rglob("*.py"))
    passing_on = {PROJECT / "tasks/stage.py", PROJECT / "tasks/supervise.py"}
    return [call for path in paths if path not in passing_on for call in calls_in(path)]


def calls_in(path: Path) -> Iterator[Call]:
    module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for function in filter(is_function, ast.walk(ast.parse(path.read_text()))):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                name, *_, returns = node.args
                assert isinstance(name, ast.Constant) and len(node.args) == CALLS[node.func.id], ast.unparse(node)
                # The type is written as an expression of that module.
                kind = eval(ast.unparse(returns), vars(import_module(module)))
                names = {key for keyword in node.keywords for key in keys(keyword, function)}
                yield Call(f"{module}:{node.lineno}", name.value, kind, names - OWN)


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


def keys(keyword: ast.keyword, function: ast.AST) -> Iterator[str]:
    """The names of an argument, or of those that `**name` stands for: a dict that the same function writes out."""
    if keyword.arg is not None:
        yield keyword.arg
        return
    assert isinstance(keyword.value, ast.Name), f"**{ast.unparse(keyword.value)} cannot be followed"
    written = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and any(
            ast.unparse(target) == keyword.value.id
            for target in getattr(node, "targets", [getattr(node, "target", None)])
        )
    ]
    assert len(written) == 1, f"**{keyword.value.id} cannot be followed"
    for key in written[0].keys:
        assert isinstance(key, ast.Constant)
        yield key.value


@pytest.mark.parametrize("call", calls(), ids=lambda call: f"{call.place} {call.function}")
def test_called_function_exists_with_these_arguments_and_this_result(call: Call) -> None:
    module, name = call.function.split(":")
    function = getattr(import_module(module), name)
    signature(function).bind(**dict.fromkeys(call.arguments))
    hints = get_type_hints(function)
    assert hints["return"] == call.returns
    paths = [argument for argument in call.arguments if hints.get(argument) is Path]
    assert not paths, "what arrives there is text"


def test_every_stage_that_computes_is_among_them() -> None:
    """What is looked for is found: the stages whose work is done by JAX, and what plans it and measures it."""
    modules = {call.place.partition(":")[0] for call in calls()}
    computing = {"pretrain", "checkpoint", "sft", "extend", "convert", "evaluate", "nightly"}
    assert modules >= {f"tasks.{name}" for name in computing} | {"flows.cli.plan"}
