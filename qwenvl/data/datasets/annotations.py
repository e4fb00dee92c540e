"""Annotation files on disk into Python values: one reader per format, and what is wrong said in one sentence.

JSON may begin with a byte order mark and hold NaN; XML may be in any encoding that it declares; pickles of Python 2 and
3 hold plain values or are refused. What is wrong with one entry is a `BadEntry`, with the whole file a ValueError.
"""

import codecs
import csv
import io
import math
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from qwenvl.data.boxes import parse_xml
from qwenvl.data.columns import text_of
from qwenvl.files import read_limited
from qwenvl.parsing import MAX_FILE, Damaged, json_lines, parse_json

MAX_XML = 64 << 20
"""Bytes of the XML annotation of one image."""

_DECLARED = re.compile(r"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._:-]+)["'][^>]*\?>""")


class BadEntry(ValueError):
    """An entry of an annotation file that means nothing; the message is for the person who looks."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind
        """A few words, the same for every entry with this defect, so that it can be counted."""


# === Files ===


def load_json(path: Path) -> Any:
    """The value of a JSON file, which may hold NaN; raises ValueError that names it."""
    data = _bytes(path)
    try:
        return parse_json(data, str(path), limit=MAX_FILE, allow_nan=True)
    except ValueError as error:
        raise ValueError(f"{error} Is it the annotation file as it was published, or cut off?") from None


def load_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line. Raises ValueError for a line that is none."""
    _bytes_exist(path)
    records = []
    for number, record in json_lines(path):
        if isinstance(record, Damaged):
            raise ValueError(f"{record.reason} Is the file cut off?")
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} line {number} is a {type(record).__name__}; expected an object per line."
            )
        records.append(record)
    return records


def is_lines(path: Path) -> bool:
    """Whether a file has one JSON object per line, by its name."""
    return path.suffix in (".jsonl", ".ndjson")


def load_table(path: Path, delimiter: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV or TSV file by column name; `columns` are the names if the file has none in its first line."""
    csv.field_size_limit(sys.maxsize)  # MMBench and TouchStone carry images in their cells
    reader = csv.DictReader(io.StringIO(load_text(path), newline=""), columns or None, delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no table ({error}); is it the annotation file?") from None
    for number, row in enumerate(rows, start=1):
        if None in row or any(value is None for value in row.values()):
            raise ValueError(
                f"{path} row {number} has not the {len(row)} columns that it should; is it cut off?"
            )
    return rows


def load_text(path: Path) -> str:
    """A text in UTF-8, with or without a byte order mark. Raises ValueError that names the file."""
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text; is it the annotation file?") from None


def text_lines(path: Path) -> list[str]:
    """Lines of a text file, split at line feeds only; bytes that are no UTF-8 become U+FFFD."""
    text = _bytes(path).decode("utf-8-sig", errors="replace")
    return [line.rstrip("\r") for line in text.split("\n")]


def files_of(files: Sequence[Path], suffix: str, *, deep: bool = False) -> list[Path]:
    """The files given, and in place of a folder what lies in it (`deep`: and below it) with this suffix, sorted.

    Raises ValueError where a folder holds none.
    """
    found: list[Path] = []
    for file in files:
        if not file.is_dir():
            found.append(file)
            continue
        inside = file.rglob("*") if deep else file.iterdir()
        own = sorted(p for p in inside if p.suffix.lower() == suffix and not p.name.startswith("."))
        if not own:
            raise ValueError(f"{file} holds no {suffix} file; give the folder of the annotations.")
        found += own
    return found


def expect(files: Sequence[Path], count: int, what: str) -> Sequence[Path]:
    """The files, if there are `count`; raises ValueError that says which are expected."""
    if len(files) != count:
        raise ValueError(f"{len(files)} annotation files given; expected {count}: {what}.")
    return files


def _bytes(path: Path) -> bytes:
    _bytes_exist(path)
    return read_limited(path, MAX_FILE)


def _bytes_exist(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"there is no file {path}; docs/EVALUATION.md says where each benchmark comes from.")


# === XML ===


def load_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file in the encoding that it declares, by default UTF-8. Raises ValueError, OSError."""
    return parse_xml(_decoded(read_limited(path, MAX_XML)))


def _decoded(data: bytes) -> str:
    """XML as text without its declaration: expat knows few encodings, Python those that annotators use."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    encoding = next((name for mark, name in marks if data.startswith(mark)), None)
    declared = _DECLARED.match(data[:300].decode("latin-1"))
    encoding = encoding or (declared[1] if declared else "utf-8")
    try:
        if not getattr(codecs.lookup(encoding), "_is_text_encoding", True):
            raise LookupError(encoding)
        text = data.decode(encoding)
    except (LookupError, UnicodeError):
        raise ValueError(f"the annotation is no text in {encoding}, as it should be.") from None
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1)


# === Pickles ===


class _PlainValues(pickle.Unpickler):
    """A pickle may call any function of any library; the annotations of RefCOCO need none."""

    def find_class(self, module: str, name: str) -> Any:
        raise _NotPlainError(
            f"the pickle asks for {module}.{name}; annotations hold plain values only, so it is not read."
        )


class _NotPlainError(ValueError):
    """A pickle that would run something."""


def load_pickle(path: Path) -> Any:
    """Lists, dicts, strings and numbers of a pickle of Python 2 or 3; raises ValueError for anything else in it.

    Byte strings of Python 2 are taken as UTF-8; those that are not keep their bytes as surrogates, for `mended`.
    """
    file = io.BytesIO(_bytes(path))
    try:
        return _PlainValues(file, encoding="utf-8", errors="surrogateescape").load()
    except _NotPlainError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ValueError(
            f"{path} is no pickle of annotations, or a damaged one ({type(error).__name__}: {error}); expected "
            "refs(unc).p or refs(umd).p as published."
        ) from None


def mended(text: str) -> str:
    """A text of an old pickle whose bytes are no UTF-8: they are Latin-1."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


# === Entries ===


def listed(value: Any, path: Path, key: str | None = None) -> Sequence[Any]:
    """The list in a JSON file, under `key` where it has one; raises ValueError where there is none."""
    found = field(value, key, path) if key is not None else value
    if not isinstance(found, list):
        raise ValueError(
            f"{path} has no list{f' {key!r}' if key else ''}; give the annotation file as published."
        )
    return found


def by_name(value: Any, path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; raises ValueError where it is something else."""
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{path} is a {type(value).__name__}, not an object; give the annotation file as published."
        )
    return value


def field(record: Any, name: str, where: object) -> Any:
    """A field that must be there. Raises BadEntry for an entry of another version."""
    if not isinstance(record, Mapping) or name not in record:
        has = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise BadEntry(
            f"no field {name!r}",
            f"{where} has no field {name!r} (it has: {has[:200]}); is it the right file, and of the version in "
            "docs/EVALUATION.md?",
        )
    return record[name]


def words(record: Any, name: str, where: object) -> str:
    """A field that must be there and hold text, stripped; a number is taken as its digits. Raises BadEntry."""
    text = text_of(value := field(record, name, where))
    if text is None:
        raise BadEntry(f"{name} is no text", f"{where} has {str(value)[:60]!r} as {name!r}; expected a text.")
    return text.strip()


def texts(value: Any) -> tuple[str, ...]:
    """One text or a list of texts or of `{"answer": text}` as a tuple; None as no text. Raises BadEntry."""
    if value is None:
        return ()
    many = value if isinstance(value, list | tuple) else [value]
    found = [text_of(one.get("answer") if isinstance(one, Mapping) else one) for one in many]
    if None in found:
        raise BadEntry("answer is no text", f"{str(value)[:80]!r} are the answers; expected texts.")
    return tuple(text for text in found if text is not None)


def identity(value: Any, what: str = "id") -> str:
    """An id as text, so that 1, 1.0 and "1" are the same. Raises BadEntry for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadEntry(f"no {what}", f"{str(value)[:60]!r} is the {what}; expected a number or a name.")
    return str(value).strip()


def size_of(record: Any, width: str = "width", height: str = "height") -> tuple[int, int] | None:
    """Width and height in pixels where an entry has both, positive and finite; else None: the image knows."""
    if not isinstance(record, Mapping):
        return None
    sides = [record.get(width), record.get(height)]
    try:
        across, down = (float(side) for side in sides)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    if not (math.isfinite(across) and math.isfinite(down) and across >= 1 and down >= 1):
        return None
    return int(across), int(down)
