"""The parity certificate: one line for every recorded case of the official code, and how far ours is from it.

```
golden/                  what a path may be: the whole folder, a part of it, or one file;
|-- tokenizer/*.json     recognised by what the files hold, not by their names
|-- models/<name>/       (cases.json is a list)
|-- preprocess/          (cases.json is an object with image sizes)
|-- sampling.json
|-- metrics/*.json
`-- official_configs/, official_state_dict.json
```
PASS: equal within the tolerance. FIXED: ours differs on purpose from a defect named in the note, and the official
result was shown to follow from ours by that defect. FAIL: anything else, a case that nobody understands included.
NOT RUN: the case needs something that this machine lacks; the note says how to get it. Nothing is said of the case.
"""

import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwenvl.parsing import read_json
from qwenvl.terminal import printable

Status = Literal["PASS", "FIXED", "FAIL", "NOT RUN"]

STATUSES: tuple[Status, ...] = ("PASS", "FIXED", "FAIL", "NOT RUN")


class NotHere(ValueError):
    """What a case needs is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Result:
    """One recorded case."""

    case: str
    status: Status
    largest: float | None
    """The largest difference; None where things are equal or not."""
    tolerance: float | None
    note: str = ""
    """What differs, or the defect of the official code that ours does not share, or what the machine lacks."""


Judge = Callable[[Path], Iterator[Result]]
"""What else can be said of a model folder: through another program, or with rounded weights."""


# === Which reader understands a file ===


def _is_model(data: Any) -> bool:
    return isinstance(data, list) and _case_has(data, "kind")


def _is_preprocess(data: Any) -> bool:
    return isinstance(data, Mapping) and _case_has(data.get("cases"), "image_size")


def _is_sampling(data: Any) -> bool:
    known = isinstance(data, Mapping) and ("stop_words" in data or _case_has(data.get("cases"), "logits"))
    return known and not _case_has(data.get("cases"), "image_size")


def _is_release(data: Any) -> bool:
    return isinstance(data, Mapping) and ("total_params" in data or data.get("model_type") == "qwen")


def _is_tokenizer(data: Any) -> bool:
    return _ask("qwenvl.parity.tokenizer", data)


def _is_metrics(data: Any) -> bool:
    return _ask("qwenvl.parity.metrics", data)


def _ask(module: str, data: Any) -> bool:
    recognises: Callable[[Any], bool] = importlib.import_module(module).recognises
    return recognises(data)


def _case_has(cases: Any, field: str) -> bool:
    return isinstance(cases, list) and any(isinstance(case, Mapping) and field in case for case in cases)


MODELS = "qwenvl.parity.models"

READERS: Mapping[str, Callable[[Any], bool]] = {
    MODELS: _is_model,
    "qwenvl.parity.preprocess": _is_preprocess,
    "qwenvl.parity.sampling": _is_sampling,
    "qwenvl.parity.release": _is_release,
    "qwenvl.parity.tokenizer": _is_tokenizer,
    "qwenvl.parity.metrics": _is_metrics,
}
"""Module with `certify(path) -> Iterator[Result]`, and whether the content of a JSON file is for it; first wins."""


def certify(paths: Sequence[str | Path], judge: Judge | None = None) -> Iterator[Result]:
    """The results of every fixture under `paths`, in order; a fixture named twice is read once.

    With a `judge`, what that says of the models. Raises ValueError, before any case is run, for a path that is missing
    or holds no fixture, and for a judge where none holds a model.
    """
    jobs: dict[Path, str | None] = {}
    for path in map(Path, paths):
        found = dict(_fixtures(path))
        if not found:
            raise ValueError(
                f"{path} holds no fixture of the official model; expected a golden folder, one of its parts "
                "(models, tokenizer, preprocess, metrics) or one of its files."
            )
        jobs |= {fixture.resolve(): reader for fixture, reader in found.items()}
    if not jobs:
        raise ValueError("no fixtures were named; give the golden folder, or a part of it.")
    if judge is not None and MODELS not in jobs.values():
        raise ValueError("none of the fixtures is a model; the answers of models are what can be judged so.")
    for fixture, reader in jobs.items():
        if judge is None or reader == MODELS:
            yield from _read(fixture, reader, judge)


def _fixtures(path: Path) -> Iterator[tuple[Path, str | None]]:
    """(fixture, its reader or None if nobody understands it): a model folder is one fixture, so is a JSON file."""
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}; expected fixtures of the official model.")
    if path.is_file() and path.suffix != ".json":
        return
    if path.is_file():
        reader = _reader(path)
        folder = reader in (MODELS, "qwenvl.parity.preprocess")
        yield (path.parent if folder else path), reader
        return
    cases = path / "cases.json"
    if cases.is_file():
        yield path, _reader(cases)
        return
    if (path / "meta.json").is_file() and (path / "config.json").is_file():  # a model that lost its cases
        yield path, MODELS
        return
    if _is_release_folder(path):
        yield path, "qwenvl.parity.release"
        return
    for child in sorted(path.iterdir()):
        if not child.name.startswith("."):
            yield from _fixtures(child)


def _is_release_folder(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and _reader(config) == "qwenvl.parity.release"


def _reader(file: Path) -> str | None:
    """The module that reads a JSON file; None if there is none, or the file is not JSON."""
    try:
        data = read_json(file, allow_halves=True)
    except (ValueError, OSError):
        return None
    return next((reader for reader, recognises in READERS.items() if recognises(data)), None)


def _read(fixture: Path, reader: str | None, judge: Judge | None) -> Iterator[Result]:
    """The results of one fixture: at least one, and FAIL instead of an exception."""
    name = f"{fixture.parent.name}/{fixture.name}"
    if reader is None:
        yield Result(name, "FAIL", None, None, "case not understood: no reader knows this file")
        return
    count = 0
    try:
        for result in (judge or importlib.import_module(reader).certify)(fixture):
            count += 1
            yield result
    except NotHere as missing:
        yield Result(name, "NOT RUN", None, None, str(missing))
        return
    except (
        Exception
    ) as error:  # whatever a reader stumbles over is a failure of this fixture, and of no other
        yield Result(name, "FAIL", None, None, f"case not understood: {type(error).__name__}: {error}")
        return
    if count == 0:
        yield Result(name, "FAIL", None, None, "case not understood: the fixture holds no case")


# === What is printed ===


def main_status(results: Iterable[Result]) -> int:
    """Exit status: 1 if a case failed or there is none, 3 if none failed but some were not run, else 0."""
    statuses = [result.status for result in results]
    if not statuses or "FAIL" in statuses:
        return 1
    return 3 if "NOT RUN" in statuses else 0


def counts(results: Iterable[Result]) -> str:
    """`N PASS, M FIXED, K FAIL`, and `, L NOT RUN` where there are any."""
    tally = Counter(result.status for result in results)
    shown = STATUSES if tally["NOT RUN"] else STATUSES[:-1]
    return ", ".join(f"{tally[status]} {status}" for status in shown)


def run(
    paths: Sequence[str | Path], json: bool = False, device: str = "cpu", judge: Judge | None = None
) -> int:
    """Prints the certificate of `paths` on standard output and returns the exit status.

    Models compute on `device`, in float32, or where the `judge` asks them. Raises ValueError where
    `certify` does and for a device that is not there.
    """
    import sys

    from rich.console import Console

    from qwenvl.runtime import Runtime

    runtime = Runtime.detect(device=device, dtype="float32")
    progress = Console(stderr=True)
    results = []
    with runtime.device, progress.status("reading fixtures") as status:
        for result in certify(paths, judge):
            results.append(result)
            status.update(f"{len(results)} cases: {result.case[:60]}")
    if json:
        write_json(results)
    else:
        write_table(results, Console(width=None if sys.stdout.isatty() else 160))
    return main_status(results)


def write_json(results: Sequence[Result]) -> None:
    """A line of JSON for every case (the fields of `Result`; null where a number is not finite), then the counts."""
    for result in results:
        row = {key: _json_number(value) for key, value in asdict(result).items()}
        print(json.dumps(row))
    tally = Counter(result.status for result in results)
    print(json.dumps({status: tally[status] for status in STATUSES}))


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(results: Sequence[Result], console: Any) -> None:
    """A table of all cases, then the line of counts."""
    from rich.table import Table
    from rich.text import Text

    colours = {"PASS": "green", "FIXED": "yellow", "FAIL": "bold red", "NOT RUN": "cyan"}
    table = Table("case", "largest", "tolerance", "status", "note")
    for result in results:
        table.add_row(
            Text(printable(result.case)),
            _number(result.largest),
            _number(result.tolerance),
            Text(result.status, style=colours[result.status]),
            Text(printable(result.note)),
        )
    console.print(table)
    for note, number in Counter(r.note for r in results if r.status == "NOT RUN").items():
        console.print(
            printable(f"{number} cases were not run: {note}"), highlight=False, markup=False, soft_wrap=True
        )
    console.print(counts(results), highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
