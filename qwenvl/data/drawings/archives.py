"""Files inside the archives of packages: npm's .tgz and Debian's .deb, read through once, nothing unpacked."""

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qwenvl.files import open_regular

LARGEST = 128 << 20
"""Bytes of a file inside: the largest set of emoji fills most of it."""

_AR, _HEADER = b"!<arch>\n", 60


def files_of(archive: Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file whose name fits the expression `wanted`, in the archive's order.

    Names are relative, without `./`; links, and files above `LARGEST`, are passed over. Raises ValueError for an
    archive that breaks off.
    """
    fits = re.compile(wanted)
    try:
        with _tar(archive) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and member.size <= LARGEST and fits.fullmatch(name):
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file"
                    yield name, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} cannot be read to its end ({error}); remove it and fetch again."
        ) from None


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with open_regular(archive) as file:
        inner = file if archive.suffix == ".tgz" else _data_of(file, archive)
        with tarfile.open(fileobj=inner, mode="r|*") as tar:
            yield tar


def _data_of(file: IO[bytes], archive: Path) -> IO[bytes]:
    """The `data.tar.*` of a .deb, which is an ar archive: for each member a header of 60 bytes, then its bytes."""
    if file.read(len(_AR)) != _AR:
        raise ValueError(f"{archive} is no Debian package; remove it and fetch again.")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError(f"{archive} holds no files; remove it and fetch again.")
