"""Raw pairs out of tars, parquet and JSON lines as they are found in the world; what cannot be read becomes Skipped.

No URL is ever followed here: a pair that has only a URL keeps it, unless the caller gives a `fetch` of his own.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import name_and_suffix, read_lines, read_parquet, read_tar

Sample: TypeAlias = Pair | Skipped

Fetch: TypeAlias = Callable[[str], bytes]
"""URL -> bytes of the picture; may raise OSError or ValueError."""

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"})
TEXTS = frozenset({"txt", "text", "caption"})

SUFFIXES: Mapping[str, str] = {
    ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".parquet": "parquet",
    ".jsonl": "lines", ".ndjson": "lines", ".jsonl.gz": "lines",
}  # fmt: skip

_TEXT = ("text", "caption", "alt_text", "alt", "top_caption", "title")
_TEXTS = ("captions", "texts")
_SCORE = ("clip_score", "similarity", "clip_similarity", "clip_similarity_vitb32", "clip_b32_similarity_score",
          "clip_l14_similarity_score", "clip_similarity_vitl14")  # fmt: skip
_URL = ("url", "image_url", "img_url")
_KEY = ("key", "id", "image_id", "uid", "sample_id", "hash")
IMAGE_COLUMNS = ("image", "picture", "jpg", "jpeg", "png", "webp", "image_path", "file_name", "img_path")


class Source(NamedTuple):
    """Where samples come from."""

    path: Path
    name: str
    """Data set: the source of every pair whose sample names none."""
    fetch: Fetch | None = None


def kind_of_shard(path: Path) -> str | None:
    """ "tar", "parquet" or "lines" by the file's name; None for files that are no shards."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def find_shards(source: Path) -> list[Path]:
    """The shards under a folder, sorted by path, or the one file; raises ValueError where there is none."""
    if not source.exists():
        raise ValueError(f"there is no {source}; give a folder of shards or one shard.")
    found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    shards = [path for path in found if kind_of_shard(path) and not path.name.startswith(".")]
    if not shards:
        raise ValueError(f"no shard in {source}; expected files that end in {', '.join(SUFFIXES)}.")
    return shards


def read_samples(source: Source) -> Iterator[Sample]:
    """Every sample of a shard, in order; a shard that breaks off ends with a Skipped that says so."""
    try:
        match kind_of_shard(source.path):
            case "tar":
                yield from _from_tar(source)
            case "parquet":
                yield from _from_parquet(source)
            case "lines":
                yield from _from_lines(source)
            case _:
                raise ValueError(f"{source.path} is no shard; expected {', '.join(SUFFIXES)}.")
    except OSError as error:
        yield Skipped(key=source.path.name, kind="unreadable shard", detail=str(error), source=source.name)


# === Tars ===


def _from_tar(source: Source) -> Iterator[Sample]:
    key: str | None = None
    files: dict[str, bytes] = {}
    for member in read_tar(source.path):
        own, extension = name_and_suffix(member.name)
        if key is not None and own != key:
            yield from _of_files(key, files, source)
            key, files = None, {}
        if member.damage is not None:
            kind = member.damage.partition(" (")[0]
            lost = Skipped(
                key=own or source.path.name,
                kind=kind,
                detail=member.damage,
                source=source.name,
                raw=member.data,
            )
            if key is None:
                yield lost
            else:  # the other files of this sample are whole, but it is not
                yield Skipped(
                    key=key, kind=kind, detail=member.name, source=source.name, raw=b"".join(files.values())
                )
            key, files = None, {}
            continue
        key = own
        files[extension] = member.data
    if key is not None:
        yield from _of_files(key, files, source)


def _of_files(key: str, files: Mapping[str, bytes], source: Source) -> Iterator[Sample]:
    image = next((data for extension, data in files.items() if extension in IMAGES), None)
    columns: Any = {}
    raw = image or b""
    if "json" in files:
        try:
            columns = json.loads(files["json"])
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            kind = "broken UTF-8" if isinstance(error, UnicodeDecodeError) else "broken JSON"
            yield Skipped(key=key, kind=kind, detail=str(error)[:200], source=source.name, raw=files["json"])
            return
        if not isinstance(columns, dict):
            yield Skipped(key=key, kind="broken JSON", detail="not an object", source=source.name, raw=raw)
            return
    text = next((data for extension, data in files.items() if extension in TEXTS), None)
    if text is not None:
        try:
            columns = {**columns, "text": text.decode("utf-8")}
        except UnicodeDecodeError as error:
            yield Skipped(key=key, kind="broken UTF-8", detail=str(error)[:200], source=source.name, raw=text)
            return
    if image is None and not _first(_lower(columns), _URL):
        yield Skipped(key=key, kind="no picture", detail=", ".join(files), source=source.name)
        return
    yield from pairs_of(key, columns, image, source)


# === Parquet ===


def _from_parquet(source: Source) -> Iterator[Sample]:
    stem = source.path.name.partition(".")[0]
    rows = read_parquet(source.path)
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except ValueError as error:
            if "pyarrow" in str(error) and "not installed" in str(error):
                raise
            yield Skipped(
                key=source.path.name, kind="damaged parquet", detail=str(error)[:200], source=source.name
            )
            return
        columns = _lower(row)
        image, where = _image(columns, None)
        key = str(_first(columns, _KEY) or f"{stem}-{number:08d}")
        number += 1
        if where is not None:
            yield Skipped(key=key, kind="no picture", detail=where, source=source.name)
        else:
            yield from pairs_of(key, columns, image, source)


def _image(columns: dict[str, Any], folder: Path | None) -> tuple[bytes | None, str | None]:
    """Bytes of the picture and None, or why it is not there; takes its column away. No picture at all is no error."""
    for name in IMAGE_COLUMNS:
        value = columns.get(name)
        if isinstance(value, dict) and ("bytes" in value or "path" in value):  # Hugging Face's image columns
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            del columns[name]
            return value, None
        if isinstance(value, str) and value and folder is not None and "://" not in value:
            try:
                return (folder / value).read_bytes(), None
            except (OSError, ValueError) as error:
                return None, f"{value}: {getattr(error, 'strerror', None) or error}"
    return None, None


# === JSON lines ===


def _from_lines(source: Source) -> Iterator[Sample]:
    stem = source.path.name.partition(".")[0]
    for number, line in read_lines(source.path):
        key = f"{stem}-{number:08d}"
        try:
            found = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Skipped(key=key, kind="broken UTF-8", detail=str(error)[:200], source=source.name, raw=line)
            continue
        except (json.JSONDecodeError, RecursionError) as error:
            yield Skipped(key=key, kind="broken JSON", detail=str(error)[:200], source=source.name, raw=line)
            continue
        if not isinstance(found, dict):
            yield Skipped(key=key, kind="broken JSON", detail="not an object", source=source.name, raw=line)
            continue
        columns = _lower(found)
        key = str(_first(columns, _KEY) or key)
        image, missing = _image(columns, source.path.parent)
        if missing is not None:
            yield Skipped(key=key, kind="missing picture", detail=missing, source=source.name, raw=line)
        else:
            yield from pairs_of(key, columns, image, source)


# === Columns to pairs ===


def pairs_of(key: str, columns: Mapping[str, Any], image: bytes | None, source: Source) -> Iterator[Sample]:
    """The pair of a row, or one pair per caption where it has several; columns are known by their usual names."""
    columns = _lower(columns)
    name = str(columns.pop("source", None) or source.name)
    texts = next((columns.pop(n) for n in _TEXTS if isinstance(columns.get(n), list)), None)
    if texts is None:
        texts = [_pop(columns, _TEXT)]
    url = _pop(columns, _URL)
    if image is None and source.fetch is not None and url:
        try:
            image = source.fetch(str(url))
        except (OSError, ValueError) as error:
            yield Skipped(key=key, kind="not fetched", detail=str(error)[:200], source=name)
            return
    try:
        score = _number(_pop(columns, _SCORE))
        width, height = _size(columns.pop("width", None)), _size(columns.pop("height", None))
    except ValueError as error:
        yield Skipped(key=key, kind=str(error), source=name, raw=image or b"")
        return
    for number, text in enumerate(texts):
        own = f"{key}-{number}" if len(texts) > 1 else key
        if not isinstance(text, str) or not text.strip():
            yield Skipped(key=own, kind="empty caption", source=name, raw=image or b"")
        elif _has_surrogates(text):
            yield Skipped(
                key=own, kind="broken UTF-8", detail=ascii(text)[:200], source=name, raw=image or b""
            )
        else:
            yield Pair(
                key=own, text=text, source=name, image=image, width=width, height=height, clip_score=score,
                url=None if url is None else str(url), extra=columns,
            )  # fmt: skip


def _lower(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in columns.items()}


def _first(columns: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((columns[name] for name in names if columns.get(name) is not None), None)


def _pop(columns: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = next((name for name in names if columns.get(name) is not None), None)
    return None if found is None else columns.pop(found)


def _number(value: Any) -> float | None:
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError("score is no number") from None
    if number is not None and not math.isfinite(number):
        raise ValueError("score is not finite")
    return number


def _size(value: Any) -> int | None:
    try:
        size = None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("size is no number") from None
    if size is not None and size < 1:
        raise ValueError("size is not positive")
    return size


def _has_surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
