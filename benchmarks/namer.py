"""What the naming stage of recipes/drawings can do by itself: the held-out drawings by the scores of its nouns.

    python benchmarks/namer.py runs/drawings/0b-names --data drawings --out runs/eval/namer

The benchmarks `drawings-200` and `drawings-747`, their scores, neighbours and intervals, with the ViT and the scores of
nouns that the stage left in the place of a model that writes; then a page of right and wrong ones. Top-5 stands beside.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image as pillow

from qwenvl.checkpoint import folder
from qwenvl.cli.eval_score import print_cards
from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.data.drawings.splits import VOCABULARIES, nouns
from qwenvl.evaluation import card, report
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.predictions import Prediction
from qwenvl.images import normalise, open_image
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json
from qwenvl.train.naming import Namer, read_namer

BATCH = 64


@torch.inference_mode()
def named(model: QwenVL, namer: Namer, samples: list[Sample], side: int) -> dict[str, Prediction]:
    """For each sample the negative log-likelihood of each of its options, the first nouns of all."""
    answers = {}
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        images = [open_image(as_bytes(sample)) for sample in batch]
        squares = [image.resize((side, side), pillow.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([normalise(np.asarray(square)) for square in squares]))
        scores = namer(model.vision(pixels))[:, : len(nouns())]
        for sample, row in zip(batch, scores, strict=True):
            nll = -row[: len(sample.options)].log_softmax(dim=0)
            chosen = sample.letters[int(nll.argmin())]
            answers[sample.id] = Prediction(id=sample.id, raw=chosen, plain=chosen, nll=tuple(nll.tolist()))
    return answers


def as_bytes(sample: Sample) -> bytes:
    """The drawing on white."""
    (image,) = sample.images
    assert isinstance(image, bytes)
    return image


def among_five(samples: list[Sample], answers: dict[str, Prediction]) -> dict[str, float]:
    """Split -> percent of its drawings whose noun is among the five likeliest."""
    found: dict[str, list[bool]] = {}
    for sample in samples:
        best = np.argsort(answers[sample.id].nll)[:5]
        hit = any(sample.letters[number] in sample.answers for number in best)
        found.setdefault(sample.group, []).append(hit)
    return {split: 100 * float(np.mean(hits)) for split, hits in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Prints what `qwenvl eval run` prints of a model, and writes the same files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", type=Path, help="folder of the stage, which is done")
    parser.add_argument("--data", type=Path, required=True, help="folder of `qwenvl data fetch drawings`")
    parser.add_argument("--out", type=Path, default=Path("runs/eval/namer"))
    parser.add_argument("--limit", type=int, help="drawings of each benchmark")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, namer = folder.load(options.stage / "model"), read_namer(options.stage)
    side = read_json(options.stage / "stage.json")["image_size"]
    runs = []
    for size in VOCABULARIES:
        row = benchmark(f"drawings-{size}")
        samples = row.read(Source(options.data, limit=options.limit, prompt_format="raw"))
        answers = named(model, namer, samples, side)
        cards, records = card.score(row, samples, answers, model=options.stage.name)
        out = options.out / row.name
        out.mkdir(parents=True, exist_ok=True)
        card.write(out, cards, records)
        runs.append(report.Run(cards, records))
        print_cards(cards, None, partial=True, whole=None)
        for split, share in among_five(samples, answers).items():
            print(f"  among the five likeliest, {split} {share:.2f}")
    page = options.out / "report.html"
    report.write(runs, page, "Naming stage")
    print(f"written {page}")


if __name__ == "__main__":
    main()
