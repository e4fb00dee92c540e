"""Stamps, clip art, cut-outs and renders out of Debian packages, each with the name that its makers gave it."""

import html
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from qwenvl.data.drawings.archives import LARGEST, files_of
from qwenvl.data.drawings.names import Archives, Collection, Named, spoken

TUXPAINT, PYSIOGAME, GCOMPRIS = "tuxpaint-stamps-default", "pysiogame", "gcompris-qt-data"
FURNITURE, CLIPART, CLIPART_PNG = "sweethome3d-furniture", "openclipart-svg", "openclipart-png"


def collections() -> Iterator[Collection]:
    """Every set, with the packages that it is made of."""
    yield Collection("tuxpaint", (TUXPAINT,), (), _tuxpaint)
    yield Collection("openclipart", (CLIPART,), (CLIPART_PNG,), _openclipart)
    yield Collection("pysiogame", (PYSIOGAME,), (), _pysiogame)
    yield Collection("sweethome3d", (FURNITURE,), (), _sweethome3d)
    yield Collection("gcompris", (GCOMPRIS,), (), _gcompris)


def _tuxpaint(archives: Archives) -> Iterator[Named]:
    """Stamps: a sentence in the first line of `frog.txt`, that of another language in a line `zh_CN.utf8=`."""
    below = r"usr/share/tuxpaint/stamps/.*"
    said = {
        name[:-4]: text.decode("utf-8", "replace")
        for name, text in files_of(archives[TUXPAINT], below + r"\.txt")
    }
    drawn = set()
    for name, content in files_of(archives[TUXPAINT], below + r"\.(png|svg)"):
        path = PurePosixPath(name)
        stem = str(path.with_suffix(""))
        if stem not in said or stem in drawn:
            continue
        drawn.add(stem)
        english, *others = said[stem].splitlines() or [""]
        chinese = [line.partition("=")[2].strip() for line in others if line.startswith("zh_CN.utf8=")]
        place = PurePosixPath(*path.parts[4:-1])
        yield Named(
            source="tuxpaint", key=".".join((*place.parts, path.stem)), kind="stamp", licence="GPL-2.0-or-later",
            author="Tux Paint and contributors", en=english.strip() or None, zh=next(iter(chinese), "") or None,
            keywords=place.parts[-1:], **_content(path, content),
        )  # fmt: skip


def _openclipart(archives: Archives) -> Iterator[Named]:
    """Clip art: title, keywords and author in the metadata of its SVG; drawn as the package with PNGs draws it."""
    vectors = {name[len(_SVG) : -4]: data for name, data in files_of(archives[CLIPART], _SVG + r".*\.svg")}
    drawn = set()
    if CLIPART_PNG in archives:
        for name, content in files_of(archives[CLIPART_PNG], _PNG + r".*\.png"):
            key = name[len(_PNG) : -4]
            if key in vectors:
                drawn.add(key)
                yield _clip_art(key, vectors[key].decode("utf-8", "replace"), content)
    for key, vector in vectors.items():
        if key not in drawn:
            yield _clip_art(key, vector.decode("utf-8", "replace"), b"")


_SVG, _PNG = "usr/share/openclipart/svg/", "usr/share/openclipart/png/"


def _clip_art(key: str, vector: str, image: bytes) -> Named:
    said = re.search(r"<metadata.*?</metadata>", vector, re.DOTALL)
    about = said.group() if said else ""
    return Named(
        source="openclipart", key=key.replace("/", "."), kind="clip art", licence="CC0-1.0",
        author=next(iter(_told(about, "dc:title", inside="cc:Agent")), "Open Clip Art Library"),
        en=next(iter(_told(about, "dc:title")), None), keywords=tuple(_told(about, "rdf:li")),
        svg="" if image else vector, file=image,
    )  # fmt: skip


def _told(about: str, tag: str, inside: str = "") -> list[str]:
    """The texts of a tag in the metadata; of those within another tag where `inside` names one."""
    if inside:
        about = " ".join(re.findall(rf"<{inside}\b.*?</{inside}>", about, re.DOTALL))
    else:
        about = re.sub(r"<cc:Agent\b.*?</cc:Agent>", "", about, flags=re.DOTALL)
    found = (html.unescape(text).strip() for text in re.findall(rf"<{tag}[^>]*>([^<]+)</{tag}>", about))
    return [text for text in found if text]


def _pysiogame(archives: Archives) -> Iterator[Named]:
    """Cut-outs for children who learn words: the name of the file is the word, that of the folder its kind."""
    below = r"usr/share/games/pysiogame/res/images/art4apps/"
    for name, content in files_of(archives[PYSIOGAME], below + r".*\.jpg"):
        path = PurePosixPath(name[len(below) :])
        yield Named(
            source="pysiogame", key=".".join((*path.parts[:-1], path.stem)), kind="cut-out", licence="CC-BY-SA-3.0",
            author="art4apps", en=path.stem.replace("_", " "), keywords=path.parts[:1], file=content,
        )  # fmt: skip


def _sweethome3d(archives: Archives) -> Iterator[Named]:
    """Furniture: catalogues (.sh3f, which are zips) with the renders, and their names in Java's properties files."""
    for name, content in files_of(archives[FURNITURE], r".*\.sh3f"):
        catalogue = PurePosixPath(name).stem
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            sizes = {info.filename: info.file_size for info in files.infolist()}
            english = _properties(files, "PluginFurnitureCatalog.properties")
            chinese = _properties(files, "PluginFurnitureCatalog_zh_CN.properties")
            number = 1
            while f"id#{number}" in english:
                icon = english.get(f"icon#{number}", "").lstrip("/")
                said = english.get(f"name#{number}"), chinese.get(f"name#{number}")
                if 0 < sizes.get(icon, 0) <= LARGEST:
                    yield Named(
                        source="sweethome3d", key=f"{catalogue}.{english[f'id#{number}']}", kind="3d render",
                        licence=english.get(f"license#{number}", "see its package"),
                        author=english.get(f"creator#{number}", ""), en=said[0],
                        zh=said[1] if said[1] != said[0] else None,
                        keywords=(english.get(f"category#{number}", "furniture"),),
                        file=files.read(icon),
                    )  # fmt: skip
                number += 1


def _properties(files: zipfile.ZipFile, name: str) -> dict[str, str]:
    """A .properties file: Latin-1 with escapes such as `\\u5e8a`."""
    if name not in files.namelist():
        return {}
    lines = re.sub(
        r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), files.read(name).decode("latin-1")
    )
    pairs = (line.split("=", 1) for line in lines.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _gcompris(archives: Archives) -> Iterator[Named]:
    """Images of a suite of games, inside Qt's resource files; their names are those of files."""
    for name, content in files_of(archives[GCOMPRIS], r".*/rcc/.*\.rcc"):
        activity = PurePosixPath(name).stem
        for inner, data in resources(content):
            path = PurePosixPath(inner)
            if path.suffix in (".webp", ".svg", ".svgz", ".png") and data:
                if path.suffix == ".svgz":
                    path, data = path.with_suffix(".svg"), zlib.decompressobj(31).decompress(data, LARGEST)
                yield Named(
                    source="gcompris", key=f"{activity}.{path.name}", kind="cut-out", licence="AGPL-3.0-only",
                    author="GCompris and contributors", en=spoken(path.stem) or None, keywords=(activity,),
                    **_content(path, data),
                )  # fmt: skip


def _content(path: PurePosixPath, data: bytes) -> dict[str, str] | dict[str, bytes]:
    return {"svg": data.decode("utf-8", "replace")} if path.suffix == ".svg" else {"file": data}


def resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and data of every file of a Qt resource file (`rcc -binary`), unpacked where zlib packed it.

    A header names where a tree, the data and the names begin; a node of 14 bytes, from version 2 on 22, is a folder
    (number of children, first child) or a file (offset of its data). Raises ValueError for anything else.
    """
    if content[:4] != b"qres":
        raise ValueError("no Qt resource file; fetch its package again.")
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    size = 22 if version >= 2 else 14
    waiting = [(0, "")]
    while waiting:
        node, path = waiting.pop()
        at = tree + node * size
        name, flags = struct.unpack(">IH", content[at : at + 6])
        if node:
            (length,) = struct.unpack(">H", content[names + name : names + name + 2])
            begin = names + name + 6
            path = f"{path}/{content[begin : begin + 2 * length].decode('utf-16-be', 'replace')}"
        if flags & 2:
            children, first = struct.unpack(">II", content[at + 6 : at + 14])
            waiting += [(first + k, path) for k in reversed(range(children))]
            continue
        (offset,) = struct.unpack(">I", content[at + 10 : at + 14])
        (length,) = struct.unpack(">I", content[data + offset : data + offset + 4])
        raw = content[data + offset + 4 : data + offset + 4 + length]
        if flags & 1:  # zlib behind four bytes of the size
            yield path, zlib.decompressobj().decompress(raw[4:], LARGEST)
        elif not flags & 4:  # zstd, for which there is no reader here
            yield path, raw
