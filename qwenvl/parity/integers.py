"""The certificate of quantised models: each recorded model is rounded as `qwenvl quantize` rounds it, and judged.

Rounding changes the answers, so the recorded ones are no measure of right and wrong here. Judged are

    weights   every level is the nearest to the weight of the recorded model
    answers   logits on the recorded words, against the same model with the weights that the integers mean, exactly:
              within `FACTOR` times what the stated precision of the kernel's activations (`PRECISIONS`) does to that
              model, which is measured in the same run; 1e-4 where a kernel states none

What rounding did to the recorded model is told in the note, and is no part of the verdict: the divergence of its next
word, and on how many words the likeliest is the same.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.generate import engine
from qwenvl.model.blockwise import ONES, Blockwise
from qwenvl.model.borrowed import Borrowed
from qwenvl.model.integers import FORMATS, Kind
from qwenvl.model.packed import pack_
from qwenvl.model.quantized import STEPS, Digits, Nibbles, quantized_in
from qwenvl.model.vlm import QwenVL
from qwenvl.parity import answers
from qwenvl.parity.certificate import Result
from qwenvl.parity.fixture import TOLERANCE, Case, Fixture, read_cases
from qwenvl.runtime import Runtime

FACTOR = 3.0
"""Errors of rounding add up in another order in every kernel: the measured ratio lies between 0.6 and 1.5."""

ENDS: Mapping[Kind, tuple[int, int]] = {"int8": (-127, 127), "int4": (-8, 7)}
"""Of a range of even steps, measured from the level that means nothing."""

KINDS = ("generate", "generate_batch")
"""Cases that are judged."""


def _steps(rows: Float[Tensor, "*rows width"], most: int) -> Float[Tensor, "*rows width"]:
    """Whole steps, `most` of them on either side of 0."""
    step = rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / most
    return (rows / step).round() * step


def _two_digits(rows: Float[Tensor, "*rows width"], store: Digits) -> Float[Tensor, "*rows width"]:
    return _steps(rows, STEPS)


def _grouped(rows: Float[Tensor, "*rows width"], store: Blockwise) -> Float[Tensor, "*rows width"]:
    return _steps(rows.unflatten(-1, (-1, store.group)), ONES).flatten(-2)


def _bfloat16(rows: Float[Tensor, "*rows width"], store: Nibbles | Borrowed) -> Float[Tensor, "*rows width"]:
    return rows.bfloat16().float()


PRECISIONS: Mapping[type, tuple[Callable[[Tensor, Any], Tensor], ...]] = {
    Digits: (_two_digits,),
    Blockwise: (_grouped,),
    Nibbles: (_bfloat16, _bfloat16),
    Borrowed: (_bfloat16, _bfloat16),
}
"""Kernel -> what it makes of a layer's input, and of its output where it does."""


def certify(path: Path, kind: Kind) -> Iterator[Result]:
    """Results of one model folder; NOT RUN, with the reason, where the model cannot be rounded so."""
    fixture = Fixture(path)
    runtime = Runtime(device=torch.get_default_device(), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as place:
        try:
            quantize(path, Path(place) / "small", Plan(to=kind))
        except ValueError as refused:
            yield Result(f"{path.name} {kind}", "NOT RUN", None, None, str(refused))
            return
        small = checkpoint.load(Path(place) / "small", runtime)
    yield _weights(f"{path.name} {kind} weights", fixture.model, small)
    meant = _meant(small)
    pack_(small)  # as whoever answers does
    stated = _at_the_stated_precision(meant, small)
    for values in read_cases(path / "cases.json"):
        if values.get("kind") in KINDS:
            name = f"{path.name} {kind} {values.get('id')}"
            yield _answers(name, fixture, values, (small, meant, stated))


def _weights(name: str, whole: QwenVL, small: QwenVL) -> Result:
    """By how many steps a weight lies farther from its level than from another one, at most."""
    largest = 0.0
    for layer, rounded in quantized_in(small).items():
        integers = rounded.store.integers()
        scales = integers.scales.float().repeat_interleave(integers.group, 1)
        weight = whole.get_submodule(layer).get_parameter("weight").detach().to(scales.device) / scales
        own, nearest = integers.dequantised() / scales, _nearest(weight, integers.kind)
        farther = (own - weight).abs() - (nearest - weight).abs()
        largest = max(largest, farther.nan_to_num(torch.inf).max().item())
    if largest <= TOLERANCE:
        return Result(name, "PASS", largest, TOLERANCE)
    return Result(name, "FAIL", largest, TOLERANCE, "a level is not the nearest to its weight")


def _nearest(weight: Float[Tensor, "out width"], kind: Kind) -> Float[Tensor, "out width"]:
    """What the nearest level means, in steps."""
    if numbers := FORMATS[kind].numbers:
        levels = torch.tensor(numbers, device=weight.device)
        return levels[torch.bucketize(weight, (levels[1:] + levels[:-1]) / 2)]
    return weight.round().clamp(*ENDS[kind])


def _meant(small: QwenVL) -> QwenVL:
    """The same model with plain weights: those that the integers mean, exactly."""
    model = copy.deepcopy(small)
    for name, layer in quantized_in(small).items():
        parent, _, own = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.store.integers().dequantised(), requires_grad=False)
        plain.register_parameter("bias", layer.bias)
        setattr(model.get_submodule(parent), own, plain)
    return model


def _at_the_stated_precision(meant: QwenVL, small: QwenVL) -> QwenVL:
    """The same again, the activations of each layer rounded as its kernel says."""
    model = copy.deepcopy(meant)
    for name, layer in quantized_in(small).items():
        plain, store = model.get_submodule(name), layer.store
        stated = PRECISIONS.get(type(store), ())
        for rounding in stated[:1]:
            plain.register_forward_pre_hook(
                lambda _, given, rounding=rounding, store=store: (rounding(given[0], store),)
            )
        for rounding in stated[1:]:
            plain.register_forward_hook(
                lambda _, given, made, rounding=rounding, store=store: rounding(made, store)
            )
    return model


def _answers(
    name: str, fixture: Fixture, values: Mapping[str, Any], models: tuple[QwenVL, QwenVL, QwenVL]
) -> Result:
    logits: list[list[Tensor]] = [[], [], [], []]
    for prompt, written in _rows(fixture, values):
        for found, model in zip(logits, (fixture.model, *models), strict=True):
            found.append(answers.step_logits(model, prompt, written)[:-1])
    whole, small, meant, stated = (torch.cat(each) for each in logits)
    spread = meant.std().item()
    off, noise = ((each - meant).abs().max().item() / spread for each in (small, stated))
    allowed = max(TOLERANCE, FACTOR * noise)
    one, other = whole.double().log_softmax(-1), small.double().log_softmax(-1)
    divergence = (one.exp() * (one - other)).sum(-1).mean().item()
    same = int((one.argmax(-1) == other.argmax(-1)).sum())
    note = f"rounding: divergence {divergence:.2g} nats, {same} of {len(one)} words the same"
    if off <= allowed:
        return Result(name, "PASS", off, allowed, note)
    return Result(name, "FAIL", off, allowed, f"logits are not those of the weights that are meant; {note}")


def _rows(fixture: Fixture, values: Mapping[str, Any]) -> Iterator[tuple[engine.Prompt, Sequence[int]]]:
    """(prompt, recorded answer) of a case; of a batch, every row without its padding."""
    if values["kind"] == "generate":
        ids, _ = fixture.split_paths(values["input_ids"])
        yield engine.Prompt(ids=tuple(ids), pixels=fixture.arrays(values["images"])), values["generated"]
        return
    rows, mask = answers.checked_batch(fixture, Case("batch", values, fixture.path))
    for row, real, files, written in zip(
        rows, mask.tolist(), values["images"], values["generated"], strict=True
    ):
        yield engine.Prompt(ids=tuple(row[-sum(real) :]), pixels=fixture.arrays(files)), written
