"""A typed function as a command: the one place that knows the command-line library (tyro).

Positional-only parameters become arguments named as the parameter (`checkpoint` is shown as CHECKPOINT), keyword-only
parameters become options, and `json: bool = False` is the flag `--json`. Help is never wider than the terminal.
"""

import ast
import dataclasses
import functools
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EACCES, EPERM, EROFS
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from qwenvl.files import clear_dead

DEFAULT_PLACE = Path("runs")
"""Below which a command writes that chooses a folder where `--out` was not given."""

WIDEST = 100
"""Columns of help text at most: longer lines are hard to read even where they fit."""


def command(name: str) -> Callable[..., int | None]:
    """The function of a command: `eval run` is `eval_run` in `qwenvl/cli/eval_run.py`."""
    function_name = name.replace(" ", "_")
    return getattr(import_module(f"qwenvl.cli.{function_name}"), function_name)


def bind(name: str, args: list[str]) -> Callable[[], int]:
    """Check a command's arguments and return the call; SystemExit 0 after --help, 2 after a bad option."""
    function = command(name)

    @functools.wraps(function)
    def record(*positional: Any, **options: Any) -> Callable[[], int]:
        def run() -> int | None:
            _require_sound(positional, options, inspect.signature(function))
            return function(*positional, **options)

        return lambda: _writing(*_output(positional, options, inspect.signature(function)), run) or 0

    signature = _as_shown(inspect.signature(function))
    del record.__wrapped__  # or tyro would look through to the bare signature
    record.__signature__ = signature  # type: ignore[attr-defined]
    record.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return tyro.cli(
        record,
        prog=f"qwenvl {name}",
        description=_description(function),
        args=_options_last(args, inspect.signature(function)),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _options_last(args: Sequence[str], signature: inspect.Signature) -> list[str]:
    """The same command line with its options behind its arguments: `ask tiny --sample photo.jpg "What?"`.

    A flag takes no word, a list all words up to the next option (and may be given again for more), every other option
    one. Behind `--` words are words. Raises ValueError for an option that is given twice.
    """
    kinds = {f"--{name}": kind for name, kind in _option_kinds(signature)}
    words: list[str] = []
    options: dict[str, list[str]] = {}
    at = 0
    while at < len(args):
        word = args[at]
        at += 1
        if word == "--":
            words += args[at:]
            break
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        kind = kinds.get(name.replace("_", "-"))
        several = get_origin(kind) in (tuple, list)
        if name in options and not several:
            raise ValueError(f"{name} is given twice; give it once.")
        values = options.setdefault(name, [])
        values += [value] if equals else []
        most = 0 if equals or kind is bool else len(args) if several else 1
        while most and at < len(args) and not args[at].startswith("--"):
            values.append(args[at])
            at, most = at + 1, most - 1
    return [*words, *(word for name, values in options.items() for word in (name, *values))]


def _option_kinds(signature: inspect.Signature) -> Iterator[tuple[str, Any]]:
    """Name and type of every option, those of a dataclass among them; `X | None` is an X."""
    for parameter in signature.parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        kind, marks = _unmarked(parameter.annotation)
        named: list[str] = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        start = named[0] if named else parameter.name
        if dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            for field in hints:
                yield (
                    ".".join(filter(None, (start, field))).replace("_", "-"),
                    _plain(_unmarked(hints[field])[0]),
                )
        else:
            yield start.replace("_", "-"), _plain(kind)


def _unmarked(annotation: Any) -> tuple[Any, list[Any]]:
    """A type and what `Annotated` says beside it."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    return kind, marks


def _plain(kind: Any) -> Any:
    choices = [choice for choice in get_args(kind) if choice is not NoneType]
    if choices == [bool]:  # True, False or not given: no flag, it takes a word
        return str
    return choices[0] if NoneType in get_args(kind) and len(choices) == 1 else kind


def _require_sound(
    positional: Sequence[Any], options: Mapping[str, Any], signature: inspect.Signature
) -> None:
    """Raises ValueError for a number that no counter holds, an output that would overwrite an input, and for an
    --images that is no folder."""
    out, images = options.get("out"), options.get("images")
    named = [*positional, *(value for name, value in options.items() if name != "out")]
    inputs = [each for value in named for each in (value if isinstance(value, tuple | list) else [value])]
    for name, value in _numbers(options, signature):
        if abs(value) > sys.maxsize:
            raise ValueError(f"{name} is {value}; expected at most {sys.maxsize}.")
    if isinstance(out, Path) and out.is_file():
        for each in inputs:
            if isinstance(each, str | Path) and _is_same(Path(each), out):
                raise ValueError(
                    f"--out {out} is one of the files that are read; name another file for the result."
                )
    optional = "images" in signature.parameters and signature.parameters["images"].default is None
    if optional and isinstance(images, Path) and not images.is_dir():
        raise ValueError(f"--images {images} is no folder; name the one that holds the images.")


def _numbers(options: Mapping[str, Any], signature: inspect.Signature) -> Iterator[tuple[str, int]]:
    """Whole numbers that were given, by the options that a person types: those of a dataclass too."""
    for name, value in options.items():
        if not dataclasses.is_dataclass(value):
            fields = {"": value}
        else:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        marks = _unmarked(signature.parameters[name].annotation)[1]
        start = "" if "" in [getattr(mark, "name", None) for mark in marks] else name
        for field, each in fields.items():
            if isinstance(each, int):
                yield "--" + ".".join(filter(None, (start, field))).replace("_", "-"), each


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # a word that is no path
        return False


def _output(
    positional: Sequence[Any], options: Mapping[str, Any], signature: inspect.Signature
) -> tuple[str, object]:
    """How a command names its output, and where that is: `--out`, or the argument DST or TARGET."""
    named = dict(zip(signature.parameters, positional, strict=False))
    found = next(((name.upper(), named[name]) for name in ("dst", "target") if name in named), None)
    out = options.get("out") or (DEFAULT_PLACE if "out" in signature.parameters else None)
    return found or ("--out", out)


def _writing(name: str, out: object, run: Callable[[], int | None]) -> int | None:
    """Run a command; that its output cannot be written is told with the option that names another place.

    What a run that was killed left of the same file goes first.
    """
    if isinstance(out, Path) and not out.is_dir():
        clear_dead(out)
    try:
        return run()
    except OSError as error:
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename == str(out):
            raise ValueError(
                f"{name} {out} is a file, where a folder is to be written; name another."
            ) from None
        if not isinstance(out, Path) or error.errno not in (EACCES, EPERM, EROFS) or error.filename is None:
            raise
        refused, wanted = Path(str(error.filename)).absolute(), out.absolute()
        if refused != wanted and refused not in wanted.parents and wanted not in refused.parents:
            raise
        reason = str(error.strerror).lower()
        raise ValueError(
            f"cannot write to {out} ({reason}: {error.filename}); name another place with {name}."
        ) from None


def choices(config: type, *, leave_out: Sequence[str] = ()) -> Any:
    """A dataclass of the fields of a config, None where nothing was chosen: options `--name.field` of a command.

    The string under each field is its help.
    """
    descriptions = _field_descriptions(config)
    hints = get_type_hints(config)
    fields: list[tuple[str, Any, Any]] = []
    for name in (field.name for field in dataclasses.fields(config) if field.name not in leave_out):
        shown: Any = tyro.conf.arg(
            help=descriptions[name], help_behavior_hint="", metavar=_metavar(hints[name])
        )
        fields.append((name, Annotated[hints[name] | None, shown], dataclasses.field(default=None)))
    return dataclasses.make_dataclass(f"{config.__name__}Choices", fields, frozen=True, kw_only=True)


def _field_descriptions(config: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        line.target.id: str(text.value.value)
        for line, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _shown_fields(config: type) -> type:
    """The same dataclass, with the way the help shows each option in the annotation of its field."""
    descriptions, hints = _field_descriptions(config), get_type_hints(config)
    fields = []
    for field in dataclasses.fields(config):
        text: Any = tyro.conf.arg(help=descriptions[field.name])
        option = inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[hints[field.name], text],
        )
        fields.append((field.name, _annotated(option), dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(config.__name__, fields, bases=(config,), frozen=True, kw_only=True)


def _metavar(kind: Any) -> str:
    """INT, TEXT, True|False; each of a tuple."""
    if get_origin(kind) is tuple:
        return " ".join("..." if each is ... else _metavar(each) for each in get_args(kind))
    return {bool: "True|False", str: "TEXT"}.get(kind, kind.__name__.upper())


def _description(function: Callable[..., int | None]) -> str:
    """The docstring without its list of arguments, wrapped to the terminal.

    Indented, because tyro joins lines that begin with a letter.
    """
    columns = min(WIDEST, shutil.get_terminal_size().columns)
    prose = (inspect.getdoc(function) or "").split("\nArgs:\n")[0].strip()
    paragraphs = [
        textwrap.indent(paragraph, "  ")
        if paragraph.startswith("  ")  # an example keeps its own lines
        else textwrap.fill(paragraph, columns, initial_indent="  ", subsequent_indent="  ")
        for paragraph in prose.split("\n\n")
    ]
    return "\n\n".join(paragraphs)


def _as_shown(signature: inspect.Signature) -> inspect.Signature:
    """The same parameters, with the way the help shows each in its annotation."""
    shown = [_group(p) or p.replace(annotation=_annotated(p)) for p in signature.parameters.values()]
    return signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)


def _group(parameter: inspect.Parameter) -> inspect.Parameter | None:
    """A parameter that stands for the options of a dataclass, without a prefix: `Annotated[X, arg(name="")]`."""
    kind, marks = _unmarked(parameter.annotation)
    if not dataclasses.is_dataclass(kind) or "" not in [getattr(mark, "name", None) for mark in marks]:
        return None
    shown = _shown_fields(kind)  # type: ignore[arg-type]
    return parameter.replace(annotation=Annotated[shown, *marks], default=shown())


def _annotated(parameter: inspect.Parameter) -> Any:
    """NAME and NAME... for arguments; PATH, not {None}|PATH, for options that may be left out; no empty defaults.

    What the command's own `tyro.conf.arg` says goes before.
    """
    kind, own = _unmarked(parameter.annotation)
    shape, choices = get_origin(kind), get_args(kind)
    many = shape is list or (shape is tuple and choices[-1] is ...)
    name = parameter.name.upper()
    metavar = None
    if parameter.kind is parameter.POSITIONAL_ONLY:
        metavar = f"{name.removesuffix('S')}..." if many else name
    elif parameter.default is None:
        plain = [choice for choice in choices if choice is not NoneType]
        if len(plain) == 1 and isinstance(plain[0], type):
            metavar = _metavar(plain[0])
    says_nothing = parameter.default in (None, False, ()) or (many and parameter.default is parameter.empty)
    ours: Any = tyro.conf.arg(metavar=metavar, help_behavior_hint="" if says_nothing else None)
    for mark in own:
        if isinstance(mark, type(ours)):
            said = {f.name: v for f in dataclasses.fields(mark) if (v := getattr(mark, f.name)) is not None}
            ours = dataclasses.replace(ours, **said)
    return Annotated[(kind, *(mark for mark in own if not isinstance(mark, type(ours))), ours)]
