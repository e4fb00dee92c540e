"""Few-shot prompts (paper 4.4, Figure 4): solved examples before a question, drawn at random or by likeness (RICES).

The paper draws at random; the release's script seeds Python's generator with 0 and draws anew for every question.
Examples follow each other without separator or end symbol: prompt, space, answer, next prompt.
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from qwenvl.data.datasets.sample import Sample
from qwenvl.data.stream.images import opened
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import Benchmark
from qwenvl.images import preprocess
from qwenvl.markup import Box, Segment, Text

SEED = 0
AT_ONCE = 16
"""Images that pass through the vision encoder together."""


def at_random(questions: int, pool: int, shots: int) -> list[list[int]]:
    """For each question the numbers of its examples, as the release draws them."""
    _enough(pool, shots)
    draw = random.Random(SEED)
    return [draw.sample(range(pool), shots) for _ in range(questions)]


def by_likeness(
    asker: Asker, questions: Sequence[Sample], pool: Sequence[Sample], shots: int
) -> list[list[int]]:
    """For each question the examples whose images look most like its own, the likest last.

    Likeness is the cosine of the images' mean visual tokens in this very model (RICES with its own features).
    """
    _enough(len(pool), shots)
    known = _features(asker, pool)
    asked = _features(asker, questions)
    order = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :shots]
    return [list(map(int, row[::-1])) for row in order]


def with_examples(sample: Sample, examples: Sequence[Sample], row: Benchmark) -> list[Segment]:
    """The question behind its solved examples. Raises ValueError for an example without an answer."""
    content: list[Segment] = []
    for example in examples:
        content += [*row.ask(example), _solved(example, row)]
    return [*content, *row.ask(sample)]


def _solved(example: Sample, row: Benchmark) -> Segment:
    """The answer as the model would write it: a box, the text of an option that has no letter, or the commonest."""
    if row.metric is not None and row.metric.boxes and example.box and example.size:
        return Box.from_pixels(*example.box, *example.size)
    if not example.answers:
        raise ValueError(
            f"the example {example.id} has no answer; take examples from a split with public answers."
        )
    answer = Counter(example.answers).most_common(1)[0][0]
    if example.options and not row.lettered:
        answer = example.option(answer).strip()
    return Text(f" {answer}")


def _enough(pool: int, shots: int) -> None:
    if not 0 < shots <= pool:
        raise ValueError(
            f"{shots} examples from a pool of {pool}; give at least one and no more than there are."
        )


@torch.inference_mode()
def _features(asker: Asker, samples: Sequence[Sample]) -> Float32[np.ndarray, "samples hidden"]:
    """Mean visual token of each sample's first image, of length 1."""
    model = asker.assistant.model
    ground = asker.assistant.prompt_format.ground
    size, device = model.config.vision.image_size, model.llm.embed.weight.device
    if bare := next((sample.id for sample in samples if not sample.images), None):
        raise ValueError(f"question {bare} has no image, so nothing is like it; draw its examples at random.")
    parts = []
    for at in range(0, len(samples), AT_ONCE):
        pixels = [preprocess(opened(sample.images[0], ground), size) for sample in samples[at : at + AT_ONCE]]
        parts.append(
            model.encode(torch.from_numpy(np.stack(pixels)).to(device)).float().mean(dim=1).cpu().numpy()
        )
    features = np.concatenate(parts)
    return features / np.linalg.norm(features, axis=1, keepdims=True)
