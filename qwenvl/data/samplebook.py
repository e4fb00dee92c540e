"""A page that shows formatted samples as the model will learn them: ids, what is learned, boxes, the packed rows."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from qwenvl.data.clean.gallery import html, thumbnail
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.packing import DOCUMENT, pack
from qwenvl.data.records import Record, from_json, kind_of, pictures
from qwenvl.data.shards import read_lines
from qwenvl.data.tasks import Format, example_of, formats_of
from qwenvl.images import draw_boxes, open_image
from qwenvl.markup import Box, Quad, parse
from qwenvl.tokenizer import Tokenizer

STYLE = """<style>
.ids{font:12px/1.7 ui-monospace,monospace;background:#fff;border:1px solid #e2e5e9;border-radius:6px;padding:8px}
.ids{overflow-wrap:anywhere}.ids span{border-radius:3px;padding:1px 0}
.yes{background:#d3e5ff;color:#0b3d91}.no{color:#5b6168}.img{background:#fde9c8;color:#7a4a00}
.sample{display:flex;gap:14px;margin:10px 0}.sample>div:last-child{flex:1;min-width:0}
.row{display:flex;height:26px;margin:3px 0;background:#eceff2;border-radius:3px;overflow:hidden}
.row div{border-right:2px solid #fff;font-size:11px;color:#fff;text-align:center;line-height:26px;overflow:hidden}
</style>"""

COLOURS = ("#4363d8", "#3c8d40", "#b8562b", "#8e3ba8", "#17868b", "#a8324a")

LONGEST = 600
"""Tokens of one sample that are shown."""


def read_mixture(path: Path, limit: int) -> Iterator[tuple[Format, Record]]:
    """Records of JSON lines, plain or as `qwenvl data mix` writes them, with the format they are told in."""
    import json

    for _, line in read_lines(path):
        if limit == 0:
            return
        text = line.decode("utf-8", "replace")
        if text.startswith('{"format"'):
            told = json.loads(text)
            yield told["format"], from_json(json.dumps(told["record"]))
        else:
            record = from_json(text)
            yield formats_of(record)[0], record
        limit -= 1


def page(
    samples: Sequence[tuple[Format, Record]],
    tokenizer: Tokenizer,
    queries: int,
    row_length: int,
    packing: str,
) -> str:
    """The book of samples as one HTML file: each with its picture, ids and learned part, then how they pack."""
    examples = [example_of(record, tokenizer, queries, format) for format, record in samples]
    parts = [STYLE, "<p><span class=ids><span class=yes>learned</span> <span class=no>not learned</span> "
             "<span class=img>picture</span></span></p>"]  # fmt: skip
    for number, ((format, record), made) in enumerate(zip(samples, examples, strict=True)):
        parts.append(
            f"<h2>{number}: {escape(format)} ({escape(kind_of(record))}, {escape(record.source or 'no source')})</h2>"
        )
        parts.append(
            f"<div class=sample><div>{_picture(record, made, tokenizer)}</div><div>{_ids(made, tokenizer)}</div></div>"
        )
    fitting = [made for made in examples if len(made) <= row_length]
    if fitting:
        parts.append(
            f"<h2>packed into rows of {row_length} ({escape(packing)})</h2>{_rows(fitting, row_length, packing)}"
        )
    return html("Formatted samples", "".join(parts))


def _picture(record: Record, made: Example, tokenizer: Tokenizer) -> str:
    """The first picture with all boxes of the sample drawn on it."""
    found = pictures(record)
    if not found:
        return ""
    marks = [part for part in parse(tokenizer.decode(list(made.ids))) if isinstance(part, Box | Quad)]
    try:
        shown = open_image(found[0].source)  # type: ignore[arg-type]
    except ValueError as error:
        return f"<div class=why>{escape(str(error)[:160])}</div>"
    return thumbnail(draw_boxes(shown, marks) if marks else shown, 320)


def _ids(made: Example, tokenizer: Tokenizer) -> str:
    """Runs of tokens of one kind, text above ids; a label stands one place before the token that it teaches."""
    learned = [False, *(label != IGNORE for label in made.labels[:-1])]
    runs: list[tuple[str, list[int]]] = []
    for token, taught in zip(made.ids[:LONGEST], learned, strict=False):
        kind = "img" if token == tokenizer.imgpad else "yes" if taught else "no"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(token)
    spans = []
    for kind, ids in runs:
        text = f"[{len(ids)} x imgpad]" if kind == "img" else tokenizer.decode(ids)
        numbers = f"{ids[0]}.." if kind == "img" else " ".join(map(str, ids))
        spans.append(f"<span class={kind} title='{numbers}'>{escape(text)}</span>")
    count = sum(learned)
    first = " ".join(map(str, made.ids[:40]))
    return (
        f"<div class=ids>{''.join(spans)}</div><div class=key>{len(made)} tokens, {count} learned; ids {first}"
        f"{' ...' if len(made) > 40 else ''}</div>"
    )


def _rows(examples: Sequence[Example], row_length: int, packing: str) -> str:
    rows = pack(examples, row_length, packing=packing, pad_id=0)
    drawn = []
    for segments in rows.segments:
        documents = [int(value) for value in segments // DOCUMENT]
        bars = ""
        for number, count in _counted(documents).items():
            look = f"width:{100 * count / row_length:.3f}%;background:{COLOURS[number % len(COLOURS)]}"
            bars += f"<div style='{look}'>{number}</div>"
        drawn.append(f"<div class=row>{bars}</div>")
    return (
        f"{''.join(drawn)}<div class=key>{len(rows.ids)} rows, {rows.fill:.0%} filled up to the longest</div>"
    )


def _counted(documents: Sequence[int]) -> Mapping[int, int]:
    counts: dict[int, int] = {}
    for number in documents:
        if number:
            counts[number] = counts.get(number, 0) + 1
    return counts
