"""What this machine lets an engine promise about its answers, found out by asking.

Which bits a product has is nobody's promise: it hangs on the processor, on the build of torch, on the number of
threads. So a model of one block, made of the very matrices of the model that will answer, answers some requests one by
one and all together, and what it wrote is compared bit by bit.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from qwenvl.generate.choosing import TOP_LOGPROBS
from qwenvl.generate.engine import Engine, EngineConfig, Settings
from qwenvl.generate.prompts import Prompt, device_of
from qwenvl.model.vlm import QwenVL

TRIED = (5, 130, 40, 2, 17)
"""Tokens of the prompts that are tried: of one chunk and of two, in one bucket and in another."""

WRITTEN = 3
"""Tokens of their answers."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """How far an answer is that of the same request alone, whatever runs beside it."""

    exact: bool
    """Bit by bit; otherwise up to rounding, and another word may follow where two are nearly as likely."""
    reason: str | None = None
    """Why not bit by bit."""

    def __str__(self) -> str:
        return "bit-equal to the request alone" if self.exact else "the same as alone, up to rounding"


def promise(model: QwenVL) -> Promise:
    """What may be promised of this model, as it is now: packed or not, with so many threads."""
    if (device := device_of(model)).type != "cpu":
        return Promise(exact=False, reason=f"products on {device.type} depend on the number of rows")
    small = _one_block(model)
    prompts = _prompts(small)
    together = _answers(small, prompts)
    for number, prompt in enumerate(prompts):
        if _answers(small, [prompt]) != together[number : number + 1]:
            what = f"with {len(prompt.pixels)} images " if prompt.pixels else ""
            return Promise(
                exact=False,
                reason=f"a prompt of {len(prompt.ids)} tokens {what}has other bits beside others than alone",
            )
    return Promise(exact=True)


def _one_block(model: QwenVL) -> QwenVL:
    """The same embedding, head, adapter and first blocks, and no more; nothing of it is copied."""
    small, config = _beside(model), model.config
    small.config = replace(config, llm=replace(config.llm, layers=1), vision=replace(config.vision, layers=1))
    for name in ("llm", "vision"):
        part: Any = _beside(model.get_submodule(name))
        part.config = getattr(small.config, name)
        part._modules["blocks"] = nn.ModuleList([part.blocks[0]])
        small._modules[name] = part
    return small.eval()


def _beside(module: Any) -> Any:
    """A module of the same parts, of which others may be put in their places."""
    other = copy(module)
    other._modules = dict(module._modules)
    return other


def _prompts(model: QwenVL) -> list[Prompt]:
    """The last two each show an image of their own."""
    draw, config = np.random.default_rng(0), model.config
    ids = [int(each) for each in draw.integers(0, config.llm.vocab_size, sum(TRIED))]
    ids = [0 if each == config.imgpad_id else each for each in ids]
    slots, side = (config.imgpad_id,) * config.adapter.queries, config.vision.image_size
    made = []
    for number, length in enumerate(TRIED):
        own, ids = tuple(ids[:length]), ids[length:]
        if number < len(TRIED) - 2:
            made.append(Prompt(ids=own))
        else:
            made.append(
                Prompt(ids=(*slots, *own), pixels=(draw.standard_normal((3, side, side), np.float32),))
            )
    return made


def _answers(model: QwenVL, prompts: list[Prompt]) -> list[list[object]]:
    """Each token with its log-probability and those of the likeliest."""
    engine = Engine(
        model,
        EngineConfig(rows=len(prompts), prefix_tokens=0, packed=False, share=0, ahead=len(prompts)),
    )
    how = Settings(max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, top_logprobs=TOP_LOGPROBS)
    said: dict[int, list[object]] = {engine.add(prompt, how): [] for prompt in prompts}
    while engine.busy:
        for token in engine.step():
            said[token.request].append((token.id, token.logprob, token.top))
    return list(said.values())
