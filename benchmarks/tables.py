"""Tables that a script prints, and writes into a document between two marks that name it."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(text: str, document: Path, script: str) -> None:
    """In the place of what stands between the marks `<!-- table of SCRIPT -->`.

    Raises ValueError where the document has not two of them.
    """
    mark = f"<!-- table of {script} -->"
    parts = document.read_text("utf-8").split(mark)
    if len(parts) != 3:
        raise ValueError(
            f"{document} has {len(parts) - 1} marks {mark}; expected one before its table, one behind."
        )
    document.write_text(f"{mark}\n{text}\n{mark}".join([parts[0], parts[2]]), "utf-8")
