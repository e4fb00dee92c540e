"""`qwenvl data synth pdf`: pages of PDF files with a quad for every line (paper A.4, PDF)."""

from pathlib import Path
from typing import Literal


def data_synth_pdf(
    sources: tuple[Path, ...],
    /,
    *,
    out: Path,
    count: int | None = None,
    size: int = 1600,
    smallest_side: int = 224,
    fewest_characters: int = 20,
    most_characters: int = 6000,
    seconds: float = 60.0,
    memory: int = 2048,
    format: Literal["tar", "folder"] = "tar",
    per_shard: int = 1000,
    length: int | None = None,
    queries: int = 256,
    tokenizer: str = "tiny",
    json: bool = False,
) -> None:
    """Take pages and their lines out of PDF files, and keep those that the paper's rules keep.

    Files are read in a process of their own: one that crashes, hangs or eats memory costs that file alone. Lines that
    nobody sees (white on white, covered, without ink) are left out and counted.

      qwenvl data synth pdf papers/ --out runs/pdf

    Args:
        sources: Files, or folders that are searched for .pdf.
        out: Folder for the tars or files, and the counts.
        count: Stop after so many pages were read.
        size: Pixels along the longer side of a page at most.
        smallest_side: Pages with a side of fewer pixels are dropped.
        fewest_characters: Pages with fewer characters are dropped, white space not counted.
        most_characters: Pages with more characters are dropped.
        seconds: Time for one page; a file whose page takes longer is given up there.
        memory: Megabytes that the reader of a file may take.
        format: tar (WebDataset) or folder.
        per_shard: Pages per tar.
        length: Tokens of a training row: pages that are longer are dropped and counted.
        queries: Visual tokens per image that are counted in.
        tokenizer: Checkpoint whose vocabulary counts the tokens: a folder, a hub id or `tiny`.
        json: Print the counts as JSON.
    """
    from qwenvl.cli import synthesis
    from qwenvl.data.synth.pages.pdf_files import pdf_files
    from qwenvl.data.synth.pages.rules import Limits

    limits = Limits(
        smallest_side=smallest_side, fewest_characters=fewest_characters, most_characters=most_characters
    )
    ruler = synthesis.ruler(tokenizer, queries, length)
    paths = synthesis.files(sources, "pdf", {".pdf"})
    if size < 1:
        raise ValueError(f"--size {size}; a page has a pixel at least.")
    pages = pdf_files(paths, longest=size, limits=limits, seconds=seconds, memory=memory)
    synthesis.write(pages, out, ruler, format=format, per_shard=per_shard, total=count, json=json)
