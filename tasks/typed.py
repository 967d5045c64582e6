"""JSON → the type that it was written from."""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

Value = TypeVar("Value")


def typed(kind: type[Value], json: Any) -> Value:
    """`json` as a `kind`: a dataclass, or a container of some. Raises ValueError, with the field, where it is none."""
    adapter: TypeAdapter[Value] = _adapter(kind)  # type: ignore[arg-type]  # a type is hashable
    return adapter.validate_python(json)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
