"""What 8 and 64 cards should give: the stages of the 7B recipe, counted by `qwenvl plan`, and what their messages add.

    python benchmarks/cards.py            # minutes; prints the table
    python benchmarks/cards.py --put      # and writes it into docs/TRAINING.md

Counted: memory, arithmetic, bytes of messages. Assumed: cards of 141 GB and 989 TFLOP/s, an MFU of 45 %, and messages
at 300 GB/s a card within eight cards (NVLink), 250 between machines (400 Gbit/s to each card). Nothing was measured.
Hidden, messages cost nothing, because they go on beside arithmetic; the other end is that none of them do.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tables import put, table

from qwenvl import presets
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.plan import Assumptions, Plan, plan
from qwenvl.train.recipe import find_recipe
from qwenvl.train.stages import StageConfig

MEMORY, MFU = 141.0, 0.45
BANDWIDTH = {8: 300e9, 64: 250e9}
"""Cards -> bytes a second that each sends and receives."""
DOCUMENT = Path(__file__).parents[1] / "docs" / "TRAINING.md"

LAYOUTS = {
    "1-pretraining": (ParallelConfig(), ParallelConfig(shard="optimizer")),
    "2-multitask": (ParallelConfig(shard="optimizer"), ParallelConfig(shard="full")),
    "3-finetuning": (ParallelConfig(shard="optimizer"), ParallelConfig(shard="full")),
}
"""Stage -> how it may be laid over the cards."""
TEXT = {"1-pretraining": 67.0, "2-multitask": 67.0, "3-finetuning": 300.0}
"""Tokens of a document that are no image: the paper's of stage 1, `plan`'s own of stage 2, a guess at dialogues."""

MICRO = {"1-pretraining": 20, "2-multitask": 8, "3-finetuning": 4}
"""Documents of a micro-batch, or fewer where an update has fewer for each card: what fits whole, nothing recomputed."""


def messages(
    parameters: float, learn: float, parallel: ParallelConfig, micro_batches: int, cards: int
) -> float:
    """Bytes that each card sends in an update: weights gathered in bfloat16, gradients added up in float32.

    To gather, or to add up and share, moves everything once; to add up for all moves it twice. `shard = full` gathers
    for each forward and each backward pass, `optimizer` once an update.
    """
    others = (cards - 1) / cards
    if parallel.shard == "none":
        return others * 2 * 4 * learn
    gathered = 2 * micro_batches if parallel.shard == "full" else 1
    return others * (gathered * 2 * parameters + micro_batches * 4 * learn)


def row_of(stage: StageConfig, parallel: ParallelConfig, cards: int, found: Plan) -> list[str]:
    learn = sum(found.trainable.values())
    micro_batches = stage.documents // stage.micro_documents // cards
    sent = messages(learn + sum(found.frozen.values()), learn, parallel, micro_batches, cards)
    sending = sent / BANDWIDTH[cards]
    return [
        stage.name,
        f"{cards}",
        parallel.shard,
        f"{micro_batches} x {stage.micro_documents}",
        f"{found.peak / 1e9:,.0f}" + ("" if found.fits else " (too much)"),
        f"{found.tokens / found.seconds:,.0f}",
        f"{found.seconds:,.2f}",
        f"{sent / 1e9:,.0f} GB, {sending:,.2f} s",
        _days(stage, found.seconds, found.seconds + sending),
    ]


def _days(stage: StageConfig, least: float, most: float) -> str:
    return f"{stage.optim.steps * least / 86_400:,.2f} to {stage.optim.steps * most / 86_400:,.2f}"


def rows() -> list[list[str]]:
    found, config = [], presets.qwen_vl_7b()
    for name, layouts in LAYOUTS.items():
        recipe = StageConfig.read(find_recipe("qwen_vl_7b") / f"{name}.toml")
        for cards in BANDWIDTH:
            stage = replace(recipe, micro_documents=min(MICRO[name], recipe.documents // cards))
            for parallel in layouts:
                given = Assumptions(
                    gpus=cards,
                    memory=MEMORY,
                    mfu=MFU,
                    text_tokens=TEXT[name],
                    parallel=parallel,
                    released=True,
                )
                found.append(row_of(stage, parallel, cards, plan(stage, config, given)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--put", action="store_true", help="write the table into docs/TRAINING.md")
    given = parser.parse_args()
    head = ["stage", "cards", "`--shard`", "micro-batches", "GB a card", "tokens/s", "s of an update"]
    text = table([*head, "messages of a card", "days, messages hidden to not"], rows())
    print(text)
    if given.put:
        put(text, DOCUMENT, "cards.py")


if __name__ == "__main__":
    main()
