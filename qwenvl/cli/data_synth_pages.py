"""`qwenvl data synth pages`: drawn pages of text with exact quads (paper A.4, SynthDoG)."""

from pathlib import Path
from typing import Any, Literal

NO_CHINESE = (
    "no font here draws Chinese, so pages are in English (Debian: apt-get install fonts-wqy-microhei)"
)


def data_synth_pages(
    *,
    out: Path,
    count: int = 1000,
    start: int = 0,
    seed: int = 0,
    look: Literal["synthdog", "photograph"] = "synthdog",
    size: int | None = None,
    chinese: float = 0.5,
    fonts: Path | None = None,
    texts: Path | None = None,
    backgrounds: Path | None = None,
    format: Literal["tar", "folder"] = "tar",
    per_shard: int = 1000,
    length: int | None = None,
    queries: int = 256,
    tokenizer: str = "tiny",
    json: bool = False,
) -> None:
    """Draw pages of text with the four corners of every line, as training material for OCR.

    The same command writes the same bytes; a large run is split over processes by --start.

      qwenvl data synth pages --out runs/pages --backgrounds coco/train2017

      qwenvl data synth pages --out runs/short --length 1024 --queries 64

    Args:
        out: Folder for the tars or files, and the counts.
        count: How many.
        start: Number of the first page; a page is a function of (seed, number).
        seed: Which stream of pages.
        look: SynthDoG's parameters, or askew and bent as in a photograph.
        size: Pixels along the longer side; SynthDoG's own (about 720 to 2048) if left out.
        chinese: Share of made-up pages in Chinese.
        fonts: Folder of fonts instead of the system's.
        texts: Folder of .txt files (UTF-8) instead of made-up text.
        backgrounds: Folder of images instead of made-up surfaces.
        format: tar (WebDataset) or folder.
        per_shard: Pages per tar.
        length: Tokens of a training row: pages get larger letters until they fit it; any length if left out.
        queries: Visual tokens per image that are counted in.
        tokenizer: Checkpoint whose vocabulary counts the tokens: a folder, a hub id or `tiny`.
        json: Print the counts as JSON.
    """
    import sys
    from dataclasses import replace

    from qwenvl.cli import synthesis
    from qwenvl.data.synth.pages.fonts import Fonts
    from qwenvl.data.synth.pages.look import LOOKS
    from qwenvl.data.synth.pages.page import PageMaker, numbered_pages
    from qwenvl.data.synth.pages.scenery import Backgrounds
    from qwenvl.data.synth.pages.text import TextSource

    if count < 1 or start < 0 or seed < 0 or per_shard < 1:
        raise ValueError(
            f"--count {count} --start {start} --seed {seed} --per-shard {per_shard}; "
            "count and pages per shard must be at least 1, the others 0."
        )
    if texts and chinese != 0.5:
        raise ValueError(
            f"--chinese {chinese} is for made-up text, and --texts {texts} gives its own; drop one."
        )
    source = TextSource(texts, chinese=chinese)
    how = replace(LOOKS[look](), longest=size)
    behind = Backgrounds(backgrounds)
    ruler = synthesis.ruler(tokenizer, queries, length)
    found = Fonts.find(*([fonts] if fonts else []))
    if "zh" not in found.languages and chinese > 0 and texts is None:
        print(NO_CHINESE, file=sys.stderr)
    tokens = None if length is None else length - ruler.frame()
    maker = PageMaker(how, fonts=found, texts=source, backgrounds=behind, tokens=tokens, cost=ruler.line)
    pages = numbered_pages(maker, seed, range(start, start + count))
    kept: dict[str, Any] = {"format": format, "per_shard": per_shard, "first_shard": start // per_shard}
    try:
        synthesis.write(pages, out, ruler, total=count, json=json, **kept)
    finally:
        synthesis.tell_faults(source.faults)
