"""How fast a model is evaluated: answers per second in batches of 16 against one by one, with equal answers.

    python benchmarks/evaluation.py [--model tests/golden/models/tiny_q4] [--images 24]

Both go through the same code on the same toy-world questions, one after the other. Processor
time of this process is measured, not the clock. `benchmarks/metrics.py` times the metrics.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import process_time

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from qwenvl.chat import Assistant
from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.asking import Asker, Decoding
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.runtime import Runtime

ROOT = Path(__file__).parents[1]
DECODING = Decoding(max_new_tokens=24)


def questions(images: int) -> list[Sample]:
    """All that is asked about the first images, but what is chosen by likelihood."""
    row = benchmark("toyworld")
    asked = row.read(replace(row.source(None, prompt_format="raw"), limit=images))
    return [sample for sample in asked if not sample.options]


def answers(asker: Asker, asked: list[Sample], batch: int) -> tuple[list[str], float]:
    """What the model writes, and seconds of processor time."""
    start, written = process_time(), []
    for at in range(0, len(asked), batch):
        prompts = [asker.prompt(sample.content) for sample in asked[at : at + batch]]
        written += [answer.text for answer in asker.write(prompts, DECODING)]
    return written, process_time() - start


def main() -> None:
    """Prints one line per batch size and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "tests/golden/models/tiny_q4"))
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asker = Asker(Assistant.load(options.model, Runtime.detect(device="cpu", dtype="float32", seed=0)), "raw")
    asked = questions(options.images)
    answers(asker, asked[:16], 16)  # warm
    rates, said = {}, {}
    for batch in (1, 16):
        said[batch], seconds = answers(asker, asked, batch)
        rates[batch] = len(asked) / seconds
        print(
            f"batch {batch:>2}: {rates[batch]:8.1f} answers per second of one core ({len(asked)} questions)"
        )
    same = sum(one == other for one, other in zip(said[1], said[16], strict=True))
    print(f"ratio {rates[16] / rates[1]:.2f}; {same} of {len(asked)} answers equal")


if __name__ == "__main__":
    main()
