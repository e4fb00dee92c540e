"""The packages that hold the drawings, and how they are got: by npm's and Debian's own clients, checked by digest.

    npm     emoji in ten styles, icons, flags, names in English and Chinese, Chinese fonts     73 MB
    debian  stamps, clip art, furniture, cut-outs, with names; maps with their regions       508 MB

A package is never unpacked onto the disk and none of its scripts is run; `archives.py` reads its files out of it.
"""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from qwenvl.files import made, open_regular
from qwenvl.parsing import read_json

Registry: TypeAlias = Literal["npm", "debian"]

CLIENTS = {"npm": "npm", "debian": "apt-get"}
"""Registry -> the program that gets its packages."""

PATIENCE = 900
"""Seconds for one package: the largest has 160 MB."""


GETTING = ".getting-"
"""How the name of a folder begins in which a package arrives."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package of one version."""

    registry: Registry
    name: str
    version: str
    bytes: int
    """Size of its archive."""
    digest: str
    """`sha512:` or `sha256:` and hex digits, of the archive."""
    licence: str
    """Of its drawings, as SPDX writes it, where the package says one for all of them."""

    @property
    def file(self) -> str:
        """Name of its archive in our folder."""
        plain = self.name.removeprefix("@").replace("/", "-")
        return f"{plain}-{self.version.replace(':', '%3a')}.{'tgz' if self.registry == 'npm' else 'deb'}"

    @property
    def cited(self) -> str:
        """For a page that names sources: what it is, in which version, and where it comes from."""
        return f"{self.name} {self.version} ({self.registry})"


@dataclass(frozen=True, kw_only=True)
class Got:
    """What became of a package."""

    package: Package
    path: Path | None
    """Its archive; None where it is missing."""
    news: bool = False
    """Whether it was got just now."""
    problem: str = ""
    """Why it is missing."""


def known() -> tuple[Package, ...]:
    """Every package of the table beside this file."""
    rows = read_json(Path(__file__).with_name("packages.json"))
    return tuple(Package(**row) for row in rows)


def get(
    packages: Iterable[Package],
    folder: Path,
    *,
    archives: Path | None = None,
    report: Callable[[Got], None] = lambda _: None,
) -> list[Got]:
    """Every package's archive in `folder`, each only once; what cannot be had is named and the rest goes on.

    With `archives`, a folder of archives that somebody has got before, no client is called.
    """
    results = []
    with made(folder):
        for left in folder.glob(f"{GETTING}*"):  # of a killed run: the folder has one owner at a time
            shutil.rmtree(left)
        for package in packages:
            got = _get(package, folder, archives)
            report(got)
            results.append(got)
    return results


def _get(package: Package, folder: Path, archives: Path | None) -> Got:
    place = folder / package.file
    if place.exists() and digest_of(place, package.digest) == package.digest:
        return Got(package=package, path=place)
    try:
        with TemporaryDirectory(dir=folder, prefix=GETTING) as empty:
            found = _copied(package, archives, Path(empty)) if archives else _called(package, Path(empty))
            if (digest := digest_of(found, package.digest)) != package.digest:
                raise ValueError(
                    f"its archive has the digest {digest[:20]}..., expected {package.digest[:20]}...: it is not the "
                    "file that this table was made from"
                )
            found.replace(place)
    except (OSError, ValueError) as error:
        return Got(package=package, path=None, problem=str(error))
    return Got(package=package, path=place, news=True)


def _copied(package: Package, archives: Path, empty: Path) -> Path:
    """The archive under the name that we keep it by, or that apt-get gives it (`name_version_all.deb`)."""
    named = [package.file]
    if package.registry == "debian":
        version = package.version.replace(":", "%3a")
        named += [f"{package.name}_{version}_{machine}.deb" for machine in ("all", "amd64", "arm64")]
    source = next((archives / name for name in named if (archives / name).is_file()), None)
    if source is None:
        raise ValueError(f"{archives} has no {' nor '.join(named[:2])}")
    return Path(shutil.copyfile(source, empty / package.file))


def _called(package: Package, empty: Path) -> Path:
    """The archive as the registry's own client brings it into an empty folder. Raises ValueError with its last word."""
    client = CLIENTS[package.registry]
    if shutil.which(client) is None:
        raise ValueError(f"{client} is not on this machine")
    try:
        status, errors = _run(_command(package, empty), empty)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{client} took longer than {PATIENCE} s") from None
    found = [path for path in empty.iterdir() if path.suffix in (".tgz", ".deb")]
    if status != 0 or len(found) != 1:
        said = [line.strip() for line in errors.splitlines() if line.strip()]
        raise ValueError(f"{client} brought nothing: {_reason(said)}")
    return found[0]


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """Status and errors of a program; when we are stopped meanwhile, it ends with all that it has started."""
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    ) as client:  # fmt: skip
        try:
            _, errors = client.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(client.pid, signal.SIGKILL)
            raise
        return client.returncode, errors


def _command(package: Package, empty: Path) -> Sequence[str]:
    if package.registry == "npm":
        cache = str(empty / "cache")  # a home of its own: there may be none to write into
        return (
            "npm",
            "pack",
            f"{package.name}@{package.version}",
            "--ignore-scripts",
            "--silent",
            "--cache",
            cache,
        )
    return ("apt-get", "download", "-q", f"{package.name}={package.version}")


def _reason(said: Sequence[str]) -> str:
    telling = [line for line in said if line.startswith(("E:", "npm error"))] or list(said)
    return telling[0][:200] if telling else "it says nothing"


def digest_of(path: Path, like: str) -> str:
    """The digest of a file in the manner of another: by the same function."""
    function = hashlib.new(like.partition(":")[0])
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            function.update(block)
    return f"{function.name}:{function.hexdigest()}"
