"""A page that shows what cleaning kept and dropped, rule by rule: the quickest way to see whether a rule is right."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as pillow

from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.records import Pair
from qwenvl.data.tars import read_tar
from qwenvl.parsing import Damaged, json_lines

THUMBNAIL = 160
"""Pixels of the long side of a picture on the page."""

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1180px;padding:0 16px;color:#1c2024;
background:#fafafa}
h1{font-size:22px}h2{font-size:16px;margin:28px 0 8px;border-bottom:1px solid #d8dce0;padding-bottom:4px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(172px,1fr));gap:12px}
figure{margin:0;background:#fff;border:1px solid #e2e5e9;border-radius:6px;padding:6px;overflow:hidden}
figure img{max-width:100%;max-height:160px;display:block;margin:0 auto 6px;background:#eee}
figcaption{font-size:12px;overflow-wrap:anywhere}.why{color:#b42318}.key{color:#7a828a;font-size:11px}
table{border-collapse:collapse}td,th{padding:2px 12px;text-align:right}td:first-child,th:first-child{text-align:left}
.bar{background:#4d7cc3;height:9px;display:inline-block;border-radius:2px}
"""


class Exhibit(NamedTuple):
    """One sample on the page."""

    key: str
    text: str
    reason: str
    image: bytes | None


def exhibits(out: Path, each: int) -> tuple[list[Exhibit], Mapping[str, list[Exhibit]]]:
    """Up to `each` kept samples and up to `each` of every rule, spread over the shards of a cleaning run."""
    shards = sorted(out.glob("*.tar"))
    share = max(1, each // max(1, len(shards)))
    shares = [(k + 1) * each // len(shards) - k * each // len(shards) for k in range(len(shards))]
    kept = [found for path, some in zip(shards, shares, strict=True) for found in _kept(path, some)]
    dropped: dict[str, list[Exhibit]] = {}
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
            is_image = entry["rule"] != "failed" or "picture" in entry["reason"] or "bomb" in entry["reason"]
            image = images.get(ordinal) if is_image else None
            shown = Exhibit(entry["key"], text, entry["reason"], image)
            dropped[entry["shown under"]].append(shown)
    return kept, dropped


def _kept(path: Path, count: int) -> Iterator[Exhibit]:
    for sample in read_samples(Source(path, "")):
        if count == 0:
            return
        if isinstance(sample, Pair):
            count -= 1
            yield Exhibit(sample.key, sample.text, "", sample.image)


def _aside(path: Path, wanted: Mapping[int, object]) -> dict[int, bytes]:
    if not path.exists():
        return {}
    found = ((member.name.partition(".")[0], member.data) for member in read_tar(path))
    return {int(name): data for name, data in found if name.isdigit() and int(name) in wanted}


def thumbnail(image: bytes | pillow.Image, side: int = THUMBNAIL) -> str:
    """An `<img>` with the picture in it, or a note that it cannot be shown; decoding is bounded and never raises."""
    try:
        shown = pillow.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        if shown.width * shown.height > 50_000_000:
            return "<div class=why>too large to show</div>"
        small = shown.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
    except Exception:
        return "<div class=why>cannot be decoded</div>"
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def page(out: Path, each: int = 12) -> str:
    """The gallery of a folder that `qwenvl data clean` wrote, as one HTML file without scripts or links.

    Pictures of dropped pairs are there if the run kept them (`--aside all`). Raises ValueError where it is no such
    folder.
    """
    statistics = out / "statistics.json"
    if not statistics.exists():
        raise ValueError(f"{out} holds no statistics.json; give the folder that `qwenvl data clean` wrote.")
    entry = json.loads(statistics.read_bytes())
    kept, dropped = exhibits(out, each)
    order = [*entry["total"]["failed"], *entry["rules"]]
    counts = {**entry["total"]["failed"], **entry["total"]["dropped"]}
    sections = [_section(f"kept ({entry['total']['kept']:,})", kept)]
    sections += [
        _section(f"{rule} ({counts.get(rule, 0):,})", dropped[rule]) for rule in order if dropped.get(rule)
    ]
    return html(f"Cleaning: {out.name}", _funnel(entry) + "".join(sections))


def html(title: str, body: str) -> str:
    """A whole page around a body."""
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>\n"


def _funnel(entry: Mapping[str, Any]) -> str:
    total = entry["total"]
    left = read = max(1, total["read"])
    rows = [("read", 0, left)]
    for name in [*total["failed"], *entry["rules"]]:
        gone = {**total["failed"], **total["dropped"]}.get(name, 0)
        left -= gone
        rows.append((name, gone, left))
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{f'-{gone:,}' if gone else ''}</td><td>{after:,}</td>"
        f"<td>{after / read:.1%}</td><td style='text-align:left'>"
        f"<span class=bar style='width:{round(240 * after / read)}px'></span></td></tr>"
        for name, gone, after in rows
    )
    return f"<table><tr><th>rule</th><th>dropped</th><th>left</th><th></th><th></th></tr>{cells}</table>"


def _section(title: str, shown: Iterable[Exhibit]) -> str:
    figures = "".join(
        f"<figure>{thumbnail(each.image) if each.image else ''}<figcaption>{escape(each.text[:300])}"
        f"<div class=why>{escape(each.reason)}</div><div class=key>{escape(each.key)}</div></figcaption></figure>"
        for each in shown
    )
    return f"<h2>{escape(title)}</h2><div class=grid>{figures}</div>"
