"""Annotation files on disk into Python values, with the error a person can act on; pickles only of plain values."""

import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from qwenvl.data.records import Pair, Record, Skipped

Found: TypeAlias = Iterator[Record | Skipped]
"""What readers of annotations yield: records, and what could not become one with its reason."""

FoundPairs: TypeAlias = Iterator[Pair | Skipped]
"""What readers of raw pairs yield: they still have to be cleaned."""


def load_json(path: Path) -> Any:
    """The contents of a JSON file; raises ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no JSON ({error}); give the annotation file as it was published."
        ) from None


class _PlainValues(pickle.Unpickler):
    """A pickle may call any function of any library; the annotations of RefCOCO need none."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the pickle asks for {module}.{name}; annotations hold plain values only.")


def load_pickle(path: Path) -> Any:
    """Lists, dicts, strings and numbers of a pickle of Python 2 or 3; raises ValueError for anything else in it."""
    try:
        return _PlainValues(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no pickle of annotations ({error}).") from None


def expect(files: Sequence[Path], count: int, what: str) -> Sequence[Path]:
    """The files, if there are `count`; raises ValueError that says which are expected."""
    if len(files) != count:
        raise ValueError(f"{len(files)} annotation files given; expected {count}: {what}.")
    return files


def listed(value: Any, path: Path, key: str | None = None) -> Sequence[Mapping[str, Any]]:
    """The list in a JSON file, under `key` where it has one; raises ValueError where there is none."""
    found = value.get(key) if isinstance(value, Mapping) and key is not None else value
    if not isinstance(found, list):
        raise ValueError(
            f"{path} has no list{f' {key!r}' if key else ''}; give the annotation file as published."
        )
    return found
