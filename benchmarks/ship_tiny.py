"""Make the shipped model's folder from a finished run of recipes/tiny: weights in float16, card, loss curves.

    qwenvl train recipes/tiny --out runs/tiny --processes 2
    python benchmarks/ship_tiny.py runs/tiny [--images 2000] [--to qwenvl/tiny]

The scores in the card are those of the files it writes: the model is loaded back from float16 before it is asked.
"""

import argparse
import json

import shipping
import torch

from qwenvl.chat import Assistant
from qwenvl.evaluation.figures import Tally
from qwenvl.evaluation.in_memory import score
from qwenvl.evaluation.metrics.toy import GROUPS, Count
from qwenvl.runtime import Runtime
from qwenvl.train.log import seconds_trained
from qwenvl.train.recipe import find_recipe, stages_of

TARGETS = {"questions": 97, "captions": 95, "grounding": 92, "words": 92}
"""What this project set out to reach, in percent."""

CARD = """---
license: apache-2.0
language:
- en
---
# tiny: a Qwen-VL of {parameters:.1f} million parameters

Sees images of the toy world (`qwenvl/data/toy/worlds.py`): one to three coloured shapes and signs with invented
words or numbers. It captions, answers, points, reads and compares two images, in English, in the formats of the
paper. Of photographs it knows nothing: it takes them for shapes and signs.

Trained by `recipes/tiny` and nothing else, on synthetic images only. {megabytes:.1f} MB in float16.

```console
$ qwenvl train recipes/tiny --out runs/tiny --processes 2
$ python benchmarks/ship_tiny.py runs/tiny
$ qwenvl eval run tiny toyworld --json
```

Seed {seed} (weights) and those of the stage files (documents). {hours:.2f} hours on 2 shared cores ({machine}),
no GPU, torch {torch}, bfloat16 products, float32 weights. {remark}

## Scores

{images:,} held-out images, each with a (shape, colour, size) triple, a word or a number that never occurs in
training. Greedy answers; `blind` is the most frequent training answer to the same prompt, without an image.

{scores}

By kind:

{kinds}

## Training

{stages}

![Loss of every stage](curves.svg)

## What a longer or better run would still gain

{gain}
"""


def main() -> None:
    """Writes the folder and prints its scores."""
    parser = shipping.parser(__doc__, "tiny")
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stages = stages_of(find_recipe("tiny"))
    logs = shipping.logs_of("tiny", options.run)
    model = shipping.put(options.run / stages[-1].name / "model", options.to, logs)
    assistant = Assistant.load(options.to, Runtime.detect(device="cpu"))
    scores = score(assistant, "toyworld", limit=options.images).counts
    (options.to / "MODEL_CARD.md").write_text(card(model, options, scores, logs))
    print(json.dumps(scores.to_json()))


def card(model: torch.nn.Module, options: argparse.Namespace, scores: Tally, logs: shipping.Logs) -> str:
    """The text of MODEL_CARD.md."""

    def row(name: str, count: Count, blind: Count, *more: str) -> tuple[str, ...]:
        return (
            name,
            f"{100 * (count.share or 0):.1f} %",
            f"{100 * (blind.share or 0):.1f} %",
            *more,
            f"{count.n:,}",
        )  # type: ignore[attr-defined]

    return CARD.format(
        parameters=shipping.millions(model),
        megabytes=shipping.megabytes(options.to),
        seed=0,
        hours=seconds_trained(options.run) / 3600,
        machine=shipping.processor(),
        torch=torch.__version__.split("+")[0],
        images=scores.images,
        scores=shipping.markdown(
            ("", "tiny", "blind", "target", "answers"),
            [row(name, scores.groups[name], scores.blind[name], f"{TARGETS[name]} %") for name in GROUPS],
        ),
        kinds=shipping.markdown(
            ("", "tiny", "blind", "answers"),
            [row(name, each, scores.blind_kinds[name]) for name, each in scores.kinds.items()],
        ),
        stages=shipping.stage_table(logs),
        remark=options.remark,
        gain=options.gain,
    )


if __name__ == "__main__":
    main()
