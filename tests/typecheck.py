"""What checks every annotation while the tests run: beartype, with two readings that it lacks.

Integers are welcome where floats are asked for, and a file in memory is a binary file (beartype's own protocol of
`IO[bytes]` names attributes that `io.BytesIO` has not).

The hook of jaxtyping wraps every function for shapes that belong together, which makes one that has none ten times
slower; `checked` leaves those to beartype alone.
"""

import dataclasses
import io
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import IO, Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,
        hint_overrides=FrozenDict({IO[bytes]: IO[bytes] | io.BytesIO}),
        violation_type=TypeError,
    )
)
with_shapes = jaxtyping.jaxtyped


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`, which the hook writes over every function and class."""

    def decorate(decorated: Any) -> Any:
        if not isinstance(decorated, type):
            return _checked(decorated, typechecker)
        if dataclasses.is_dataclass(decorated) and isinstance(decorated.__init__, FunctionType):
            decorated.__init__ = _checked(decorated.__init__, typechecker)  # type: ignore[method-assign]
        return decorated

    return decorate


def _checked(function: FunctionType, typechecker: Callable[[Any], Any]) -> Any:
    written = function.__annotations__
    known = {name: _resolved(each, function) for name, each in written.items()}
    if any(map(names_a_shape, known.values())):
        return with_shapes(function, typechecker=typechecker)
    function.__annotations__ = known
    found = typechecker(function)
    function.__annotations__ = found.__annotations__ = written
    return found


def _resolved(annotation: object, function: FunctionType) -> Any:
    """What it stands for where the function is defined; a name that is not known there yet stands for anything."""

    def read(value: Any) -> None: ...

    read.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(read, function.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def names_a_shape(annotation: object) -> bool:
    """Whether it is one or holds one, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    inner: Iterable[Any] = annotation if isinstance(annotation, list) else get_args(annotation)
    return any(map(names_a_shape, inner))
