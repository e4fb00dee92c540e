"""The score card of a model that this repository trains: a page and a table, by `qwenvl eval run` and `eval report`.

    python benchmarks/score_card.py tiny [--questions 200] [--out docs/TINY_CARD.html]
    python benchmarks/score_card.py drawings --model runs/drawings/4-finetuning/model --data drawings --out card.html

Every kind of benchmark that belongs to the model, through the machine of the published ones; `tiny` is the shipped
model unless --model names another. A run that was cut short goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CARDS = {
    "tiny": (
        "Score card of the shipped model in the toy world",
        (("toyworld-caption",), ("toyworld-vqa",), ("toyworld-vqa", "--shots", "4"), ("toyworld-reading",),
         ("toyworld-refer",), ("toyworld-choice",), ("toyworld-two-images",)),
    ),
    "drawings": (
        "Score card of a model of recipes/drawings, on drawings and scenes that it was not trained on",
        (("drawings",), ("drawings-zh",), ("drawings-200",), ("drawings-747",), ("drawings-grounding",),
         ("drawings-counting",), ("drawings-reading",)),
    ),
}  # fmt: skip
"""Recipe -> heading, and benchmark with further options of each run."""


def write(
    recipe: str, model: str, out: Path, *, data: Path | None = None, questions: int | None = None
) -> list[Path]:
    """Run what has no answers yet and write the page, and the table beside it; returns the folders of the runs."""
    title, cards = CARDS[recipe]
    qwenvl = [sys.executable, "-m", "qwenvl", "eval"]
    folders = []
    for words in cards:
        folders.append(ROOT / "runs" / f"{recipe}-card" / "".join(words))
        run = ["run", model, *words, "--out", str(folders[-1]), "--device", "cpu"]
        run += ["--data", str(data.resolve())] if data is not None else []
        run += ["--limit", str(questions)] if questions is not None else []
        subprocess.run([*qwenvl, *run], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    report = ["report", *map(str, folders), "--out", str(out.resolve()), "--title", title]
    subprocess.run([*qwenvl, *report], check=True, cwd=ROOT)
    return folders


def main() -> None:
    """One card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=CARDS)
    parser.add_argument("--questions", type=int, help="of each benchmark; 200 of tiny's, else all")
    parser.add_argument("--model", help="a folder, or the name of a shipped model")
    parser.add_argument("--data", type=Path, help="folder of `qwenvl data fetch drawings`")
    parser.add_argument("--out", type=Path, help="the page")
    options = parser.parse_args()
    if options.recipe == "tiny":
        out, questions = options.out or ROOT / "docs/TINY_CARD.html", options.questions or 200
        write("tiny", options.model or "tiny", out, questions=questions)
        return
    if not (options.data and options.model and options.out):
        parser.error("a card of drawings needs --data, --model and --out")
    write("drawings", options.model, options.out, data=options.data, questions=options.questions)


if __name__ == "__main__":
    main()
