"""A page that shows what cleaning kept and dropped, rule by rule: the quickest way to see whether a rule is right."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as pillow

from qwenvl import html
from qwenvl.data.clean.duplicates import KEY
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.records import Pair
from qwenvl.data.tars import read_tar
from qwenvl.html import Html, element
from qwenvl.images import WHITE, open_image
from qwenvl.parsing import Damaged, json_lines, read_json

THUMBNAIL = 160
"""Pixels of the long side of an image on the page."""


class Exhibit(NamedTuple):
    """One sample on the page."""

    key: str
    text: str
    reason: str
    image: bytes | None
    source: str = ""
    before: str = ""
    """Key of the pair that came before, where that is the reason,"""
    image_before: bytes | None = None
    """and its image, where it was kept."""


def exhibits(out: Path, each: int) -> tuple[list[Exhibit], Mapping[str, list[Exhibit]]]:
    """Up to `each` kept samples and up to `each` of every rule, spread over the shards of a cleaning run."""
    shards = sorted(out.glob("*.tar"))
    share = max(1, each // max(1, len(shards)))
    shares = [(k + 1) * each // len(shards) - k * each // len(shards) for k in range(len(shards))]
    kept = [found for path, some in zip(shards, shares, strict=True) for found in _kept(path, some)]
    dropped: dict[str, list[Exhibit]] = {}
    wanted_before: dict[int, set[str]] = {}
    places: list[tuple[str, int, int]] = []
    for path in sorted((out / "aside").glob("*.jsonl")):
        wanted: dict[int, dict[str, Any]] = {}
        for _, entry in json_lines(path):
            if isinstance(entry, Damaged):
                raise ValueError(entry.reason)
            rule = entry["reason"] if entry["rule"] == "failed" else entry["rule"]
            chosen = dropped.setdefault(rule, [])
            already = sum(1 for other in wanted.values() if other["shown under"] == rule)
            if already < share + 1 and len(chosen) + already < each:
                wanted[entry["ordinal"]] = {**entry, "shown under": rule}
        images = _aside(path.with_suffix(".tar"), wanted)
        for ordinal, entry in wanted.items():
            text = str(entry.get("text", entry.get("detail", "")))
            is_image = entry["rule"] != "failed" or "image" in entry["reason"] or "bomb" in entry["reason"]
            image = images.get(ordinal) if is_image else None
            shown = Exhibit(entry["key"], text, entry["reason"], image, entry.get("source", ""))
            if entry.get("before"):
                number, key = entry["before"]
                shown = shown._replace(before=key)
                wanted_before.setdefault(number, set()).add(key)
                places.append((entry["shown under"], len(dropped[entry["shown under"]]), number))
            dropped[entry["shown under"]].append(shown)
    came_before = {
        number: _images_of(out / f"{number:05d}.tar", keys) for number, keys in wanted_before.items()
    }
    for rule, place, number in places:
        shown = dropped[rule][place]
        dropped[rule][place] = shown._replace(image_before=came_before[number].get(shown.before))
    return kept, dropped


def _images_of(path: Path, keys: Collection[str]) -> dict[str, bytes]:
    """Images of the pairs of a kept shard whose keys, as far as a signature holds them, are these."""
    found: dict[str, bytes] = {}
    for sample in read_samples(Source(path, "")) if path.exists() else ():
        cut = sample.key.encode()[:KEY].decode("utf-8", "ignore")
        if isinstance(sample, Pair) and sample.image is not None and cut in keys:
            found.setdefault(cut, sample.image)
    return found


def _kept(path: Path, count: int) -> Iterator[Exhibit]:
    for sample in read_samples(Source(path, "")):
        if count == 0:
            return
        if isinstance(sample, Pair):
            count -= 1
            yield Exhibit(sample.key, sample.text, "", sample.image, sample.source)


def _aside(path: Path, wanted: Mapping[int, object]) -> dict[int, bytes]:
    if not path.exists():
        return {}
    found = ((member.name.partition(".")[0], member.data) for member in read_tar(path))
    return {int(name): data for name, data in found if name.isdigit() and int(name) in wanted}


def thumbnail(image: bytes | pillow.Image, side: int = THUMBNAIL) -> Html:
    """An `<img>` with the image in it, or a note that it cannot be shown; decoding is bounded and never raises."""
    try:
        return html.image(open_image(image, ground=WHITE), side)
    except (ValueError, MemoryError):
        return element("div", "cannot be decoded", class_="bad")


def page(out: Path, each: int = 12) -> str:
    """The gallery of a folder that `qwenvl data clean` wrote, as one HTML file without scripts or links.

    Images of dropped pairs are there if the run kept them (`--aside all`). Raises ValueError where it is no such
    folder.
    """
    statistics = out / "statistics.json"
    if not statistics.exists():
        raise ValueError(f"{out} holds no statistics.json; give the folder that `qwenvl data clean` wrote.")
    entry = read_json(statistics)
    kept, dropped = exhibits(out, each)
    order = [*entry["total"]["failed"], *entry["rules"]]
    counts = {**entry["total"]["failed"], **entry["total"]["dropped"]}
    sections = [_section(f"kept ({entry['total']['kept']:,})", kept)]
    sections += [
        _section(f"{rule} ({counts.get(rule, 0):,})", dropped[rule]) for rule in order if dropped.get(rule)
    ]
    return html.page(f"Cleaning: {out.name}", _funnel(entry), *sections)


def _funnel(entry: Mapping[str, Any]) -> Html:
    total = entry["total"]
    left = read = max(1, total["read"])
    rows = [("read", 0, left)]
    for name in [*total["failed"], *entry["rules"]]:
        gone = {**total["failed"], **total["dropped"]}.get(name, 0)
        left -= gone
        rows.append((name, gone, left))
    cells = []
    for name, gone, after in rows:
        bar = element("span", class_="bar", style=f"width:{round(240 * after / read)}px")
        cells.append([name, f"-{gone:,}" if gone else "", f"{after:,}", f"{after / read:.1%}", bar])
    return html.table(["rule", "dropped", "left", "", ""], cells, ["", "", "", "", "text"])


def _section(title: str, shown: Iterable[Exhibit]) -> Html:
    figures = (
        html.figure(
            [thumbnail(image) for image in (each.image, each.image_before) if image],
            [
                each.text[:300],
                element("div", f"{each.reason}: {each.before}" if each.before else each.reason, class_="bad"),
                element("small", f"{each.source}: {each.key}" if each.source else each.key),
            ],
        )
        for each in shown
    )
    return html.join([element("h2", title), element("div", *figures, class_="grid")])
