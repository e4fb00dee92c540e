"""Stage 2 of the tiny recipe, packed as it is, against the same model and documents in padded batches.

    python benchmarks/training.py [--rounds 5]

    packed     an image once, its tasks as branches that do not see each other, rows filled by whole documents
    documents  the same documents, one per row, padded to the longest of the batch
    tasks      one task per row with an image of its own, padded: what a plain data loader makes of (image, task)

A token counts once whatever the layout: an image's slots once per image, prompts and answers, no padding. The
three layouts take turns in one process, so a slow moment of the machine hits all of them; ratios are of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwenvl.data.formats import Example, example
from qwenvl.data.packing import DOCUMENT, Rows, pack
from qwenvl.data.toy.streams import SOURCES, Vocabulary, vocabulary_texts
from qwenvl.markup import Rendered
from qwenvl.model.vlm import QwenVL
from qwenvl.presets import tiny
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.objectives import next_token
from qwenvl.train.stages import StageConfig
from qwenvl.train.toy import initialise_narrow_

STAGE = Path(__file__).parents[1] / "recipes" / "tiny" / "2-multitask.toml"


def padded(examples: list[Example], pad_id: int) -> list[Rows]:
    """One document per row, padded to the longest."""
    longest = max(map(len, examples))
    rows = [pack([each], longest, packing="isolated", pad_id=pad_id) for each in examples]
    names = ("ids", "labels", "segments", "positions", "origins")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(row, name) for row in rows]) for name in names}
    return [
        Rows(
            **arrays,
            images=tuple(image for row in rows for image in row.images),
            sources=rows[0].sources,
        )
    ]


def apart(document: Example) -> list[Example]:
    """The branches of a document as documents of their own, each with its trunk."""
    trunk = document.branches.count(0)

    def rendered(kept: list[int]) -> Rendered:
        loss_mask = [k > 0 and document.labels[k - 1] == document.ids[k] for k in kept]
        starts = (1,) if document.images else ()
        return Rendered(
            ids=tuple(document.ids[k] for k in kept),
            loss_mask=tuple(loss_mask),
            images=document.images,
            image_starts=starts,
        )

    branches = range(1, max(document.branches) + 1)
    of = {b: [k for k, own in enumerate(document.branches) if own == b] for b in branches}
    return [example(rendered([*range(trunk), *of[b]])) for b in branches] or [document]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    stage = StageConfig.read(STAGE)
    tokenizer = Tokenizer.train(vocabulary_texts(500), 400)
    model = QwenVL(tiny(tokenizer.n_vocab, tokenizer.imgpad))
    initialise_narrow_(model, torch.Generator().manual_seed(0))
    world = Vocabulary(tokenizer, model.config.adapter.queries, stage.seed)
    objective = next_token(model, tokenizer, stage)
    optimizer = torch.optim.AdamW(model.parameters())
    layouts: dict[str, Callable[[list[Example]], list[Rows]]] = {
        "packed": lambda documents: [
            pack(documents, stage.sequence_length, packing="isolated", pad_id=tokenizer.endoftext)
        ],
        "documents": lambda documents: padded(documents, tokenizer.endoftext),
        "tasks": lambda documents: [
            rows
            for at in range(0, len(documents), 4)
            for rows in padded([t for d in documents[at : at + 4] for t in apart(d)], tokenizer.endoftext)
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for number in range(rounds + 1):
        first = number * stage.micro_documents
        documents = [SOURCES["tasks"](world, first + k) for k in range(stage.micro_documents)]
        tokens = sum(map(len, documents))
        for name, layout in layouts.items():
            start = time.perf_counter()
            for rows in layout(documents):
                assert np.max(rows.segments) >= DOCUMENT
                with torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
                    loss = objective.loss(objective.placed(rows))
                loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / tokens)
    rates = {name: 1 / statistics.median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:10} {rate:8,.0f} tokens/s   packed is {rates['packed'] / rate:.2f}x")


if __name__ == "__main__":
    main()
