"""What a tiny model knows while it trains: linear probes of its patches, and its answers token by token.

    python benchmarks/probe.py runs/tiny/2-multitask [--images 80]

A folder of a stage is read at its newest state, or at its end. Patches: a linear classifier on frozen features, learned
on training scenes, judged on held-out ones. Answers: right if every token is the likeliest given the right ones before
it, which is quicker than writing and flatters long answers.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from qwenvl.checkpoint import folder
from qwenvl.data.formats import IGNORE, example, task
from qwenvl.data.packing import pack
from qwenvl.data.toy.labels import CHARACTERS, SIGN_CLASS, DenseLabels, dense_labels
from qwenvl.data.toy.paint import render as paint
from qwenvl.data.toy.streams import IMAGE_KINDS
from qwenvl.data.toy.tasks import tasks
from qwenvl.data.toy.worlds import Scene, scene
from qwenvl.images import preprocess
from qwenvl.markup import Image, render
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.state import saved_states

SEED, SIZE = 77, 112
LEARNED_FROM = 1200
"""Training scenes that a probe is fitted on."""


def read(stage: Path) -> tuple[QwenVL, Tokenizer, str]:
    """The model of a stage, its vocabulary and what was read."""
    states = saved_states(stage / "state")
    whole = stage / "model" if (stage / "model").exists() else stage.parent / "start"
    model = folder.load(whole, Runtime.detect(device="cpu", dtype="float32"))
    if states and whole.name == "start":
        model.load_state_dict(load_file(states[-1] / "weights.safetensors"))
        return model, Tokenizer.load(whole), states[-1].name
    return model, Tokenizer.load(whole), str(whole)


# === Patches ===


def features(model: QwenVL, scenes: Sequence[Scene]) -> Tensor:
    """(scenes, patches, channels)."""
    pixels = torch.from_numpy(np.stack([preprocess(paint(each), SIZE) for each in scenes]))
    return torch.cat([model.vision(part) for part in pixels.split(100)])


def stacked(labels: Sequence[DenseLabels], pick: Callable[[DenseLabels], np.ndarray]) -> Tensor:
    """(scenes, patches) of one label."""
    return torch.from_numpy(np.stack([pick(each) for each in labels])).flatten(1)


def probe(known: Tensor, classes: Tensor, unseen: Tensor, right: Tensor, count: int) -> float:
    """Share of unseen patches that a linear classifier names right."""
    middle, parallel = known.mean(0), known.std(0)
    layer = torch.nn.Linear(known.shape[1], count)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(150):
        chosen = torch.randint(len(known), (4096,), generator=generator)
        loss = F.cross_entropy(layer((known[chosen] - middle) / parallel), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((layer((unseen - middle) / parallel).argmax(-1) == right).float().mean())


def patches(model: QwenVL) -> dict[str, float]:
    """Probes of shape, colour, letters and digits of edges, on patches that show something."""
    torch.manual_seed(SEED)
    known = [scene(SEED + 1, index) for index in range(LEARNED_FROM)]
    unseen = [scene(SEED, index, "test") for index in range(200)]
    with torch.no_grad():
        seen = features(model, known), features(model, unseen)
    grid = int(seen[0].shape[1] ** 0.5)
    labels = [[dense_labels(each, grid) for each in scenes] for scenes in (known, unseen)]

    def one(pick: Callable[[DenseLabels], np.ndarray], count: int, *, signs: bool = False) -> float:
        shapes = [stacked(each, lambda label: label.shape) for each in labels]
        rows = [each == SIGN_CLASS if signs else each > 0 for each in shapes]
        classes = [stacked(each, pick)[row] for each, row in zip(labels, rows, strict=True)]
        return probe(seen[0][rows[0]], classes[0], seen[1][rows[1]], classes[1], count)

    found = {
        "shape": one(lambda label: label.shape, SIGN_CLASS + 1),
        "color": one(lambda each: each.color, 8),
    }
    for k in (0, 2):
        found[f"letter {k + 1}"] = one(lambda label, k=k: label.word[..., k], len(CHARACTERS) + 1, signs=True)
    for k, edge in enumerate(("left", "top", "right", "bottom")):
        found[f"{edge} hundreds"] = one(lambda label, k=k: label.digits[..., k, 0], 10)
        found[f"{edge} tens"] = one(lambda label, k=k: label.digits[..., k, 1], 10)
    return found


# === Answers ===


@torch.no_grad()
def answers(model: QwenVL, tokenizer: Tokenizer, images: int) -> dict[str, float]:
    """Share of right answers per kind, about held-out images."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for index in range(images):
        shown = scene(SEED, index, "test")
        message = tasks(shown, SEED, kinds=IMAGE_KINDS)
        queries = model.config.adapter.queries
        trunk = render(Image(paint(shown)), tokenizer, queries)
        document = example(trunk, [task(each.prompt, each.answer, tokenizer, queries) for each in message])
        rows = pack([document], len(document), packing="isolated", pad_id=tokenizer.endoftext)
        pixels = torch.from_numpy(preprocess(paint(shown), SIZE))[None]
        ids, positions, segments = map(torch.from_numpy, (rows.ids, rows.positions, rows.segments))
        likeliest = model(ids, pixels, positions=positions, segments=segments)[0].argmax(-1).numpy()
        for branch, each in enumerate(message, 1):
            loss_mask = (np.array(document.branches) == branch) & (rows.labels[0] != IGNORE)
            right[each.kind] += bool((likeliest == rows.labels[0])[loss_mask].all())
            asked[each.kind] += 1
    return {kind: right[kind] / asked[kind] for kind in sorted(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", type=Path)
    parser.add_argument("--images", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, place = read(options.stage)
    model.eval()
    print(place)
    for title, found in (
        ("patches", patches(model)),
        ("answers", answers(model, tokenizer, options.images)),
    ):
        print(f"{title}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.items()))


if __name__ == "__main__":
    main()
