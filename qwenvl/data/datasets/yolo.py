"""YOLO: a text file of boxes per image, by numbers of classes whose names stand in a file of their own (Table 3)."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from qwenvl.data.boxes import BadBox, from_yolo
from qwenvl.data.datasets.annotations import BadEntry, expect, files_of, load_text, text_lines
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.phrases import phrases
from qwenvl.data.records import Record, Skipped
from qwenvl.markup import Box

NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt", "readme.txt",
                        "readme.roboflow.txt", "readme.dataset.txt"})  # fmt: skip
"""Text files that tools leave beside the labels."""


def records(files: Sequence[Path], images: Path) -> Found:
    """The folder of label files, one line per box, and the names: `classes.txt`, one per line, or `data.yaml`.

    Labels in folders below (`labels/train/a.txt`, `train/labels/a.txt`) belong to images in folders below
    (`images/train/a.jpg`, `train/images/a.jpg`).
    """
    labels, classes = expect(files, 2, "the folder labels/ and classes.txt or data.yaml")
    names = class_names(classes)
    found = files_of([labels], ".txt", deep=True)
    own = [path for path in found if path.name.lower() not in NOT_LABELS and not _same(path, classes)]
    read = partial(_phrases, labels if labels.is_dir() else labels.parent, names, ImageFolder(images))
    return one_by_one(read, ((path.name, path) for path in own), "YOLO")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _phrases(
    labels: Path, names: Sequence[str], folder: ImageFolder, path: Path
) -> Iterator[Record | Skipped]:
    lines = [line for line in text_lines(path) if line.strip()]
    if not lines:
        raise BadEntry("no box")
    below = path.relative_to(labels).with_suffix("").as_posix()
    beside = "/".join("images" if part == "labels" else part for part in below.split("/"))
    found = [folder.by_stem(name) for name in dict.fromkeys((below, beside, path.stem))]
    file = next((each for each in found if each.is_file()), found[0])
    frame_of(file, None)
    yield from phrases(file, (_box(line, names) for line in lines), "YOLO")


def _box(line: str, names: Sequence[str]) -> Box | BadBox:
    try:
        return from_yolo(line, 1000, 1000, names)  # in shares, so that any size will do
    except BadBox as bad:
        return bad


# === Names of classes ===


def class_names(path: Path) -> list[str]:
    """Names by number, from a text file of one per line or the `names` of a `data.yaml`. Raises ValueError."""
    text = load_text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        names = _names_of_yaml(text, path)
    else:
        names = [line.strip() for line in text.rstrip().split("\n")]
    if not any(names):
        raise ValueError(f"{path} names no class; give classes.txt, one name per line, or data.yaml.")
    return names


_ITEM = re.compile(r"\s*-\s+(.*)")
_ENTRY = re.compile(r"""\s*["']?(\d+)["']?\s*:\s+(.*)""")
_MORE = "write `names` as a list, or as numbers with their names, as Ultralytics and Roboflow do."


def _names_of_yaml(text: str, path: Path) -> list[str]:
    """The key `names`: a list or numbers with names, in a line or below; of the other keys nothing is read."""
    lines = [bare for line in text.split("\n") if (bare := _uncommented(line.rstrip("\r"))).strip()]
    start = next((k for k, line in enumerate(lines) if re.match(r"""["']?names["']?\s*:""", line)), None)
    if start is None:
        raise ValueError(f"{path} has no key `names`; {_MORE}")
    value = lines[start].partition(":")[2].strip()
    below = []
    for line in lines[start + 1 :]:
        if not line[0].isspace() and not line.startswith(("-", "]", "}")):
            break
        below.append(line)
    if value.startswith(("[", "{")):
        return _in_line(" ".join([value, *map(str.strip, below)]), path)
    if value or not below:
        raise ValueError(f"{path} has {value[:60]!r} as `names`; {_MORE}")
    return _below(below, path)


def _in_line(value: str, path: Path) -> list[str]:
    """`['cat', "dog"]` or `{0: cat, 1: dog}`, which may run over several lines."""
    if value[-1] != {"[": "]", "{": "}"}[value[0]]:
        raise ValueError(f"{path} has `names` that do not end: {value[:60]!r}; {_MORE}")
    cells = [cell.strip() for cell in _split(value[1:-1]) if cell.strip()]
    if value[0] == "[":
        return [_scalar(cell, path) for cell in cells]
    return _by_number([re.sub(r"^([^:]*):", r"\1: ", cell, count=1) for cell in cells], path)


def _below(lines: Sequence[str], path: Path) -> list[str]:
    """`- cat` or `0: cat`, a line each."""
    items = [_ITEM.fullmatch(line) for line in lines]
    if all(items):
        return [_scalar(item[1], path) for item in items if item]
    return _by_number(lines, path)


def _by_number(entries: Sequence[str], path: Path) -> list[str]:
    """Names at the places that their numbers say; a class without a name leaves an empty one."""
    named: dict[int, str] = {}
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        if found is None or int(found[1]) > 100_000 or int(found[1]) in named:
            raise ValueError(f"{path} has {entry.strip()[:60]!r} among `names`; {_MORE}")
        named[int(found[1])] = _scalar(found[2], path)
    return [named.get(number, "") for number in range(max(named, default=-1) + 1)]


def _scalar(cell: str, path: Path) -> str:
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] and cell[0] in "\"'":
        inner = cell[1:-1]
        return (inner.replace("''", "'") if cell[0] == "'" else _unescaped(inner, path)).strip()
    if not cell or cell[0] in "[{&*!|>%@`\"'":
        raise ValueError(f"{path} has {cell[:60]!r} as the name of a class; {_MORE}")
    return cell


def _unescaped(text: str, path: Path) -> str:
    escapes = {"\\": "\\", '"': '"', "/": "/", "t": "\t", "n": "\n", " ": " "}

    def one(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "xuU":
            return chr(int(code[1:], 16))
        return escapes[code]

    try:
        return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", one, text)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{path} has an escape in {text[:60]!r} that is not known; {_MORE}") from None


def _split(text: str) -> list[str]:
    """Cells between commas that stand outside quotes."""
    cells, quote = [""], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not cells[-1].rpartition(":")[2].strip():
            quote = letter
        elif letter == ",":
            cells.append("")
            continue
        cells[-1] += letter
    return cells


def _uncommented(line: str) -> str:
    """A line without its comment, which begins at a `#` outside quotes, at the start or behind a space."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (place == 0 or line[place - 1] in " \t[{,:"):
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line
