"""Drawings as training material: shards that cleaning reads, an index of all of them, and whom they are owed to.

    OUT/packages/             archives as their registries gave them
    OUT/SOURCE-00000.tar      key.png, with transparency; key.json: captions (en, zh), keywords, kind, licence, author,
                              regions of maps
    OUT/index.jsonl           a line for each drawing: all of that and the shard it lies in
    OUT/ATTRIBUTION.md        every set and every font with its makers, licence and package

A set that is there is not made again, unless its packages or the size of the images have changed; index and attribution
are over all sets that are there, whichever run made them.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as pillow

from qwenvl.data.drawings import fonts, rendering
from qwenvl.data.drawings.names import Archives, Collection, Named
from qwenvl.data.drawings.packages import Package
from qwenvl.data.tars import TarWriter
from qwenvl.files import atomic, safe_key
from qwenvl.html import markdown
from qwenvl.parsing import json_lines, read_json

PER_SHARD = 2000
"""Drawings of a shard."""

SIDE = 224
"""Pixels of the longer side, as stage 1 reads images."""


@dataclass
class Made:
    """What became of a set."""

    source: str
    drawings: int = 0
    chinese: int = 0
    """Drawings with a Chinese name."""
    refused: Counter[str] = field(default_factory=Counter)
    """Why a drawing is not there -> how many."""
    licences: Counter[str] = field(default_factory=Counter)
    news: bool = False
    """Whether it was made just now."""
    missing: tuple[str, ...] = ()
    """Packages without which it could not be made."""


def make(
    collections: Sequence[Collection],
    packages: Mapping[str, Package],
    archives: Archives,
    out: Path,
    *,
    asked: Container[str] | None = None,
    side: int = SIDE,
    processes: int = 2,
    report: Callable[[Made], None] = lambda _: None,
) -> list[Made]:
    """Every set whose packages are at hand, each on its own; then index and attribution over all that are there.

    `asked` are the names of packages that were wanted: a set that needs others is left as it is, and no result.
    """
    results = []
    for collection in collections:
        if asked is not None and not all(name in asked for name in collection.needs):
            continue
        missing = tuple(name for name in collection.needs if name not in archives)
        if not missing:
            made = _made(collection, packages, archives, out, side, processes)
        elif (seal := _seal(collection, out)).exists():  # made before its package was lost
            made = _sealed(collection, read_json(seal))
        else:
            made = Made(collection.source, missing=missing)
        report(made)
        results.append(made)
    there = [collection for collection in collections if _seal(collection, out).exists()]
    _write_index(there, out)
    _write_attribution(there, packages, out)
    return results


def _seal(collection: Collection, out: Path) -> Path:
    """What says that a set is whole, written behind everything else of it."""
    return out / f"{collection.source}.json"


def _sealed(collection: Collection, known: Mapping[str, Any]) -> Made:
    refused, licences = Counter(known["refused"]), Counter(known["licences"])
    return Made(collection.source, known["drawings"], known["chinese"], refused, licences)


def _made(
    collection: Collection,
    packages: Mapping[str, Package],
    archives: Archives,
    out: Path,
    side: int,
    processes: int,
) -> Made:
    used = [name for name in (*collection.needs, *collection.uses) if name in archives]
    digests = {name: packages[name].digest for name in used}
    made_of = {"side": side, "packages": digests}
    seal = _seal(collection, out)
    if seal.exists() and (known := read_json(seal)).get("made_of") == made_of:
        return _sealed(collection, known)
    made = Made(collection.source, news=True)
    seal.unlink(missing_ok=True)
    (out / "index.jsonl").unlink(missing_ok=True)  # it would name shards that are being made again
    for old in out.glob(f"{collection.source}-[0-9]*.tar"):
        old.unlink()
    with atomic(out / f"{collection.source}.jsonl") as lines:
        for number, part in enumerate(_parts(_images(collection.read(archives), side, processes, made))):
            shard = out / f"{collection.source}-{number:05d}.tar"
            with atomic(shard) as file:
                tar = TarWriter(file)
                for named, key, image in part:
                    columns = _columns(named, digests)
                    tar.add(f"{key}.png", image)
                    tar.add(f"{key}.json", _json(columns))
                    lines.write(_json({"key": key, "shard": shard.name, **columns}) + b"\n")
                tar.close()
    with atomic(seal) as file:
        file.write(_json({"made_of": made_of, "drawings": made.drawings, "chinese": made.chinese,
                          "refused": made.refused, "licences": made.licences}))  # fmt: skip
    return made


def _images(
    drawings: Iterator[Named], side: int, processes: int, made: Made
) -> Iterator[tuple[Named, str, bytes]]:
    """Every drawing with its key and its PNG; what cannot be drawn, or has no name, is counted in `made`."""
    waiting: list[Named] = []

    def asked() -> Iterator[rendering.Drawing]:
        for named in drawings:
            if not (named.en or named.zh):
                made.refused["no name"] += 1
                continue
            waiting.append(named)
            yield rendering.Drawing(named.key, named.svg, named.file)

    keys: set[str] = set()
    for result in rendering.rendered(asked(), side, processes):
        named = waiting.pop(0)
        problem = result.problem
        if result.image is not None and result.image.getchannel("A").getbbox() is None:
            problem = "nothing to see"
        if result.image is None or problem:
            made.refused[problem] += 1
            continue
        key = safe_key(named.key)
        while key in keys:
            key += "_"
        keys.add(key)
        made.drawings += 1
        made.chinese += bool(named.zh)
        made.licences[named.licence] += 1
        yield named, key, _png(result.image)


def _parts(items: Iterator[tuple[Named, str, bytes]]) -> Iterator[Iterator[tuple[Named, str, bytes]]]:
    """The items in runs of `PER_SHARD`, each to be read before the next."""
    for first in items:

        def part(first: tuple[Named, str, bytes] = first) -> Iterator[tuple[Named, str, bytes]]:
            yield first
            for _, item in zip(range(PER_SHARD - 1), items, strict=False):
                yield item

        yield part()


def _png(image: pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _columns(named: Named, packages: Mapping[str, str]) -> dict[str, Any]:
    said = {
        "source": named.source, "captions": [name for name in (named.en, named.zh) if name], "en": named.en,
        "zh": named.zh, "keywords": named.keywords, "keywords_zh": named.keywords_zh, "kind": named.kind,
        "licence": named.licence, "author": named.author, "package": next(iter(packages)),
        "regions": [each._asdict() for each in named.regions],
    }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _write_index(there: Sequence[Collection], out: Path) -> None:
    """All lines of all sets, unless that was done after the last of them was sealed."""
    index = out / "index.jsonl"
    last = max((_seal(each, out).stat().st_mtime_ns for each in there), default=0)
    if index.exists() and index.stat().st_mtime_ns >= last:
        return
    with atomic(index) as file:
        for each in there:
            file.write((out / f"{each.source}.jsonl").read_bytes())


def _write_attribution(there: Sequence[Collection], packages: Mapping[str, Package], out: Path) -> None:
    """Every set with its makers, licence and package, from what its drawings say; then every font."""
    lines = ["# Whom these drawings are owed to", "", "Who passes drawings on, or a model that shows them, passes",
             "this page on with them.", "", "| set | drawings | by | licence | package |",
             "|---|---:|---|---|---|"]  # fmt: skip
    for collection in there:
        made = _sealed(collection, read_json(_seal(collection, out)))
        rows = (row for _, row in json_lines(out / f"{made.source}.jsonl") if isinstance(row, dict))
        first, licences = next(rows, {}), ", ".join(sorted(made.licences))
        source = packages[collection.needs[0]].cited
        lines.append(_row(made.source, str(made.drawings), first.get("author", ""), licences, source))
    if letters := fonts.owed(out):
        lines += ["", "Signs in scenes are written in these fonts; the licence of each lies beside it in `fonts`.",
                  "", "| font | by | licence | package |", "|---|---|---|---|"]  # fmt: skip
    for name, authors in letters.items():
        package = packages[name]
        lines.append(_row(fonts.place(out, name).name, authors, package.licence, package.cited))
    text = ("\n".join(lines) + "\n").encode()
    place = out / "ATTRIBUTION.md"
    if not place.exists() or place.read_bytes() != text:
        with atomic(place) as file:
            file.write(text)


def _row(*cells: str) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"
