"""Drawings as training material: shards that cleaning reads, an index of all of them, and whom they are owed to.

    OUT/packages/             archives as their registries gave them
    OUT/SOURCE-00000.tar      key.png, with transparency; key.json: captions (en, zh), keywords, kind, licence, author
    OUT/index.jsonl           a line for each drawing: all of that and the shard it lies in
    OUT/ATTRIBUTION.md        every set with its makers, licence and package

A set that is there is not made again, unless its packages or the size of the images have changed.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as pillow

from qwenvl.data.drawings import rendering
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
    side: int = SIDE,
    processes: int = 2,
    report: Callable[[Made], None] = lambda _: None,
) -> list[Made]:
    """Every set whose packages are at hand, each on its own; then index and attribution over all of them."""
    results = []
    for collection in collections:
        missing = tuple(name for name in collection.needs if name not in archives)
        made = Made(collection.source, missing=missing)
        if not missing:
            made = _made(collection, packages, archives, out, side, processes)
        report(made)
        results.append(made)
    there = [made for made in results if not made.missing]
    if any(made.news for made in there) or not (out / "index.jsonl").exists():
        _write_index(there, out)
        _write_attribution(there, collections, packages, out)
    return results


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
    seal = out / f"{collection.source}.json"
    if seal.exists() and (known := read_json(seal)).get("made_of") == made_of:
        return Made(collection.source, known["drawings"], known["chinese"], Counter(known["refused"]),
                    Counter(known["licences"]))  # fmt: skip
    made = Made(collection.source, news=True)
    seal.unlink(missing_ok=True)
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
    }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _write_index(there: Sequence[Made], out: Path) -> None:
    with atomic(out / "index.jsonl") as file:
        for made in there:
            file.write((out / f"{made.source}.jsonl").read_bytes())


def _write_attribution(
    there: Sequence[Made], collections: Sequence[Collection], packages: Mapping[str, Package], out: Path
) -> None:
    """Every set with its makers, licence and package, from what its drawings say."""
    needs = {collection.source: collection.needs[0] for collection in collections}
    lines = ["# Whom these drawings are owed to", "", "Who passes drawings on, or a model that shows them, passes",
             "this page on with them.", "", "| set | drawings | by | licence | package |",
             "|---|---:|---|---|---|"]  # fmt: skip
    for made in there:
        first = next(
            (row for _, row in json_lines(out / f"{made.source}.jsonl") if isinstance(row, dict)), {}
        )
        package = packages[needs[made.source]]
        cells = [made.source, str(made.drawings), first.get("author", ""), ", ".join(sorted(made.licences)),
                 f"{package.name} {package.version} ({package.registry})"]  # fmt: skip
        lines.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
    with atomic(out / "ATTRIBUTION.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
