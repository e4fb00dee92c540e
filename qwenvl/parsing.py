"""JSON, lines of JSON and TOML from outside: one reader each, with limits, and one sentence for what is wrong.

Text is UTF-8, with or without a byte order mark. Lines end at a line feed and nowhere else: the separators U+2028,
U+2029 and U+0085 may stand inside a string. What nests deeper than `MAX_DEPTH`, numbers that no machine type holds
and halves of surrogate pairs are refused here, because each ends some later step otherwise.
"""

import codecs
import gzip
import json
import re
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qwenvl.files import open_regular, read_limited

MAX_DEPTH = 100
"""Objects and lists inside each other: annotations need about ten."""

MAX_LINE = 64 << 20
"""Bytes of one line of JSON, its image in base64 included."""

MAX_FILE = 8 << 30
"""Bytes of a JSON file: the annotations of the largest data sets are a few gigabytes."""

MAX_TOML = 1 << 20
"""Bytes of a TOML file."""

_NINES = bytes.maketrans(b"012345678E", b"999999999e")
"""Every digit becomes a 9: large numbers are then found as fixed bytes, some ten times as fast as by a pattern."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A line that could not be read."""

    reason: str
    """One sentence that names the file and the line."""


def parse_json(
    text: str | bytes,
    where: str,
    *,
    limit: int = MAX_LINE,
    values: int | None = None,
    allow_nan: bool = False,
    allow_halves: bool = False,
) -> Any:
    """The value of a JSON text that `where` names in messages; raises ValueError for all that is wrong with it.

    `limit` is in bytes (characters of a string); `values` bounds the commas and brackets in it, those inside strings
    too, because three bytes (`{},`) become an object of 64 bytes. With `allow_nan` NaN and infinities, which Python
    writes though JSON has none, are read; with `allow_halves` so are halves of surrogate pairs.
    """
    if len(text) > limit:
        raise ValueError(f"{where} is larger than {limit:,} bytes, the most that is read of it.")
    if values is not None and _marks(text) > values:
        raise ValueError(
            f"{where} has more than {values:,} commas and brackets, the most that is read of it."
        )
    words = utf8(text, where) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        value = _DECODERS[allow_nan, _has_large_number(text)].decode(words)
    except RecursionError:
        raise ValueError(too_deep(where)) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}); correct it or write it again.") from None
    except _RefusedNumberError as error:
        raise ValueError(f"{where} holds {error}; write a number that fits 64 bits, or a string.") from None
    except _TwiceError as error:
        raise ValueError(f"{where} has {error}; keep one of them.") from None
    if words.count("[") + words.count("{") >= MAX_DEPTH:
        _require_shallow(value, where)
    if not allow_halves and _SURROGATE.search(words):
        _require_whole_characters(value, where)
    return value


def read_json(path: Path, *, limit: int = MAX_FILE, allow_halves: bool = False) -> Any:
    """The value of a JSON file; raises ValueError with one sentence when it is missing, broken or beyond a limit."""
    try:
        data = read_limited(path, limit)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; is {path.parent} the right folder?") from None
    return parse_json(data, str(path), limit=limit, allow_halves=allow_halves)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file; raises ValueError when it is broken or beyond a limit, OSError when it is missing."""
    words = utf8(read_limited(path, MAX_TOML), str(path))
    if any(line.partition("=")[0].count(".") > MAX_DEPTH for line in words.splitlines()):
        raise ValueError(too_deep(str(path)))  # a key with n dots costs n * n
    try:
        value = tomllib.loads(words)
    except RecursionError:
        raise ValueError(too_deep(str(path))) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None
    _require_shallow(value, str(path))
    return value


# === Lines ===


def read_lines(
    source: Path | IO[bytes], where: str | None = None, *, limit: int = MAX_LINE
) -> Iterator[tuple[int, bytes | Damaged]]:
    """Lines of a file or an open binary stream (.gz too) with their numbers, from 1; empty ones are passed over.

    Line ends and a byte order mark are removed. A line above `limit` bytes is damaged, and the next is read; where
    a .gz breaks off, the line is damaged and the last.
    """
    if isinstance(source, Path):
        with open_regular(source) as file:
            yield from read_lines(file, where or str(source), limit=limit)
        return
    where = where or str(getattr(source, "name", "the stream"))
    start = source.read(2)
    stream: Any = _Rejoined(start, source)
    if start == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)
    number = 0
    try:
        while line := stream.readline(limit + 2):
            number += 1
            if len(line) - line.endswith(b"\n") > limit:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(1 << 20)
                yield number, Damaged(reason=f"{where}, line {number} is longer than {limit:,} bytes.")
                continue
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line := line.rstrip(b"\r\n"):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        if start != b"\x1f\x8b":
            raise
        reason = f"{where}, line {number + 1}: damaged archive ({error}); get a fresh copy of the file."
        yield number + 1, Damaged(reason=reason)


def json_lines(
    source: Path | IO[bytes], where: str | None = None, *, limit: int = MAX_LINE, allow_nan: bool = False
) -> Iterator[tuple[int, Any]]:
    """Values of JSON lines with the numbers of their lines, from 1; `Damaged` in place of one that cannot be read."""
    name = where or str(source if isinstance(source, Path) else getattr(source, "name", "the stream"))
    for number, line in read_lines(source, name, limit=limit):
        if isinstance(line, Damaged):
            yield number, line
            continue
        try:
            value = parse_json(line, f"{name}, line {number}", limit=limit, allow_nan=allow_nan)
        except ValueError as error:
            value = Damaged(reason=str(error))
        yield number, value


class _Rejoined:
    """A stream of which the first bytes were read already."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def read(self, size: int = -1, /) -> bytes:
        if not self._start:
            return self._rest.read(size)
        start, self._start = self._start, b""
        if 0 <= size < len(start):
            start, self._start = start[:size], start[size:]
            return start
        return start + self._rest.read(size if size < 0 else size - len(start))

    def readline(self, size: int = -1, /) -> bytes:
        start, self._start = self._start, b""
        if b"\n" in start:
            start, _, self._start = start.partition(b"\n")
            return start + b"\n"
        return start + self._rest.readline(size if size < 0 else size - len(start))


# === What is refused ===


class _RefusedNumberError(ValueError):
    """A number that JSON can write and machines cannot hold."""


class _TwiceError(ValueError):
    """A key that an object has twice."""


def http_url(text: str, where: str) -> str:
    """The address of a server that a user named with `where`; raises ValueError for what is no http address."""
    if not re.match(r"https?://[^/\s]", text, re.IGNORECASE):
        raise ValueError(
            f"{where} {text[:120]} is no address of a server; expected http://HOST... or https://HOST..."
        )
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object by its keys; JSON's readers keep the last of two with one name, and say nothing."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    for name, value in pairs:
        if found[name] != value:
            raise _TwiceError(f"the key {name[:40]!a} twice in one object, with two values")
    return found


def _marks(text: str | bytes) -> int:
    if isinstance(text, bytes):
        return text.count(b",") + text.count(b"[") + text.count(b"{")
    return text.count(",") + text.count("[") + text.count("{")


def _has_large_number(text: str | bytes) -> bool:
    """Whether digits stand in a text that may be a number beyond 64 bits or an infinite one; strings count too."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    nines = data.translate(_NINES)
    return b"9999999999999999999" in nines or b"9e999" in nines or b"9e+999" in nines


def _refuse_constant(name: str) -> float:
    raise _RefusedNumberError(f"the number {name}, which JSON does not know")


def _small_int(digits: str) -> int:
    if len(digits) > 21 or not -(2**63) <= int(digits) < 2**64:
        raise _RefusedNumberError(f"a whole number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _RefusedNumberError(f"the number {digits[:40]}, which is infinite as a float")
    return value


def _decoder(allow_nan: bool, large: bool) -> json.JSONDecoder:
    checks: dict[str, Any] = {} if allow_nan else {"parse_constant": _refuse_constant}
    if large:
        checks["parse_int"] = _small_int
        if not allow_nan:
            checks["parse_float"] = _finite_float
    return json.JSONDecoder(object_pairs_hook=_object, **checks)


_DECODERS = {(nan, large): _decoder(nan, large) for nan in (False, True) for large in (False, True)}
"""Whether NaN is read, and whether numbers are looked at one by one; to make one takes longer than to read a line."""


def utf8(data: bytes, where: str) -> str:
    """The text of JSON or TOML, without a byte order mark. Raises ValueError for another encoding, named if known."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:  # the first letters are of ASCII
        raise ValueError(f"{where} is not UTF-8 (it looks like UTF-16 or UTF-32); save it as UTF-8.")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(error.object)
        found = f"byte {data[start]:#04x} at {start}"
        raise ValueError(f"{where} is not UTF-8 ({found}); save it as UTF-8.") from None


def too_deep(where: str) -> str:
    """The sentence for what nests deeper than `MAX_DEPTH`."""
    return f"{where} nests more than {MAX_DEPTH} objects and lists in each other, the most that is read."


def _require_shallow(value: Any, where: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for group in inner for each in group if isinstance(each, dict | list)]
        if not level:
            return
    raise ValueError(too_deep(where))


def _require_whole_characters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where} holds half of a surrogate pair, which is no character; remove it."
        ) from None
