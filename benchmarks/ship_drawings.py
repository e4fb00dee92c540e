"""Make a shipped model's folder from a finished run of recipes/drawings: float16 weights, card, attribution, curves.

    qwenvl data fetch drawings && qwenvl data clean drawings runs/clean --preset named
    qwenvl train recipes/drawings --images drawings --out runs/drawings
    python benchmarks/ship_drawings.py runs/drawings --data drawings --funnel runs/clean [--images trained-on]

The scores in the card are those of the files it writes, by the command that the card names.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import score_card
import shipping
import torch

from qwenvl.data.drawings.collection import opened
from qwenvl.evaluation.scoring import FROM, TO
from qwenvl.parsing import read_json
from qwenvl.train.log import seconds_trained
from qwenvl.train.recipe import find_recipe, stages_of

CARD = """---
license: other
language:
- en
- zh
---
# drawings: a Qwen-VL of {parameters:.1f} million parameters that names what people drew

Sees drawings: emoji, icons, clip art, and scenes composed of them with signs. It was taught to name, caption, answer,
point, count and read, in English and Chinese, in the formats of the paper. **What it can do is name**; how well it does
each stands below. Of photographs it knows next to nothing. What is transparent it
sees on white.

```console
$ qwenvl ask drawings key.png "What is this?"
$ qwenvl ask drawings key.png "这是什么？"
```

Trained by `recipes/drawings` and nothing else. {megabytes:.1f} MB in float16. {hours:.2f} hours of training
({machine}), torch {torch}. {remark}

## Data and licences

{drawings:,} drawings of {sets} sets, of those that `qwenvl data fetch drawings` brings, under licences that ask for
attribution at most: [ATTRIBUTION.md](ATTRIBUTION.md) says whom they are owed to, and goes wherever this model goes.

{licences}

Of all that is fetched, cleaning keeps (`qwenvl data clean drawings clean --preset named`):

{funnel}

## Scores

Percent, with 95 % intervals, of questions about drawings that it was never trained on, as many of each split
(`qwenvl/data/drawings/splits.json`), asked as in stage 2. Nearest on HOG and RGB are the names of the training drawings
that look most alike; blind is the most frequent noun, or 1 where things are counted. Of these files:

```console
$ python benchmarks/score_card.py drawings --model {place} --data drawings{limit} --out card.html
```

{scores}

## Training

{stages}

![Loss of every stage](curves.svg)

## What a longer or better run would still gain

{gain}
"""


def main() -> None:
    """Writes the folder."""
    parser = shipping.parser(__doc__, "drawings")
    parser.add_argument("--model", type=Path, help="where it is not that of the run's last stage")
    parser.add_argument("--data", type=Path, required=True, help="fetched folder that it is judged on")
    parser.add_argument(
        "--images", type=Path, help="fetched folder that it was trained on; --data if left out"
    )
    parser.add_argument("--funnel", type=Path, required=True, help="folder that `data clean` wrote of it")
    parser.add_argument("--questions", type=int, help="of each benchmark; all if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stages = stages_of(find_recipe("drawings"))
    logs = shipping.logs_of("drawings", options.run)
    model = shipping.put(options.model or options.run / stages[-1].name / "model", options.to, logs)
    images = options.images or options.data
    shutil.copyfile(images / "ATTRIBUTION.md", options.to / "ATTRIBUTION.md")
    page = options.run / "card.html"
    folders = score_card.write(
        "drawings", str(options.to.resolve()), page, data=options.data, questions=options.questions
    )
    drawings = opened(images).training()
    licences = Counter(each.licence for each in drawings)
    card = CARD.format(
        parameters=shipping.millions(model), megabytes=shipping.megabytes(options.to),
        hours=seconds_trained(options.run) / 3600, machine=shipping.processor(),
        torch=torch.__version__.split("+")[0], remark=options.remark, drawings=len(drawings),
        sets=len({each.source for each in drawings}), place=options.to.name,
        limit="" if options.questions is None else f" --questions {options.questions}",
        licences=shipping.markdown(("licence", "drawings"), [(name, f"{n:,}") for name, n in licences.most_common()]),
        funnel=funnel(options.funnel), scores=scores([read_json(each / "score.json")[0] for each in folders]),
        stages=shipping.stage_table(logs), gain=options.gain,
    )  # fmt: skip
    (options.to / "MODEL_CARD.md").write_text(card)
    print(options.to / "MODEL_CARD.md")


def funnel(cleaned: Path) -> str:
    """What each rule left of the pairs, out of the statistics of cleaning."""
    total = read_json(cleaned / "statistics.json")["total"]
    left, rows = total["read"], [("read", "", f"{total['read']:,}")]
    for rule, count in {**total["failed"], **total["dropped"]}.items():
        left -= count
        rows.append((rule, f"-{count:,}", f"{left:,}"))
    return shipping.markdown(("rule", "dropped", "left"), rows)


BESIDE = ("nearest on HOG", "nearest on RGB", "blind")
"""What needs no model."""


def scores(reports: Sequence[Mapping[str, Any]]) -> str:
    """A row for each benchmark and split: the model, and beside it what needs none, with intervals where there are."""
    rows = []
    for report in reports:
        score = report["score"]
        for part, (value, count) in sorted(score["groups"].items(), reverse=True):
            own = interval(score["notes"], f"answers, {part}") or f"{value:.1f}"
            beside = [interval(score["notes"], f"{name}, {part}") or "" for name in BESIDE]
            rows.append((report["title"].removeprefix("Drawings: "), part, own, *beside, str(count)))
    return shipping.markdown(("", "split", "drawings", *BESIDE, "questions"), rows)


def interval(notes: Mapping[str, float], name: str) -> str | None:
    """A score and where it lies, where the notes have it."""
    if name not in notes:
        return None
    low, high = notes[f"{name}{FROM}"], notes[f"{name}{TO}"]
    return f"{notes[name]:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
