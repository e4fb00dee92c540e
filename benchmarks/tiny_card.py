"""The shipped model's score card: docs/TINY_CARD.md and docs/TINY_CARD.html from `qwenvl eval run` and `eval report`.

    python benchmarks/tiny_card.py [--questions 200] [--model tiny] [--out docs/TINY_CARD.html]

Every kind of benchmark in small, through the machine of the published ones: captions, questions, reading, phrases,
options, two images, and questions after solved examples. A run that was cut short goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARDS = (
    ("toyworld-caption",),
    ("toyworld-vqa",),
    ("toyworld-vqa", "--shots", "4"),
    ("toyworld-reading",),
    ("toyworld-refer",),
    ("toyworld-choice",),
    ("toyworld-two-images",),
)
"""Benchmark and further options of each run."""


def main() -> None:
    """Runs what has no answers yet and writes both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "TINY_CARD.html")
    options = parser.parse_args()
    qwenvl = [sys.executable, "-m", "qwenvl", "eval"]
    folders = []
    for words in CARDS:
        folders.append(ROOT / "runs" / "tiny-card" / "".join(words))
        run = ["run", options.model, *words, "--limit", str(options.questions), "--out", str(folders[-1])]
        subprocess.run([*qwenvl, *run, "--device", "cpu"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    title = "Score card of the shipped model in the toy world"
    report = ["report", *map(str, folders), "--out", str(options.out), "--title", title]
    subprocess.run([*qwenvl, *report], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
