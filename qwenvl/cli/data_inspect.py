"""`qwenvl data inspect`: a page to look at, of cleaned pairs or of formatted samples."""

from pathlib import Path
from typing import Literal


def data_inspect(
    src: Path,
    /,
    *,
    out: Path = Path("inspect.html"),
    count: int = 12,
    tokenizer: str | None = None,
    queries: int = 256,
    row_length: int = 2048,
    packing: Literal["isolated", "interleaved"] = "isolated",
) -> None:
    """Write one HTML file that shows what became of the data.

    A folder that `qwenvl data clean` wrote: the funnel, kept pairs, and dropped ones by rule with their reasons.

    JSON lines of records or a mixture: each sample with its picture and boxes, its ids, what is learned in blue, and
    how the samples pack into rows.

      qwenvl data inspect clean/ --out gallery.html

      qwenvl data inspect stage2.jsonl --tokenizer tiny --queries 64

    Args:
        src: The folder or file.
        out: The page.
        count: Samples per rule, or samples in all.
        tokenizer: Checkpoint whose tokenizer is used: a folder, a hub id or `tiny`; without it every byte is a token.
        queries: Visual tokens per picture.
        row_length: Tokens of a packed row.
        packing: Whether documents of a row see each other (interleaved) or not.
    """
    from qwenvl.data import sample_viewer
    from qwenvl.data.clean import gallery
    from qwenvl.files import atomic
    from qwenvl.tokenizer import Tokenizer

    if src.is_dir():
        text = gallery.page(src, count)
    elif not src.is_file():
        raise ValueError(f"there is no {src}; give the folder of a cleaning run, or JSON lines of records.")
    else:
        if tokenizer is None:
            words = Tokenizer({bytes([value]): value for value in range(256)})
        else:
            from qwenvl.checkpoint.folder import resolve

            words = Tokenizer.load(resolve(tokenizer))
        samples = list(sample_viewer.read_mixture(src, count))
        text = sample_viewer.page(samples, words, queries, row_length, packing)
    with atomic(out) as file:
        file.write(text.encode("utf-8", "replace"))
    print(out)
