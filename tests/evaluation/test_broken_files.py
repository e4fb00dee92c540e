"""Whatever one value of a benchmark's file becomes, reading it gives questions or one sentence, never a traceback."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenvl.evaluation.benchmarks import benchmark

JUNK: tuple[Any, ...] = (None, -1, 1.5, "", "x", [None], {"a": 1})
NAMES = (
    "flickr30k", "nocaps", "vqav2", "gqa", "scienceqa", "vizwiz", "textvqa", "docvqa", "chartqa", "ai2d", "ocrvqa",
    "refcoco-val", "grit", "touchstone-en", "seed", "mme-cognition", "mmbench", "mmlu",
)  # fmt: skip
"""One benchmark for each reader."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value of a tree; of long lists and objects to the first two."""
    yield path
    inner: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for number, (key, each) in enumerate(inner):
        if number < 2 or isinstance(key, str):
            yield from places(each, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copied = copy.deepcopy(value)
    at = copied
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = junk
    return copied


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".p")][:2]


@pytest.mark.parametrize("name", NAMES)
def test_f97_one_value_of_another_type_is_a_sentence(name: str, small: Callable) -> None:
    made = small(name)
    folder = made.source.data if made.source.data.is_dir() else made.source.data.parent
    read = 0
    for file in files_of(folder):
        pickled = file.suffix == ".p"
        whole = file.read_bytes()
        value = pickle.loads(whole) if pickled else json.loads(whole)
        for path in list(places(value))[:24]:
            for junk in JUNK:
                other = changed(value, path, junk)
                file.write_bytes(pickle.dumps(other) if pickled else json.dumps(other).encode())
                try:
                    read += len(benchmark(name).read(made.source))
                except ValueError as error:
                    assert str(error).strip() and "\n" not in str(error)[:200]
        file.write_bytes(whole)
    assert read or not files_of(folder)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xfe", b'"', b"a\tb\n1\t2\t3\n", b"index\n\n"])
@pytest.mark.parametrize("name", NAMES)
def test_f97_a_file_of_another_kind_is_a_sentence(name: str, content: bytes, small: Callable) -> None:
    made = small(name)
    folder = made.source.data
    files = (
        [folder]
        if folder.is_file()
        else [p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".txt")]
    )
    for file in files:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        benchmark(name).read(made.source)
