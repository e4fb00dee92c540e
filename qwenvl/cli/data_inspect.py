"""`qwenvl data inspect`: a page to look at, of cleaned pairs or of formatted samples."""

import sys
from pathlib import Path
from typing import Literal


def data_inspect(
    src: Path,
    /,
    *,
    out: Path = Path("inspect.html"),
    count: int = 12,
    tokenizer: str | None = None,
    queries: int | None = None,
    images: Path | None = None,
    row_length: int = 2048,
    packing: Literal["isolated", "interleaved"] = "isolated",
) -> None:
    """Write one HTML file that shows what became of the data.

    A folder that `qwenvl data clean` wrote: the funnel, kept pairs, and dropped ones by rule with their reasons.

    Whatever training reads, such as JSON lines of records or a mixture, tars of pages or fine-tuning JSON: each sample
    with its image and boxes, its ids, what is learned in blue, and how the samples pack into rows.

      qwenvl data inspect clean/ --out gallery.html

      qwenvl data inspect stage2.jsonl --tokenizer tiny --count 40

    Exit status 2 where none of the samples shown can be used; the page says why.

    Args:
        src: The folder or file.
        out: The page.
        count: Samples per rule, or samples in all.
        tokenizer: Checkpoint whose tokenizer is used: a folder, a hub id or `tiny`; without it every byte is a token.
        queries: Visual tokens per image; by default those of the checkpoint, without one 256 as in the paper.
        images: Folder below which paths of images may lead, beside that of the data.
        row_length: Tokens of a packed row.
        packing: Whether documents of a row see each other (interleaved) or not.
    """
    from qwenvl.data import sample_viewer
    from qwenvl.data.clean import gallery
    from qwenvl.files import atomic
    from qwenvl.terminal import printable
    from qwenvl.tokenizer import Tokenizer

    for option, value in (("count", count), ("queries", queries), ("row-length", row_length)):
        if value is not None and value < 1:
            raise ValueError(f"--{option} {value}; expected at least 1.")
    blind = False
    if (src / "cleaning.json").is_file():
        if tokenizer or queries or images or row_length != 2048 or packing != "isolated":
            raise ValueError(
                f"{src} is a cleaning run, of which pairs are shown and no ids; give --count alone."
            )
        text = gallery.page(src, count)
    else:
        if tokenizer is None:
            words, own = Tokenizer({bytes([value]): value for value in range(256)}), 256
        else:
            from qwenvl.checkpoint.folder import read_config, resolve, vocabulary

            place = resolve(tokenizer)
            words, own = vocabulary(place), read_config(place).adapter.queries
        text, shown, usable, total = sample_viewer.page(
            src,
            words,
            queries=queries or own,
            row_length=row_length,
            packing=packing,
            count=count,
            root=images,
        )
        blind = not usable
        if shown < total:
            print(f"{shown:,} of {total:,} samples; --count shows more", file=sys.stderr)
    with atomic(out) as file:
        file.write(text.encode("utf-8", "replace"))
    if blind:
        raise ValueError(f"none of the {shown:,} samples shown can be used; {out} says why of each.")
    print(printable(out))
