"""A typed function as a command: the one place that knows the command-line library (tyro).

Positional-only parameters become arguments named as the parameter (`checkpoint` is shown as CHECKPOINT), keyword-only
parameters become options, and `json: bool = False` is the flag `--json`.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, get_args, get_origin

import tyro


def command(name: str) -> Callable[..., int | None]:
    """The function of a command: `eval run` is `eval_run` in `qwenvl/cli/eval_run.py`."""
    function_name = name.replace(" ", "_")
    return getattr(import_module(f"qwenvl.cli.{function_name}"), function_name)


def bind(name: str, args: list[str]) -> Callable[[], int]:
    """Check a command's arguments and return the call; SystemExit 0 after --help, 2 after a bad option."""
    function = command(name)

    @functools.wraps(function)
    def record(*positional: Any, **options: Any) -> Callable[[], int]:
        return lambda: function(*positional, **options) or 0

    del record.__wrapped__  # or tyro would look through to the bare signature
    record.__signature__ = _named_arguments(inspect.signature(function))  # type: ignore[attr-defined]
    record.__annotations__ = {p: q.annotation for p, q in record.__signature__.parameters.items()}  # type: ignore
    return tyro.cli(record, prog=f"qwenvl {name}", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _named_arguments(signature: inspect.Signature) -> inspect.Signature:
    """Give each positional argument its own name in the help, where the command has not given it another."""
    return signature.replace(
        parameters=[
            p.replace(annotation=Annotated[p.annotation, tyro.conf.arg(metavar=_metavar(p))])
            if p.kind is p.POSITIONAL_ONLY and get_origin(p.annotation) is not Annotated
            else p
            for p in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )


def _metavar(parameter: inspect.Parameter) -> str:
    shape, item = get_origin(parameter.annotation), get_args(parameter.annotation)[-1:]
    many = shape is list or (shape is tuple and item == (...,))
    name = parameter.name.upper()
    return f"{name.removesuffix('S')}..." if many else name
