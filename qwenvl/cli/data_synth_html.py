"""`qwenvl data synth html`: saved pages of the web with a quad for every line (paper A.4, HTML)."""

from pathlib import Path
from typing import Literal


def data_synth_html(
    sources: tuple[Path, ...],
    /,
    *,
    out: Path,
    count: int | None = None,
    smallest_side: int = 224,
    fewest_characters: int = 20,
    most_characters: int = 6000,
    seconds: float = 5.0,
    scripts: bool = False,
    format: Literal["tar", "folder"] = "tar",
    per_shard: int = 1000,
    length: int | None = None,
    queries: int = 256,
    tokenizer: str = "tiny",
    json: bool = False,
) -> None:
    """Show saved pages in a browser without a network, and keep those that the paper's rules keep.

    Lines that nobody sees (white on white, covered, without ink) are left out and counted.

      qwenvl data synth html saved/ --out runs/html --format folder

    Args:
        sources: Files, or folders that are searched for .html and .htm.
        out: Folder for the tars or files, and the counts.
        count: Stop after so many pages were read.
        smallest_side: Pages with a side of fewer pixels are dropped.
        fewest_characters: Pages with fewer characters are dropped, white space not counted.
        most_characters: Pages with more characters are dropped.
        seconds: Time for a page to load and be read.
        scripts: Run the programs in the pages; only for pages you trust.
        format: tar (WebDataset) or folder.
        per_shard: Pages per tar.
        length: Tokens of a training row: pages that are longer are dropped and counted.
        queries: Visual tokens per image that are counted in.
        tokenizer: Checkpoint whose vocabulary counts the tokens: a folder, a hub id or `tiny`.
        json: Print the counts as JSON.
    """
    from qwenvl.cli import synthesis
    from qwenvl.data.synth.pages.html import html_pages
    from qwenvl.data.synth.pages.rules import Limits

    if not seconds > 0:
        raise ValueError(f"--seconds {seconds}; a page needs more time than none.")
    limits = Limits(
        smallest_side=smallest_side, fewest_characters=fewest_characters, most_characters=most_characters
    )
    ruler = synthesis.ruler(tokenizer, queries, length)
    paths = synthesis.files(sources, "html", {".html", ".htm"})
    pages = html_pages(paths, limits=limits, seconds=seconds, scripts=scripts)
    synthesis.write(pages, out, ruler, format=format, per_shard=per_shard, total=count, json=json)
