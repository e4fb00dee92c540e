"""Raw pairs out of tars, parquet and JSON lines as they are found in the world; what cannot be read becomes Skipped.

No URL is ever followed here: a pair that has only a URL keeps it, unless the caller gives a `fetch` of his own.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from qwenvl.data import parquet
from qwenvl.data.columns import (
    DIALOGUE_COLUMNS,
    IMAGE_COLUMNS,
    IMAGES_COLUMNS,
    KEY_COLUMNS,
    MAGIC,
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    TEXTS_COLUMNS,
    URL_COLUMNS,
    failed_download,
    image_beside,
    image_of,
    parts_of,
)
from qwenvl.data.faults import Unusable
from qwenvl.data.lookup import file_below
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import LARGEST, keys_in, kind_of
from qwenvl.data.stream.index import in_list
from qwenvl.data.tars import Group, Member, grouped, name_and_suffix, read_tar
from qwenvl.files import read_limited
from qwenvl.parsing import Damaged, parse_json, read_lines, utf8

Sample: TypeAlias = Pair | Skipped

Fetch: TypeAlias = Callable[[str], bytes]
"""URL -> bytes of the image; may raise OSError or ValueError."""

UNSORTED = "unsorted tar"
"""Kind of failure of a sample whose files do not stand side by side."""


class Source(NamedTuple):
    """Where samples come from."""

    path: Path
    name: str
    """Data set: the source of every pair whose sample names none."""
    fetch: Fetch | None = None
    images: Path | None = None
    """Folder below which paths of images may lead, beside that of the shard."""


class Row(NamedTuple):
    """A sample as it stands in its shard."""

    key: str
    columns: Mapping[str, Any]
    """By their names in small letters; `text` where a tar holds a file of it."""
    image: bytes | None
    raw: bytes = b""
    """The line it was read from."""


def read_samples(source: Source) -> Iterator[Sample]:
    """Every sample of a shard, in order; a shard that breaks off ends with a Skipped that says so.

    Raises ValueError for a file that is no shard, or one of parquet where pyarrow is not installed.
    """
    for row in read_rows(source):
        if isinstance(row, Skipped):
            yield row
        else:
            yield from pairs_of(row.key, row.columns, row.image, source)


def read_rows(source: Source) -> Iterator[Row | Skipped]:
    """The same before columns are taken for a pair: every sample with all its columns and its image."""
    readers = {
        "tar": _from_tar, "parquet": _from_parquet, "lines": _from_lines, "list": _from_list, "folder": _from_folder
    }  # fmt: skip
    try:
        yield from readers[kind_of(source.path)](source)
    except OSError as error:
        yield Skipped(key=source.path.name, kind="unreadable shard", detail=str(error), source=source.name)


# === Tars ===


def _from_tar(source: Source) -> Iterator[Row | Skipped]:
    seen: set[str] = set()
    for group in grouped(read_tar(source.path)):
        row = _of_group(group, source)
        apart = group.key in seen and not (isinstance(row, Row) and row.image and row.columns)
        if apart and group.damage is None:
            hint = (
                "its files do not stand side by side; pack them sorted: tar --sort=name -cf SHARD.tar FOLDER"
            )
            row = Skipped(key=group.key, kind=UNSORTED, detail=hint, source=source.name)
        seen.add(group.key)
        yield row


def _from_folder(source: Source) -> Iterator[Row | Skipped]:
    """Files that lie loose in a folder, as they would stand in a tar."""
    files: dict[str, list[Path]] = {}
    for each in sorted(source.path.iterdir()):
        files.setdefault(each.name.partition(".")[0], []).append(each)
    for key in keys_in(source.path):
        members = {name_and_suffix(path.name)[1]: _loose(path) for path in files[key]}
        damaged = next((each for each in members.values() if each.damage is not None), None)
        yield _of_group(Group(key, members, damaged), source)


def _loose(path: Path) -> Member:
    try:
        return Member(path.name, read_limited(path, LARGEST))
    except ValueError as error:
        return Member(path.name, b"", f"file too large ({error})")


def _of_group(group: Group, source: Source) -> Row | Skipped:
    key, files, damaged = group

    def lost(kind: str, detail: str, raw: bytes = b"") -> Skipped:
        return Skipped(key=key or source.path.name, kind=kind, detail=detail, source=source.name, raw=raw)

    if damaged is not None and (damage := damaged.damage) is not None:
        detail = ": ".join(filter(None, (damaged.name, damage)))
        return lost(damage.partition(" (")[0], detail, b"".join(each.data for each in files.values()))
    parts = parts_of(tuple(files))
    columns: dict[str, Any] = {}
    if parts.columns is not None:
        found = _object(key, files[parts.columns].data, source)
        if isinstance(found, Skipped):
            return found
        columns = _lower(found)
    if parts.text is not None:
        raw = files[parts.text].data
        try:
            columns["text"] = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return lost("broken UTF-8", str(error)[:200], raw)
    if len(parts.images) > 1:
        return lost("several images", f"{', '.join(files)} (a key ends at the first dot of a name)")
    image = files[parts.images[0]].data if parts.images else None
    if image is None and not _first(columns, URL_COLUMNS):
        return lost("no image", ", ".join(files))
    return Row(key, columns, image)


def _object(key: str, raw: bytes, source: Source) -> dict[str, Any] | Skipped:
    """The object that JSON spells, or why there is none."""
    kind, detail = "broken UTF-8", "not an object"
    try:
        text = utf8(raw, key)
        kind = "broken JSON"
        found = parse_json(text, key, allow_nan=True)
        if isinstance(found, dict):
            return found
    except ValueError as error:
        detail = str(error)[:200]
    return Skipped(key=key, kind=kind, detail=detail, source=source.name, raw=raw)


# === Parquet and lines ===


def _from_parquet(source: Source) -> Iterator[Row | Skipped]:
    parquet.library()  # where it is missing no shard can be read: that is no damage
    stem = source.path.name.partition(".")[0]
    try:
        for number, row in enumerate(parquet.read_rows(source.path)):
            key = f"{stem}-{number:08d}"
            if isinstance(row, parquet.Damaged):
                yield Skipped(key=source.path.name, kind=row.kind, detail=row.detail, source=source.name)
            elif parquet.too_large(row):
                detail = f"more than {LARGEST:,} bytes"
                yield Skipped(key=key, kind="cell too large", detail=detail, source=source.name)
            else:
                yield _of_columns(key, _lower(row), source)
    except ValueError as error:
        detail = str(error)[:200]
        yield Skipped(key=source.path.name, kind="damaged parquet", detail=detail, source=source.name)


def _from_lines(source: Source) -> Iterator[Row | Skipped]:
    stem = source.path.name.partition(".")[0]
    for number, line in read_lines(source.path, limit=LARGEST):
        key = f"{stem}-{number - 1:08d}"
        if isinstance(line, Damaged):
            kind = "damaged archive" if "damaged archive" in line.reason else "line too long"
            yield Skipped(key=key, kind=kind, detail=line.reason, source=source.name)
            continue
        found = _object(key, line, source)
        yield found if isinstance(found, Skipped) else _of_columns(key, _lower(found), source, line)


def _from_list(source: Source) -> Iterator[Row | Skipped]:
    """A file of one list, of one object, or of lines under the other name; good or bad one by one."""
    stem = source.path.name.partition(".")[0]
    try:
        with source.path.open("rb") as file:
            for number, (start, length) in enumerate(in_list(source.path)):
                key = f"{stem}-{number:08d}"
                if length > LARGEST:
                    detail = f"{length:,} bytes, at most {LARGEST:,}"
                    yield Skipped(key=key, kind="line too long", detail=detail, source=source.name)
                    continue
                file.seek(start)
                found = _object(key, file.read(length), source)
                yield found if isinstance(found, Skipped) else _of_columns(key, _lower(found), source)
    except ValueError as error:
        yield Skipped(key=stem, kind="broken JSON", detail=str(error)[:200], source=source.name)


def _of_columns(key: str, columns: dict[str, Any], source: Source, raw: bytes = b"") -> Row | Skipped:
    """A row of columns with its image, which is bytes in it or a file that it names."""
    own = _first(columns, KEY_COLUMNS)
    key = _sound(str(own)) if isinstance(own, str | int) and own != "" else key
    image = None
    if failed_download(columns) is None:
        image, kind, detail = _image(columns, source)
        if kind is not None:
            return Skipped(key=key, kind=kind, detail=detail, source=source.name, raw=raw)
    return Row(key, columns, image, raw)


def _image(columns: dict[str, Any], source: Source) -> tuple[bytes | None, str | None, str]:
    """Bytes of the image, its column taken away; or kind and detail of why there is none."""
    promised = []
    for name in (*IMAGE_COLUMNS, *IMAGES_COLUMNS):
        if name not in columns:
            continue
        value = columns[name]
        if isinstance(value, list) and len(value) > 1:
            return None, "several images", f"{name} holds {len(value)}"
        found = image_of(value)
        if found is not None and (more := _another(columns, name, found)) is not None:
            return None, "several images", f"{name} and {more}"
        if isinstance(found, bytes):
            del columns[name]
            return found, None, ""
        if isinstance(found, str) and "://" in found:
            columns.setdefault("url", columns.pop(name))
        elif isinstance(found, str):
            return _file(found, source)
        else:
            promised.append(name)
    if (beside := image_beside(columns, source.path)) is not None:
        return _file(str(beside.relative_to(source.path.parent)), source)
    known = _first(columns, URL_COLUMNS) or (columns.get("width") and columns.get("height"))
    if known and (source.fetch is not None or not promised):
        return None, None, ""  # judged by its columns
    return None, "no image", f"nothing in {', '.join(promised)}" if promised else "no column of that kind"


def _another(columns: Mapping[str, Any], own: str, image: bytes | str) -> str | None:
    """The column that holds an image beside that of column `own`, or the name of another file."""
    for name, value in columns.items():
        each = image_of(value) if name != own else None
        if isinstance(each, bytes) and each != image and each.startswith(MAGIC):
            return name
        names = name in IMAGE_COLUMNS and isinstance(each, str) and isinstance(image, str)
        if names and Path(str(each)).name != Path(str(image)).name:
            return name
    return None


def _file(name: str, source: Source) -> tuple[bytes | None, str | None, str]:
    """The bytes of the file that a row names."""
    folders = [folder for folder in (source.images, source.path.parent) if folder is not None]
    try:
        return read_limited(file_below(folders, name), LARGEST), None, ""
    except Unusable as reason:
        return None, reason.kind, reason.detail
    except (OSError, ValueError) as error:
        return None, "missing image", f"{name}: {getattr(error, 'strerror', None) or error}"


# === Columns to pairs ===


def pairs_of(key: str, columns: Mapping[str, Any], image: bytes | None, source: Source) -> Iterator[Sample]:
    """The pair of a row, or one pair per caption where it has several; columns are known by their usual names."""
    columns = dict(columns)
    own_source = columns.pop("source", None)
    name = _sound(own_source) if isinstance(own_source, str) and own_source else source.name
    if image is None and (failure := failed_download(columns)) is not None:
        yield Skipped(key=key, kind="failed download", detail=failure[:200], source=name)
        return
    if any(name in columns and _holds_turns(columns[name]) for name in DIALOGUE_COLUMNS):
        detail = "`qwenvl data check` and training read dialogues"
        yield Skipped(key=key, kind="a dialogue, no pair", detail=detail, source=name, raw=image or b"")
        return
    texts, url = _texts(columns), _pop(columns, URL_COLUMNS)
    if image is None and source.fetch is not None and url:
        try:
            image = source.fetch(str(url))
        except (OSError, ValueError) as error:
            yield Skipped(key=key, kind="not fetched", detail=str(error)[:200], source=name)
            return
    try:
        score = _number(_pop(columns, SCORE_COLUMNS))
        width, height = _size(columns.pop("width", None)), _size(columns.pop("height", None))
    except ValueError as error:
        yield Skipped(key=key, kind=str(error), source=name, raw=image or b"")
        return
    for number, text in enumerate(texts):
        own = f"{key}-{number}" if len(texts) > 1 else key
        if isinstance(text, bytes) and text:
            yield Skipped(
                key=own, kind="broken UTF-8", detail=ascii(text)[:200], source=name, raw=image or b""
            )
        elif not isinstance(text, str) or not text.strip():
            yield Skipped(key=own, kind="empty caption", source=name, raw=image or b"")
        elif _has_surrogates(text):
            yield Skipped(
                key=own, kind="broken UTF-8", detail=ascii(text)[:200], source=name, raw=image or b""
            )
        else:
            yield Pair(
                key=own, text=text, source=name, image=image, width=width, height=height, clip_score=score,
                url=_sound(url) if isinstance(url, str) else None, extra=columns,
            )  # fmt: skip


def _texts(columns: dict[str, Any]) -> list[Any]:
    """The captions of a row, taken away: those of a list under any of the names, or the one text."""
    several = next((name for name in TEXTS_COLUMNS if isinstance(columns.get(name), list)), None)
    found = columns.pop(several) if several is not None else _pop(columns, TEXT_COLUMNS)
    for name in TEXT_COLUMNS:  # img2dataset's tars have a caption twice; cleaning changes one text
        if found is not None and columns.get(name) == found:
            del columns[name]
    return (found or [None]) if isinstance(found, list) else [found]


def _holds_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _lower(columns: Mapping[str, Any]) -> dict[str, Any]:
    """By names in lower case; of several that are equal then the first counts, before it one that was so already."""
    lower: dict[str, Any] = {}
    for name, value in sorted(columns.items(), key=lambda item: item[0] != item[0].lower()):
        lower.setdefault(name.lower(), value)
    return lower


def _first(columns: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := columns.get(name)) is not None:
            return value
    return None


def _pop(columns: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if columns.get(name) is not None:
            return columns.pop(name)
    return None


def _number(value: Any) -> float | None:
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
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
    if size is not None and size > 1 << 31:
        raise ValueError("size is no number of pixels")
    return size


def _sound(text: str) -> str:
    """The text without half characters, which UTF-8 has no bytes for."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and _sound(text) != text
