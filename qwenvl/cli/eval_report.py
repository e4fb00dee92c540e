"""`qwenvl eval report`: runs as a page."""

from pathlib import Path


def eval_report(
    runs: tuple[Path, ...],
    /,
    *,
    out: Path = Path("report.html"),
    title: str = "Score card",
    json: bool = False,
) -> None:
    """Write the score card of one or several runs as a self-contained page, and beside it as Markdown.

    Values with intervals, the paper's values and the differences, a radar chart, right and wrong answers with boxes
    drawn. Runs of several models stand side by side.

      qwenvl eval report runs/eval/tiny/toyworld --out report.html

    Args:
        runs: Folders that `qwenvl eval run` or `qwenvl eval score --out` wrote.
        out: The page; the table in Markdown lies beside it.
        title: Their heading.
        json: Print the cards as one JSON list too.
    """
    if not runs:
        raise ValueError(
            "no runs named; give one folder at least: `qwenvl eval report runs/eval/tiny/toyworld`"
        )
    from qwenvl.terminal import printable, printable_json

    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"--out is {printable(out)}; the report is a page: give a name that ends in .html, beside which a table in "
            "Markdown is written."
        )
    from qwenvl.evaluation import card, report

    read = [report.Run(*card.read(folder)) for folder in runs]
    report.write(read, out, title)
    if json:
        print(printable_json([own.to_json() for run in read for own in run.cards]))
    else:
        print(printable(f"{out} and {out.with_suffix('.md')}"))
