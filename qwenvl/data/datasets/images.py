"""Images by the names that annotations give them: found below their folder, opened, and compared with what is said.

Names come from strangers and other machines. They may be written with backslashes, a drive letter, %20, other letter
case or another Unicode form than the file has; they never lead out of the folder. A name that fits several files fits
none.

The size that an annotation gives says how its author saw the image. Phone photos are stored on their side, with an EXIF
tag that turns them: the model sees them as stored (`qwenvl.images`), labelling tools mostly as turned. Boxes are taken
from the one to the other where the sizes tell which it was; where they cannot, the entry is refused.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qwenvl.data.boxes import Frame
from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.columns import IMAGES
from qwenvl.data.datasets.annotations import BadEntry
from qwenvl.files import inside, names_by_spelling, read_limited, spelling
from qwenvl.images import exif_orientation

MAX_BYTES = 1 << 30
"""Bytes of an image file."""

_DRIVE = re.compile(r"[A-Za-z]:/|//")


class ImageFolder:
    """The folders that the images of a data set are in."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._claimed: dict[Path, str] = {}

    def find(self, *names: str) -> Path:
        """The file that the first of these names has that is there; where none is, the path of the first.

        Raises BadEntry for a name that leads out of the folder or fits several files.
        """
        refused: list[BadEntry] = []
        for name in names:
            for folder in self.folders:
                try:
                    if (path := self._find(folder, name)) is not None:
                        return path
                except BadEntry as error:
                    refused.append(error)
        if len(refused) == len(names) * len(self.folders):
            raise refused[0]
        name = _spelled(names[0])
        return self.folders[0] / (name.rpartition("/")[2] if _drive(name) else name)

    def by_stem(self, name: str) -> Path:
        """The image that has this name but for its ending, with whatever ending it has; `NAME.jpg` where none has."""
        folder, _, stem = _spelled(name).rpartition("/")
        found = self.find(name)
        if found.suffix[1:].lower() in IMAGES and found.is_file():
            return found
        return self.find(*(f"{folder}/{stem}.{ending}".lstrip("/") for ending in IMAGES))

    def named(self, name: object, stem: str) -> Path:
        """The image that an annotation file names, by the last part of its path and with whatever ending it has.

        Where that is not there, the image that is called as the annotation file is.
        """
        base = name.strip().replace("\\", "/").rpartition("/")[2] if isinstance(name, str) else ""
        for each in filter(None, (base, base.rpartition(".")[0])):
            if (found := self.by_stem(each)).is_file():
                return found
        return self.by_stem(stem)

    def _find(self, folder: Path, name: str) -> Path | None:
        written = _spelled(name)
        if _drive(name):
            return self._of_another_machine(folder, written)
        if written.startswith("/"):  # an absolute path is taken where it lies below the folder
            written = _relative(written, folder)
        path = _inside(folder, written)
        if path.is_file():
            return path
        parts = PurePosixPath(written).parts
        for tail in (parts, _after(folder, parts)):
            if tail and (like := _alike(folder, tail)) is not None:
                return _inside(folder, like)
        return None

    def _of_another_machine(self, folder: Path, written: str) -> Path | None:
        """The file for `C:/data/images/one.jpg`: the longest end of the path that is there."""
        parts = PurePosixPath(_DRIVE.sub("", written, count=1)).parts
        tails = [parts[start:] for start in range(len(parts))]
        like = next((found for tail in tails if (found := _alike(folder, tail)) is not None), None)
        if like is None:
            return None
        path = _inside(folder, like)
        if self._claimed.setdefault(path, written) != written:
            raise BadEntry(
                "ambiguous image name",
                f"{written} and {self._claimed[path]} are both {path} here; keep their folders apart.",
            )
        return path


def _spelled(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise BadEntry("no image name", f"{str(name)[:60]!r} is the name of the image; expected a text.")
    return name.replace("\\", "/").removeprefix("./")


def _drive(name: str) -> bool:
    r"""Whether it is an absolute path of Windows: `C:\\data\\one.jpg`, `\\\\server\\data\\one.jpg`."""
    return re.match(r"[A-Za-z]:[\\/]|\\\\", name) is not None


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name, "image name")
    except ValueError as error:
        raise BadEntry("image outside its folder" if "leads out" in str(error) or "absolute" in str(error)
                       else "unusable image name", str(error)) from None  # fmt: skip


def _relative(name: str, folder: Path) -> str:
    base = os.path.realpath(folder)
    real = os.path.realpath(name)
    return os.path.relpath(real, base).replace(os.sep, "/") if real.startswith(base + os.sep) else name


def _after(folder: Path, parts: Sequence[str]) -> tuple[str, ...]:
    """`train/1.jpg` in a folder that is itself called `train` is `1.jpg`."""
    own = [spelling(part) for part in folder.resolve().parts]
    for length in range(len(parts) - 1, 0, -1):
        if [spelling(part) for part in parts[:length]] == own[-length:]:
            return tuple(parts[length:])
    return ()


def _alike(folder: Path, parts: Sequence[str]) -> str | None:
    """The path below `folder` that is spelled like this; None where there is none, BadEntry for several."""
    place, found = folder, []
    for part in parts:
        alike = names_by_spelling(place).get(spelling(part), ())
        if part in ("..", "/") or not alike:
            return None
        if len(alike) > 1 and part not in alike:
            raise BadEntry(
                "ambiguous image name",
                f"{place} has no {part}, but {' and '.join(alike)}; rename one of them.",
            )
        found.append(part if part in alike else alike[0])
        place = place / found[-1]
    return "/".join(found) if place.is_file() else None


# === What the file itself says ===


class Seen(NamedTuple):
    """An image that was opened."""

    width: int
    """Pixels, as stored."""
    height: int
    orientation: int
    """EXIF: 1 as stored; 2 to 8 mirrored, turned or both."""


def seen(image: Path | bytes) -> Seen:
    """Size and orientation of an image that is whole. Raises BadEntry, with a kind that says why it is not."""
    try:
        return _opened(image) if isinstance(image, bytes) else _read(image, image.stat().st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        raise BadEntry("missing image", f"there is no {image!s}") from None
    except BadImage as error:
        raise BadEntry(str(error), _name(image)) from None
    except (OSError, ValueError) as error:
        raise BadEntry("unreadable image", str(error)) from None


@lru_cache(maxsize=1024)
def _read(path: Path, _changed: int) -> Seen:
    return _opened(read_limited(path, MAX_BYTES))


def _opened(data: bytes) -> Seen:
    facts = measure(data)
    return Seen(facts.width, facts.height, exif_orientation(data))


def _name(image: Path | bytes) -> str:
    return "the image" if isinstance(image, bytes) else str(image)


def frame_of(source: Path | bytes, said: tuple[int, int] | None) -> Frame:
    """How the author of an annotation saw an image, by the size that it says. Raises BadEntry.

    `said` None: nothing is known, and an image that its EXIF tag turns has no boxes that could be trusted.
    """
    image = seen(source)
    stored, turned = (image.width, image.height), (image.height, image.width)
    as_stored = said is None or _scaled(said, stored)
    if image.orientation == 1 and as_stored:
        return Frame(*(said or stored))
    if image.orientation >= 5 and said is not None and stored != turned:
        as_turned = _scaled(said, turned)
        if said == stored or (as_stored and not as_turned):
            return Frame(*said)
        if said == turned or (as_turned and not as_stored):
            return Frame(*said, image.orientation)
    if said is None or as_stored:
        raise BadEntry(
            "image turned by EXIF",
            f"{_name(source)} is turned when it is shown, and its annotation does not say how its boxes were drawn.",
        )
    kind = "image on its side" if _scaled(said, turned) else "image of another size"
    raise BadEntry(
        kind, f"{_name(source)} is {stored[0]} x {stored[1]}, its annotation says {said[0]} x {said[1]}."
    )


def _scaled(said: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one is the other at another resolution: their shapes differ by rounding only."""
    shape = said[0] * size[1] / (said[1] * size[0])
    return said == size or abs(shape - 1) <= 0.01 + 1 / min(*said, *size)
