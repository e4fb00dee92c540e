"""Recorded answers of the official model: prompts, greedy decoding and batches, against our engine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwenvl import markup
from qwenvl.generate import engine
from qwenvl.generate.prompts import device_of
from qwenvl.model.cached_rows import new_rows
from qwenvl.model.llm import BRANCHES, ntk_alpha
from qwenvl.model.vlm import QwenVL
from qwenvl.parity import official
from qwenvl.parity.fixture import Case, Fixture

STOP_IN_PROMPT = "stop words matched against the prompt too (official.md 8.7); ours looks at the answer only"
PADDING_COUNTED = (
    "padding counted as context by NTK and log-n, so that a row's answer depends on its neighbours"
)

# === Prompts ===


def checked_prompt(
    fixture: Fixture, case: Case, recorded: Sequence[int], keys: Sequence[str], prompt: str | None
) -> list[int]:
    """Our ids for a recorded row, after checking the paths in its slots and the ids of its text."""
    ids, paths = fixture.split_paths(recorded)
    case.equal("paths in the slots", paths, [*map(official.composed, keys)])
    if prompt is not None:
        case.equal("ids of the prompt, read as the official code does", fixture.encode(prompt), ids)
        if (rendered := trusted(fixture, prompt)) is not None:
            case.equal("ids of the prompt", list(rendered.ids), ids)
            sources = [official.composed(str(image.source)) for image in rendered.images]
            case.equal("images of the prompt", sources, [*map(official.composed, keys)])
    if "list_format" in case:
        _check_list(fixture, case, case["list_format"], ids)
    return ids


def trusted(fixture: Fixture, text: str) -> markup.Rendered | None:
    """A trusted text by way of our objects; None where its tags are broken or spelled in another way."""
    try:
        rendered = markup.render(markup.parse_trusted(text), fixture.tokenizer, fixture.queries)
    except ValueError:
        return None
    return rendered if list(rendered.ids) == fixture.encode(text, official.IMAGE_TAGS) else None


def checked_batch(fixture: Fixture, case: Case) -> tuple[list[list[int]], Tensor]:
    """Our ids of padded rows and the mask (1 = token), after checking rows, images and the side of the padding."""
    mask = torch.tensor(case["attention_mask"])
    tokens, pad = mask.shape[1], fixture.tokenizer.endoftext
    prompts = case.get("prompts", [None] * len(mask))
    rows = []
    for recorded, real, keys, paths, prompt in zip(
        case["input_ids"], mask.tolist(), case["image_keys"], case["images"], prompts, strict=True
    ):
        length = sum(real)
        start = tokens - length if case["padding_side"] == "left" else 0
        stop = start + length
        if real != [int(start <= place < stop) for place in range(tokens)]:
            raise ValueError(f"the attention mask is not padded on the {case['padding_side']}")
        case.equal("padding", [*recorded[:start], *recorded[stop:]], [pad] * (tokens - length))
        case.check_images(fixture, keys, paths)
        ids = checked_prompt(fixture, case, recorded[start:stop], keys, prompt)
        rows.append([pad] * start + ids + [pad] * (tokens - stop))
    return rows, mask


def _check_list(fixture: Fixture, case: Case, elements: Sequence[Mapping[str, Any]], ids: list[int]) -> None:
    """An official list makes the same ids: read as text, and by way of our objects where they can say it."""
    case.equal("ids of the list", fixture.encode(official.from_list_format(elements)), ids)
    try:
        turn = markup.Turn("user", tuple(segment for element in elements for segment in _segments(element)))
    except ValueError:  # a box off the grid, or a text with a broken tag
        return
    (numbered,) = markup.number_images([turn])
    rendered = markup.render(numbered.content, fixture.tokenizer, fixture.queries)
    case.equal("ids of the list as objects", list(rendered.ids), ids)


def _segments(element: Mapping[str, Any]) -> list[markup.Segment]:
    """One {"image"}, {"text"} or {"box" and perhaps "ref"}; coordinates are cut to integers."""
    if "image" in element:
        return [markup.Image(element["image"])]
    if "text" in element:
        return markup.parse_trusted(element["text"])
    phrase = [markup.Ref(element["ref"])] if "ref" in element else []
    return [*phrase, *(markup.Box(int(x1), int(y1), int(x2), int(y2)) for x1, y1, x2, y2 in element["box"])]


# === One answer ===


def _generate(fixture: Fixture, case: Case) -> None:
    """A greedy answer through the key-value cache: ids, logits of its first steps, margins, text."""
    case.describes("note")
    ids = checked_prompt(fixture, case, case["input_ids"], case["image_keys"], case.get("prompt"))
    case.check_images(fixture, case["image_keys"], case["images"])
    alpha = ntk_alpha(len(ids), fixture.config.llm)
    case.equal("ntk_alpha", alpha, case.get("ntk_alpha", alpha))
    prompt = engine.Prompt(ids=tuple(ids), pixels=fixture.arrays(case["images"]))
    generated, tokenizer = case["generated"], fixture.tokenizer
    check_answer(
        fixture,
        case,
        prompt,
        case["input_ids"],
        generated,
        case["max_new_tokens"],
        case.get("stop_words_ids") or [],
    )
    logits = step_logits(fixture.model, prompt, generated)
    check_margins(case, logits[:-1])
    if "step_logits" in case.tensors:
        recorded = case.tensor("step_logits")
        case.close("step_logits", logits[: len(recorded)], recorded)
    if "text" in case:
        case.equal("text", tokenizer.decode(generated), case["text"])
    if "text_skip_special" in case:
        case.equal(
            "text_skip_special", tokenizer.decode(generated, skip_special=True), case["text_skip_special"]
        )


def check_answer(
    fixture: Fixture,
    case: Case,
    prompt: engine.Prompt,
    recorded_prompt: Sequence[int],
    generated: list[int],
    max_remaining: int,
    stop_words: Sequence[Sequence[int]],
) -> list[int]:
    """Our greedy answer, compared with the recorded one; returns ours.

    The official code looks for stop words one step late and then forces end-of-text, which ours does not write.
    """
    eos = fixture.tokenizer.endoftext
    stops = [tuple(sequence) for sequence in stop_words if list(sequence) != [eos]]
    settings = engine.Settings(max_new_tokens=max_remaining, stop=((eos,), *stops))
    ours = list(engine.generate(fixture.model, [prompt], settings)[0].ids)
    stopped = any(tuple(ours[-len(stop) :]) == stop for stop in stops)
    expected = [*ours, eos] if stopped and len(ours) < max_remaining else ours
    cut = None if generated == expected else _stop_in_prompt(recorded_prompt, ours, stops)
    if cut is not None:
        expected = [*ours[:cut], eos]
        case.fixed(STOP_IN_PROMPT)
    case.equal("generated", expected, generated)
    return ours


def _stop_in_prompt(
    prompt: Sequence[int], answer: Sequence[int], stops: Sequence[tuple[int, ...]]
) -> int | None:
    """After how many tokens of the answer a stop sequence that begins in the prompt is complete."""
    for written in range(len(answer)):
        seen = (*prompt, *answer[:written])
        if any(len(stop) > written and seen[-len(stop) :] == stop for stop in stops):
            return written
    return None


@torch.no_grad()
def step_logits(model: QwenVL, prompt: engine.Prompt, generated: Sequence[int]) -> Tensor:
    """Logits of every step and of the one behind the last, (steps + 1, vocab).

    The recorded ids are fed one by one through the cache.
    """
    pixels = torch.as_tensor(np.stack(prompt.pixels)) if prompt.pixels else None
    cache = new_rows(model.config.llm, 1, device=device_of(model), dtype=torch.float32)
    alpha = torch.tensor([ntk_alpha(len(prompt.ids), model.config.llm)])
    logits = [model(torch.tensor([prompt.ids]), pixels, cache=cache, long_context=alpha)[0, -1]]
    for token in generated:
        logits.append(model(torch.tensor([[token]]), cache=cache, long_context=alpha)[0, -1])
    return torch.stack(logits)


def check_margins(case: Case, logits: Tensor) -> None:
    """Distance of the best logit from the second best, at each step and at the closest."""
    best = logits.topk(2).values
    margins, spread = best[:, 0] - best[:, 1], logits.std().item()
    if "margins" in case:
        case.close("margins", margins, torch.tensor(case["margins"]), scale=spread)
    if "min_top2_margin" in case:
        case.close("min_top2_margin", margins.min(), case["min_top2_margin"], scale=spread)


# === A batch of answers ===


def _generate_batch(fixture: Fixture, case: Case) -> None:
    """Greedy answers to rows padded on the left; ours pads too, but each row keeps its own positions and stretch."""
    rows, mask = checked_batch(fixture, case)
    max_remaining, eos = case["max_new_tokens"], fixture.tokenizer.endoftext
    prompts = [
        engine.Prompt(ids=tuple(row[-sum(real) :]), pixels=fixture.arrays(paths))
        for row, real, paths in zip(rows, mask.tolist(), case["images"], strict=True)
    ]
    answers = engine.generate(
        fixture.model, prompts, engine.Settings(max_new_tokens=max_remaining, stop=((eos,),))
    )
    ours = [list(answer.ids) for answer in answers]
    pixels = fixture.pixels([path for paths in case["images"] for path in paths])
    padded, logits = _padded_greedy(fixture, rows, mask, pixels, max_remaining)
    recorded = [_until(row, eos) for row in case["generated"]]
    for row, kept in zip(case["generated"], recorded, strict=True):
        case.equal("padding behind an answer", row[len(kept) :], [eos] * (len(row) - len(kept)))
    if (
        ours != recorded
        and padded == recorded
        and _padding_matters(fixture, prompts, mask.shape[1], max_remaining)
    ):
        case.fixed(PADDING_COUNTED)
    else:
        case.equal("generated", ours, recorded)
    case.equal("generated with padding counted", padded, recorded)
    check_margins(case, torch.cat(logits))


def _until(row: Sequence[int], eos: int) -> list[int]:
    return list(row[: row.index(eos) + 1] if eos in row else row)


def _padding_matters(
    fixture: Fixture, prompts: Sequence[engine.Prompt], padded: int, max_remaining: int
) -> bool:
    """Whether a row's stretch, or log-n at one of its positions, is another one in the padded row."""
    config = fixture.config.llm
    lengths = [len(prompt.ids) for prompt in prompts if len(prompt.ids) < padded]
    stretched = any(ntk_alpha(length, config) != ntk_alpha(padded, config) for length in lengths)
    return stretched or bool(lengths and config.log_n and padded + max_remaining > config.sequence_length)


@torch.no_grad()
def _padded_greedy(
    fixture: Fixture, rows: list[list[int]], mask: Tensor, pixels: Tensor | None, max_remaining: int
) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy answers as the official code pads: positions and stretch are those of the padded row.

    Returns the ids of every row up to end-of-text, and its logits, (steps, vocab).
    """
    model, eos, (batch, tokens) = fixture.model, fixture.tokenizer.endoftext, mask.shape
    cache = new_rows(model.config.llm, batch, device=device_of(model), dtype=torch.float32)
    alpha = torch.full((batch,), ntk_alpha(tokens, model.config.llm))
    ids, segments = torch.tensor(rows), mask * BRANCHES
    positions = torch.arange(tokens).expand(batch, -1)
    steps: list[Tensor] = []
    for _ in range(max_remaining):
        hidden = model.hidden(
            ids, pixels, positions=positions, segments=segments, cache=cache, long_context=alpha
        )
        steps.append(model.llm.head(hidden[:, -1]))
        ids, pixels = steps[-1].argmax(-1, keepdim=True), None
        positions = positions[:, -1:] + 1
        segments = torch.cat([segments, torch.full((batch, 1), BRANCHES)], dim=1)
    logits = torch.stack(steps, dim=1)  # (batch, steps, vocab)
    answers = [_until(row, eos) for row in logits.argmax(-1).tolist()]
    return answers, [row[: len(answer)] for row, answer in zip(logits, answers, strict=True)]


CHECKS: Mapping[str, Callable[[Fixture, Case], None]] = {
    "generate": _generate,
    "generate_batch": _generate_batch,
}
"""Kind of a case -> its check."""
