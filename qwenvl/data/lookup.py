"""The image that a sample means by a name: in its own tar or row, or a file below the folder of its shard.

    photos/1.jpg                 a file below the shard's folder, or below a folder that the user names
    pages.tar/000.jpg#512+2048   first byte and length inside a tar there (row group and row of a parquet file)

Data never choose what is opened elsewhere: no URL is followed, no absolute path and no link out of those folders.
"""

import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenvl.data.columns import IMAGE_COLUMNS, IMAGES_COLUMNS
from qwenvl.data.faults import Unusable
from qwenvl.data.stream.samples import Located, Sample
from qwenvl.files import inside, lookalike

OUTSIDE = "path outside the folder"
"""Kind of what names a file elsewhere."""

BASE64_IMAGE = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD[dl]h|UklGR)[A-Za-z0-9+/\s]{16}")
"""How a JPEG, PNG, GIF or WebP begins that is written out as letters."""

_PLACE = re.compile(r"(.+\.(?:tar|parquet))/(.+)#(\d+)\+(\d+)", re.DOTALL)


def names_in(columns: dict[str, Any]) -> list[str]:
    """The images that columns name, in order, each once; those columns leave `columns`."""
    names: list[str] = []
    for column in [name for name in columns if name.lower() in IMAGE_COLUMNS + IMAGES_COLUMNS]:
        values = columns[column] if isinstance(columns[column], list) else [columns[column]]
        paths = [each.get("path") if isinstance(each, Mapping) else each for each in values]
        found = [each for each in paths if isinstance(each, str) and each]
        if len(found) == len(values):
            names += found if not {*found} <= {*names} else []
            del columns[column]
    return names


def name_of(source: object, folder: Path) -> str:
    """What a file in `folder` calls an image that was found: a path from there, absolute if it lies elsewhere."""
    path = source.shard if isinstance(source, Located) else Path(str(source))
    real, base = path.resolve(), folder.resolve()
    name = real.relative_to(base).as_posix() if real.is_relative_to(base) else str(real)
    return f"{name}/{source.name}#{source.first}+{source.second}" if isinstance(source, Located) else name


class Lookup:
    """Names of images -> where they are, for one sample."""

    def __init__(self, sample: Sample, names: Collection[str], *, strict: bool = True) -> None:
        """`names` are all that the sample uses or offers; without `strict` a file need not be there."""
        self._sample, self._strict = sample, strict
        members = list(sample.images)
        foreign = [name for name in names if self._member(name) is None]
        known = len(foreign) < len({*names} - {*members})
        # A tar renames images to its key: as many names as members are the members in order.
        self._aliases = (
            dict(zip(foreign, members, strict=True)) if len(foreign) == len(members) and not known else {}
        )

    def __call__(self, name: str) -> Located | Path:
        """Where the image is. Raises Unusable."""
        if re.match(r"(?i)(?:https?|ftp|s3|gs|file|data):", name):
            raise Unusable("image at a URL", f"shows {name[:80]}.")
        if BASE64_IMAGE.match(name):
            raise Unusable("image as base64", f"shows {len(name):,} letters, {name[:12]}...")
        if self._sample.images:
            found = self._member(name) or self._sample.images.get(self._aliases.get(name, ""))
            if found is None:
                raise Unusable("missing image", f"{name} is none of {', '.join(self._sample.images)}")
            return found
        if place := _PLACE.fullmatch(name):
            shard = self._file(place[1])
            return Located(shard, int(place[3]), int(place[4]), place[2])
        return self._file(name)

    def _member(self, name: str) -> Located | Path | None:
        images = self._sample.images
        if name in images:
            return images[name]
        base = Path(name).name
        return next((images[key] for key in images if Path(key).name == base), None)

    def _file(self, name: str) -> Path:
        """A file below one of the folders that data may name. Raises Unusable where there is none."""
        roots = [root for root in (self._sample.root, self._sample.folder) if root is not None]
        return file_below(roots, name, strict=self._strict)


def file_below(roots: Sequence[Path], name: str, *, strict: bool = True) -> Path:
    """The file that data mean by a name, below the first of the folders that has it.

    Raises Unusable for a name that leads out of them all and, where `strict`, for one that no file has.
    """
    allowed = [path for root in roots if _is_below(path := root / name, roots)]
    if not allowed:
        raise Unusable(OUTSIDE, _refusal(roots[-1], name))
    if there := next((path for path in allowed if _is_file(path)), None):
        return there
    if strict:
        raise Unusable("missing image", _missing(allowed[-1], name))
    return allowed[-1]


def _is_below(path: Path, roots: Collection[Path]) -> bool:
    """Whether a path lies below one of the folders once all links are followed."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return any(os.path.commonpath([real, base]) == base for base in map(os.path.realpath, roots))


def _refusal(root: Path, name: str) -> str:
    try:
        inside(root, name, "image")
    except ValueError as error:
        return str(error)
    return f"{name[:80]!r} leads out of {root}."


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _missing(path: Path, name: str) -> str:
    """That there is no such file, and which of its folder has nearly that name, or where it is seen from."""
    said = f"{path}, which does not exist"
    try:
        if path.exists():
            return f"{path}, which is no file."
    except OSError:
        return f"{said}."
    plain = path.parent / path.name.strip().replace("\\", "/")
    if (near := plain if _is_file(plain) else lookalike(plain)) is not None:
        return f"{said}; {near.name!a} is there, {_difference(path.name, near.name)}."
    if not Path(name).is_absolute() and _is_file(Path(name)):
        return f"{said}; the working folder has it: give --images {Path.cwd()}."
    return f"{said}."


def _difference(name: str, near: str) -> str:
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", near):
        return f"written in another form of Unicode than {name!a}"
    if name.casefold() == near.casefold():
        return "written in other letter case"
    return f"not {name!a}"
