"""A stage-2 step of a 100M-parameter model on the CPU: ours, packed, against plain transformers with padded batches.

    python benchmarks/step.py                     # 224 and 448 px, rows of 2,048
    python benchmarks/step.py --length 512        # shorter rows for a slow machine

Both sides have the same shapes (ViT 384 x 12, one cross-attention of 64 queries, decoder 640 x 12, vocabulary 16,384),
the same documents, AdamW and precision. The other side is what one writes in an afternoon: CLIPVisionModel and
Qwen2ForCausalLM of transformers with `torch.nn.MultiheadAttention` between them, documents in the order they come,
micro-batches padded to their longest, the loss that the model returns. Ours packs whole documents into rows and makes
logits where something is learned.

Documents follow the shares of Table 3: captions, questions, boxes, OCR, pure text, one task and one image each; the
pages of OCR and the texts are long, everything else is short. Every round draws a pool of them: ours learns from one
row of the packed pool, the other side from one padded micro-batch of it, in turn, each the one that is most like the
whole pool in filling and in images per token; padding never counts as a token. They run in one process and one
thread, and what counts is the time that the processor gave to it, so that other work on the machine changes little.
Speeds are all tokens over all seconds.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.packing import fit, pack
from qwenvl.markup import Image
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.objectives import next_token_of
from qwenvl.train.optim import make_optimizers
from qwenvl.train.stages import OptimConfig, StageConfig

MICRO = 4
"""Documents of a padded micro-batch."""

POOL = 64
"""Documents that are packed together, a loader's window."""

SETTINGS = OptimConfig(peak_lr=1e-4, final_lr=0.0, warmup_steps=0, steps=1)

TASKS: dict[str, tuple[float, float, float, float]] = {
    # millions of samples (Table 3); tokens of the prompt, of the shortest and the longest answer (up to 1: of a row)
    "caption": (19.7, 8, 12, 40), "question": (3.6, 20, 2, 8), "grounding": (3.5, 10, 40, 140),
    "refer": (8.7, 12, 14, 16), "describe": (8.7, 28, 8, 16), "ocr": (24.8, 6, 0.1, 0.6), "text": (7.8, 1, 0.2, 0.8),
}  # fmt: skip


def shape(image_size: int, small: bool) -> ModelConfig:
    if small:
        return ModelConfig(
            vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, image_size=image_size),
            adapter=AdapterConfig(queries=4, heads=2),
            llm=LLMConfig(vocab_size=512, hidden=64, layers=2, heads=2, mlp_width=128),
            imgpad_id=472,
        )
    return ModelConfig(
        vision=VisionConfig(width=384, layers=12, heads=6, mlp_width=1536, image_size=image_size),
        adapter=AdapterConfig(queries=64, heads=10),
        llm=LLMConfig(vocab_size=16_384, hidden=640, layers=12, heads=10, mlp_width=1792),
        imgpad_id=472,
    )


def documents(config: ModelConfig, length: int, count: int, seed: int) -> list[Example]:
    """Random ids in the shapes of stage 2, images of noise."""
    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    found = []
    for task in draw.choices(list(TASKS), [each[0] for each in TASKS.values()], k=count):
        _, prompt, low, high = TASKS[task]
        scale = length if high <= 1 else 1
        slots = 0 if task == "text" else config.adapter.queries
        answer = min(int(draw.uniform(low, high) * scale), length - slots - int(prompt) - 2)
        words = [draw.randrange(256) for _ in range(int(prompt) + answer)]
        ids = [256, *[config.imgpad_id] * slots, 257, *words] if slots else words
        start = len(ids) - answer
        labels = [IGNORE] * (start - 1) + ids[start:] + [IGNORE]
        side = config.vision.image_size
        shown = (Image(pixels.integers(0, 255, (side, side, 3), dtype=np.uint8)),) if slots else ()
        found.append(
            Example(
                ids=tuple(ids),
                labels=tuple(labels),
                branches=(0,) * len(ids),
                positions=tuple(range(len(ids))),
                images=shown,
            )
        )
    return found


class Plain(nn.Module):
    """The other side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision, llm = config.vision, config.llm
        self.imgpad_id = config.imgpad_id
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=vision.width,
                intermediate_size=vision.mlp_width,
                num_hidden_layers=vision.layers,
                num_attention_heads=vision.heads,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                hidden_act="gelu",
            )
        )
        self.to_hidden = nn.Linear(vision.width, llm.hidden)
        self.query = nn.Parameter(torch.randn(config.adapter.queries, llm.hidden) * 0.02)
        self.attention = nn.MultiheadAttention(llm.hidden, config.adapter.heads, batch_first=True)
        self.project = nn.Linear(llm.hidden, llm.hidden)
        self.llm = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=llm.vocab_size,
                hidden_size=llm.hidden,
                intermediate_size=llm.mlp_width,
                num_hidden_layers=llm.layers,
                num_attention_heads=llm.heads,
                num_key_value_heads=llm.heads,
                tie_word_embeddings=False,
                max_position_embeddings=4096,
            )
        )

    def forward(self, ids: Tensor, pixels: Tensor | None, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the learned tokens."""
        hidden = self.llm.get_input_embeddings()(ids)
        if pixels is not None:
            patches = self.to_hidden(self.vision(pixels).last_hidden_state[:, 1:])
            queries = self.query.expand(len(pixels), -1, -1)
            visual = self.project(self.attention(queries, patches, patches, need_weights=False)[0])
            hidden = hidden.masked_scatter((ids == self.imgpad_id)[..., None], visual.to(hidden.dtype))
        return self.llm(inputs_embeds=hidden, attention_mask=mask, labels=labels, use_cache=False).loss


def padded(examples: Sequence[Example]) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """A batch as a collator makes it: padded on the right, labels unshifted."""
    longest = max(map(len, examples))
    ids = torch.tensor([[*each.ids, *[0] * (longest - len(each))] for each in examples])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in examples])
    labels = torch.tensor(
        [[IGNORE, *each.labels[:-1], *[IGNORE] * (longest - len(each))] for each in examples]
    )
    pixels = [pixels_of(image) for each in examples for image in each.images]
    return ids, torch.stack(pixels) if pixels else None, mask, labels


def pixels_of(image: Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.source)).permute(2, 0, 1).float() / 127.5 - 1


def ours(config: ModelConfig, length: int) -> tuple[nn.Module, Callable[[Sequence[Example]], None]]:
    """The model, and forward and backward over a packed row."""
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)})
    model = QwenVL(config)
    stage = StageConfig(
        name="step",
        image_size=config.vision.image_size,
        sequence_length=length,
        documents=1,
        micro_documents=1,
        optim=SETTINGS,
    )
    objective = next_token_of(model, tokenizer, stage, lambda _: documents(config, length, 1, 0)[0])

    def step(examples: Sequence[Example]) -> None:
        loss = objective.loss(objective.placed(pack(examples, length, packing="isolated", pad_id=0)))
        (loss.total / max(loss.supervised, 1)).backward()

    return model, step


def theirs(config: ModelConfig) -> tuple[nn.Module, Callable[[Sequence[Example]], None]]:
    """The same for a padded micro-batch."""
    model = Plain(config)
    return model, lambda examples: model(*padded(examples)).backward()


def most_typical(groups: Sequence[Sequence[Example]], length: int | None) -> Sequence[Example]:
    """The group nearest to all of them in filling and in images per token; rows of `length`, or of their longest."""

    def places(group: Sequence[Example]) -> int:
        return length or max(map(len, group)) * len(group)

    def facts(some: Sequence[Sequence[Example]]) -> tuple[float, float]:
        tokens = sum(len(each) for group in some for each in group)
        images = sum(len(each.images) for group in some for each in group)
        return tokens / sum(map(places, some)), images / tokens

    whole = facts(groups)
    return min(
        groups, key=lambda group: sum(abs(a / b - 1) for a, b in zip(facts([group]), whole, strict=True))
    )


def compare(config: ModelConfig, length: int, rounds: int, bfloat16: bool) -> dict[str, object]:
    """Both sides in turn on the same pools; tokens per second of the processor."""
    sides = {"ours": ours(config, length), "transformers": theirs(config)}
    optimizers = {name: make_optimizers(model, SETTINGS) for name, (model, _) in sides.items()}
    tokens, seconds = dict.fromkeys(sides, 0), dict.fromkeys(sides, 0.0)
    fill: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        pool = documents(config, length, POOL, number)
        rows = [[pool[each] for each in row] for row in fit([len(each) for each in pool], length)]
        batches = [pool[at : at + MICRO] for at in range(0, POOL, MICRO)]
        whole = sum(map(len, pool))
        fill["ours"].append(whole / (len(rows) * length))
        fill["transformers"].append(whole / sum(max(map(len, each)) * MICRO for each in batches))
        for (name, (_, step)), examples in zip(
            sides.items(), (most_typical(rows, length), most_typical(batches, None)), strict=True
        ):
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                step(examples)
            for optimizer in optimizers[name]:
                optimizer.step()
                optimizer.zero_grad()
            seconds[name] += time.process_time() - start
            tokens[name] += sum(map(len, examples))
    speeds = {name: tokens[name] / seconds[name] for name in sides}
    return {
        "pixels": config.vision.image_size,
        "length": length,
        "parameters": {
            name: sum(p.numel() for p in model.parameters()) for name, (model, _) in sides.items()
        },
        "fill": {name: round(statistics.mean(each), 3) for name, each in fill.items()},
        "tokens": tokens,
        "tokens_per_second": {name: round(speed, 1) for name, speed in speeds.items()},
        "ratio": round(speeds["ours"] / speeds["transformers"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pixels", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--small", action="store_true", help="toy size, for the tests")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for pixels in given.pixels:
        print(
            json.dumps(compare(shape(pixels, given.small), given.length, given.rounds, given.bfloat16)),
            flush=True,
        )


if __name__ == "__main__":
    main()
