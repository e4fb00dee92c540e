"""Small packages like those of npm and Debian, with drawings made here."""

import hashlib
import io
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import Any

from qwenvl.data.drawings.packages import Package

ANNOTATIONS = {
    "en": {"🐸": {"tts": ["frog"], "default": ["face", "frog"]}, "🔴": {"tts": ["red circle"]}},
    "zh": {"🐸": {"tts": ["青蛙"], "default": ["青蛙", "蛙"]}},
}


def npm(folder: Path, name: str, files: dict[str, Any], version: str = "1.0.0") -> Package:
    """A .tgz with these files below `package/`, and the package that it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return written(folder, "npm", name, version, buffer.getvalue())


def debian(folder: Path, name: str, files: dict[str, bytes], version: str = "1:1.0-1") -> Package:
    """A .deb with these files, and the package that it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(f"./{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": lzma.compress(buffer.getvalue()),
    }
    archive = b"!<arch>\n" + b"".join(
        f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        + data
        + b"\n" * (len(data) % 2)
        for member, data in members.items()
    )
    return written(folder, "debian", name, version, archive)


def written(folder: Path, registry: Any, name: str, version: str, archive: bytes) -> Package:
    """The package of an archive, which is put where a person who has got it before would have it."""
    digest = "sha512:" + hashlib.sha512(archive).hexdigest()
    package = Package(
        registry=registry, name=name, version=version, bytes=len(archive), digest=digest, licence="MIT"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / package.file).write_bytes(archive)
    return package


def circle(colour: str) -> str:
    """The body of a drawing."""
    return f'<circle cx="16" cy="16" r="12" fill="{colour}"/>'


def emoji_set(folder: Path, source: str = "twemoji", **icons: dict[str, Any]) -> Package:
    """A set of Iconify with a frog, the same frog in another skin, a hidden one and what `icons` adds."""
    drawn = {
        "frog": {"body": circle("#2a2")}, "frog-dark-skin-tone": {"body": circle("#131")},
        "old": {"body": circle("#aaa"), "hidden": True}, "red-circle": {"body": circle("#d11"), "width": 64},
    }  # fmt: skip
    info = {"license": {"title": "MIT", "spdx": "MIT"}, "author": {"name": "Ann | Bob"}}
    return npm(
        folder,
        f"@iconify-json/{source}",
        {"info.json": info, "icons.json": {"width": 32, "height": 32, "icons": {**drawn, **icons}},
         "chars.json": {"1f438": "frog"}},
    )  # fmt: skip


def names(folder: Path) -> Package:
    """CLDR's names of two emoji."""
    files = {
        f"annotations/{language}/annotations.json": {"annotations": {"annotations": said}}
        for language, said in ANNOTATIONS.items()
    }
    return npm(folder, "cldr-annotations-full", files)


def client(folder: Path, name: str, script: str) -> Path:
    """A program on a PATH of its own: a registry's client that does what `script` (sh) says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(path, 0o755)
    return path
