"""The score card as a page: one self-contained HTML file, and the same table in Markdown.

Value with its 95 % interval, the paper's value, the difference, questions answered, seconds, parse failures; a radar
picture; right and wrong answers with their pictures and boxes. Several runs stand side by side.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image as pillow

from qwenvl.data.toy.paint import render
from qwenvl.evaluation.benchmarks import TOY_TABLE
from qwenvl.evaluation.card import EMBEDDED, TOY, Card, Record
from qwenvl.evaluation.predictions import write_whole
from qwenvl.evaluation.radar import radar
from qwenvl.evaluation.scoring import CIDER
from qwenvl.evaluation.toyworld import scene_named
from qwenvl.images import Source, draw_boxes, open_image
from qwenvl.markup import Box, Quad, parse

SHOWN = 8
"""Right and wrong answers of each benchmark in the gallery."""
THUMBNAIL = 300
"""Pixels of the longer side of a picture in the gallery."""

COLUMNS = (
    "Benchmark", "Model", "Score", "95 % interval", "Paper", "Difference", "Best rival", "n", "Unreadable", "Seconds"
)  # fmt: skip

TITLE = "Score card"
INTERVALS = "Intervals are 95 % (bootstrap over questions; Wilson in the four figures of toyworld)."

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a9d4a; --bad: #d1383d }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } .soft { opacity: .7 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
th { font-weight: 600; vertical-align: bottom } td.value { font-weight: 700 }
td { white-space: nowrap } td.rival, td:first-child { white-space: normal }
.good { color: var(--good) } .bad { color: var(--bad) }
.wide { overflow-x: auto } .radar { display: block; max-width: 760px; margin: 1rem auto; font-size: 13px }
.radar text { fill: currentColor } .ring, .ray { fill: none; stroke: var(--line) }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-top: 4px solid var(--bad); border-radius: 6px }
figure.right { border-top-color: var(--good) } figure img { width: 100%; display: block; background: var(--soft) }
figcaption { padding: .5rem .7rem; font-size: 13px; overflow-wrap: anywhere } figcaption b { font-weight: 600 }
"""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    cards: Sequence[Card]
    records: Sequence[Record]


def markdown(cards: Sequence[Card], title: str = TITLE) -> str:
    """The table of all cards, one line per benchmark and model, and the parts of those that have some."""
    cards = _sorted(cards)
    header, rows = _filled(cards)
    lines = [f"# {title}", "", f"{INTERVALS} Of each benchmark the questions that its column n counts.", ""]
    lines += [_line(header), "|---|---|" + "--:|" * (len(header) - 2), *map(_line, rows)]
    for card in cards:
        if card.score.groups:
            parts = [f"{name or 'other'} {value:.1f} ({n})" for name, (value, n) in card.score.groups.items()]
            lines += ["", f"{card.title}, {card.model}, by part: {', '.join(parts)}."]
        if card.score.notes:
            notes = [f"{name} {value:.1f}" for name, value in card.score.notes.items()]
            lines += ["", f"{card.title}, {card.model}, also: {', '.join(notes)}."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _filled(cards: Sequence[Card]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, without the columns that are empty for every card."""
    table = [_cells(card) for card in cards]
    kept = [k for k in range(len(COLUMNS)) if any(cells[k] for cells in table)]
    return [COLUMNS[k] for k in kept], [[cells[k] for k in kept] for cells in table]


def html(runs: Sequence[Run], title: str = TITLE) -> str:
    """The whole page. Pictures that are gone are left out, and said so."""
    cards = _sorted([card for run in runs for card in run.cards])
    if not cards:
        raise ValueError("there is nothing to report; give folders that `qwenvl eval run` wrote.")
    models = list(dict.fromkeys(card.model for card in cards))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(", ".join(models))}. {INTERVALS} Paper: arXiv 2308.12966.</p>',
        _table(cards),
        _radar(cards, models),
        *(_parts(card) for card in cards if len(card.score.groups) > 1),
    ]
    for run in runs:
        if run.cards and run.records:
            names = ", ".join(dict.fromkeys(card.title for card in run.cards))
            parts.append(f"<h2>{escape(names)}: answers of {escape(run.cards[0].model)}</h2>")
            parts.append(_gallery(run.records, ranked=run.cards[0].metric == CIDER.name))
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


# === Tables ===


def _sorted(cards: Sequence[Card]) -> list[Card]:
    """Models of one benchmark beside each other, benchmarks in the order of first appearance."""
    order = list(dict.fromkeys((card.benchmark, card.shots) for card in cards))
    return sorted(cards, key=lambda card: order.index((card.benchmark, card.shots)))


def _cells(card: Card) -> list[str]:
    score, rival = card.score, card.published.best
    return [
        card.title,
        card.model,
        f"{score.value:.2f}",
        f"{score.low:.2f} .. {score.high:.2f}",
        "" if card.paper is None else f"{card.paper:g}",
        "" if card.difference is None else f"{card.difference:+.2f}",
        "" if rival is None else f"{rival:g} ({card.published.best_name})",
        f"{score.n}" if score.complete else f"{score.n} of {score.expected}",
        str(score.failures),
        f"{card.seconds:.0f}",
    ]


def _table(cards: Sequence[Card]) -> str:
    header, table = _filled(cards)
    rows = []
    for card, cells in zip(cards, table, strict=True):
        marks = {"Score": "value", "Best rival": "rival", "n": "" if card.score.complete else "bad"}
        if card.difference is not None:
            marks["Difference"] = "good" if card.difference >= 0 else "bad"
        named = zip(header, cells, strict=True)
        columns = (f'<td class="{marks.get(name, "")}">{escape(cell)}</td>' for name, cell in named)
        rows.append(f"<tr>{''.join(columns)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in header)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _radar(cards: Sequence[Card], models: Sequence[str]) -> str:
    rays = list(dict.fromkeys(card.title for card in cards))
    value = {(card.title, card.model): card.score.value for card in cards}
    series: dict[str, list[float | None]] = {
        model: [value.get((ray, model)) for ray in rays] for model in models
    }
    first = {card.title: card for card in reversed(cards)}
    for name, find in (("the paper", lambda c: c.paper), ("best rival", lambda c: c.published.best)):
        known = [find(first[ray]) for ray in rays]
        if any(known):
            shared = {c.published.best_name for c in cards}
            series[shared.pop() if name == "best rival" and len(shared) == 1 else name] = known
    return radar(rays, series, [_top(first[ray]) for ray in rays])


def _top(card: Card) -> float | None:
    """Where a ray of the toy world ends, which has no rivals to end it: at the best that can be."""
    if card.table != TOY_TABLE:
        return None
    return 1000.0 if card.metric == CIDER.name else 100.0


def _parts(card: Card) -> str:
    rows = "".join(
        f"<tr><td>{escape(name or 'other')}</td><td></td><td class='value'>{value:.2f}</td><td>{n}</td></tr>"
        for name, (value, n) in card.score.groups.items()
    )
    head = "<tr><th>Part</th><th></th><th>Score</th><th>n</th></tr>"
    summary = f"<summary>{escape(card.title)}, {escape(card.model)}: parts</summary>"
    return f"<details>{summary}<table>{head}{rows}</table></details>"


# === Galleries ===


def _gallery(records: Sequence[Record], ranked: bool) -> str:
    """Right and wrong answers; of captions, which are neither, those of the lowest and the highest score."""
    if ranked:
        ordered = sorted(records, key=lambda record: float(record["score"]))
        half = min(SHOWN, (len(ordered) + 1) // 2)
        ends = {"Lowest scores": ordered[:half], "Highest scores": ordered[: -half - 1 : -1]}
        return "".join(_figures(name, chosen) for name, chosen in ends.items())
    parts = []
    for name, wanted in (("Wrong", False), ("Right", True)):
        chosen = _evenly_chosen([record for record in records if record.get("right") is wanted])
        if chosen:
            total = sum(record.get("right") is wanted for record in records)
            parts.append(_figures(f"{name}: {len(chosen)} of {total}", chosen))
    return "".join(parts)


def _figures(heading: str, chosen: Sequence[Record]) -> str:
    return f'<h3>{heading}</h3><div class="gallery">{"".join(map(_figure, chosen))}</div>'


def _evenly_chosen(records: Sequence[Record]) -> list[Record]:
    """Group after group, so that every kind is seen, and each a little further on, so that pictures differ."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.get("group", ""), []).append(record)
    turned = [own[k % len(own) :] + own[: k % len(own)] for k, own in enumerate(groups.values())]
    return [own[k] for k in range(SHOWN) for own in turned if k < len(own)][: max(SHOWN, len(groups))]


def _figure(record: Record) -> str:
    said = record["raw"] or "(nothing)"
    mark, kind = ("right", "Right") if record["right"] else ("wrong", "Wrong")
    images = "".join(
        _image(name, record, last=k == len(record["images"]) - 1) for k, name in enumerate(record["images"])
    )
    group = f" ({escape(record['group'])})" if record.get("group") else ""
    asked = record["prompt"].replace("<img></img>", "[picture] ")
    return (
        f'<figure class="{mark}">{images}<figcaption><b>{kind}</b>{group}, {float(record["score"]):.3g}<br>'
        f"{escape(asked[-300:])}<br><b>{escape(said[:400])}</b>"
        f"<br><span class='soft'>truth: {escape(record['truth'][:300])}</span></figcaption></figure>"
    )


def _image(name: str, record: Record, last: bool) -> str:
    try:
        image = open_image(_source(name))
    except ValueError:
        return "<p class='soft'>(picture not found)</p>"
    boxes: list[Box | Quad] = []
    if last:
        boxes = [part for part in parse(record["raw"]) if isinstance(part, Box | Quad)]
        boxes += _truth(record)
    shown = sized(image, THUMBNAIL)
    return f'<img alt="" src="{inline(draw_boxes(shown, boxes) if boxes else shown)}">'


def _source(name: str) -> Source:
    """What a picture of scored.jsonl stands for."""
    if name.startswith(TOY):
        return render(scene_named(name.removeprefix(TOY)), THUMBNAIL)
    return base64.b64decode(name.removeprefix(EMBEDDED)) if name.startswith(EMBEDDED) else name


def _truth(record: Record) -> list[Box | Quad]:
    """The true box, where the answer was wrong."""
    if record["right"]:
        return []
    if record.get("box") and record.get("size"):
        (left, top, right, bottom), (width, height) = record["box"], record["size"]
        return [Box.from_pixels(left, top, right, bottom, width, height, label="truth")]
    wanted = [part for part in parse(record["truth"]) if isinstance(part, Box)]
    return [Box(box.x1, box.y1, box.x2, box.y2, label="truth") for box in wanted]


def sized(image: pillow.Image, side: int) -> pillow.Image:
    """The picture with `side` pixels along its longer side."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, pillow.Resampling.LANCZOS).convert("RGB")


def inline(image: pillow.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(runs: Sequence[Run], out: Path, title: str = TITLE) -> None:
    """`out` as HTML and its neighbour `.md` as Markdown. Raises ValueError if nothing can be written there."""
    pages: Mapping[Path, str] = {
        out: html(runs, title),
        out.with_suffix(".md"): markdown([card for run in runs for card in run.cards], title),
    }
    for path, text in pages.items():
        try:
            write_whole(path, text)
        except OSError as error:
            raise ValueError(
                f"cannot write {path} ({error.strerror}); give --out in a folder that you may write."
            ) from None
