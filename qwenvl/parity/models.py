"""Recorded runs of the official model (`golden/models/<name>/`), checked against ours stage by stage.

A folder holds an official checkpoint, `cases.json` (stages and gradients are checked here, answers in `answers.py`,
dialogues in `chats.py`) and perhaps `chat_stream.json`. The official ids carry an image's path as bytes in its slots;
the reader puts plain placeholders there and opens the image itself, because our model never reads a path.

Tolerance: 1e-4 of the recorded tensor's own standard deviation, in float32; a single number (a loss, a gradient's norm)
1e-4 of itself; ids, text and pixels exactly.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwenvl import images
from qwenvl.checkpoint import names
from qwenvl.checkpoint.converting import official_tensors, same_bits
from qwenvl.checkpoint.folder import our_tensors
from qwenvl.checkpoint.official import from_official, to_official
from qwenvl.checkpoint.weights import stored_tensors
from qwenvl.model.cached_rows import new_rows
from qwenvl.model.llm import BRANCHES, ntk_alpha
from qwenvl.parity import answers, chats
from qwenvl.parity.certificate import Result
from qwenvl.parity.fixture import UNREADABLE, Case, Fixture, read_cases
from qwenvl.parsing import read_json


def certify(path: Path) -> Iterator[Result]:
    """Results of one model folder, or of every model folder in `path`."""
    path = Path(path).resolve()
    if not (path / "config.json").exists():
        for folder in sorted(each for each in path.iterdir() if (each / "config.json").exists()):
            yield from certify(folder)
        return
    fixture = Fixture(path)
    yield _run(f"{path.name} folder", _folder, fixture, {})
    for number, values in enumerate(read_cases(path / "cases.json")):
        kind = str(values.get("kind")) if isinstance(values, Mapping) else ""
        name = f"{path.name} {values.get('id', number) if isinstance(values, Mapping) else number}"
        if kind == "chat":
            yield from chats.certify_dialogue(name, fixture, values)
        elif kind in CHECKS:
            yield _run(name, CHECKS[kind], fixture, values)
        else:
            yield Result(name, "FAIL", None, None, f"case not understood: unknown kind {kind!r}")
    if (path / "chat_stream.json").exists():
        yield from chats.certify_streams(fixture, path / "chat_stream.json")


def _run(
    name: str, check: Callable[[Fixture, Case], None], fixture: Fixture, values: Mapping[str, Any]
) -> Result:
    try:
        case = Case(name, values, fixture.path)
        check(fixture, case)
        return case.result()
    except UNREADABLE as error:
        return Result(name, "FAIL", None, None, f"case not understood: {type(error).__name__}: {error}")


# === The folder ===

_META_SPECIALS = (
    "endoftext",
    "im_start",
    "im_end",
    "ref",
    "box",
    "quad",
    "img",
    "img_end",
    "imgpad",
    "n_vocab",
)

_WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "auto_map",
        "bf16",
        "fp16",
        "fp32",
        "initializer_range",
        "max_position_embeddings",
        "onnx_safe",
    }
    | {"scale_attn_weights", "tokenizer_type", "torch_dtype", "use_cache", "use_flash_attn", "visual"}
)
"""Keys of the official config.json that say who wrote it and how, or that the official code never reads."""


def _folder(fixture: Fixture, case: Case) -> None:
    """The config both ways, the number of parameters and the vocabulary."""
    official = read_json(fixture.path / "config.json")
    written = to_official(fixture.config, "float32")
    case.equal("config written and read again", from_official(written), fixture.config)
    for key in (written.keys() & official.keys()) - _WITHOUT_EFFECT:
        case.equal(f"config {key}", written[key], official[key])
    for key in (written["visual"].keys() & official["visual"].keys()) - {
        "mlp_ratio"
    }:  # see `from_official` above
        case.equal(f"config visual.{key}", written["visual"][key], official["visual"][key])
    case.equal("tensors that another export changes", _changed_by_export(fixture), [])
    meta, tokenizer = fixture.meta, fixture.tokenizer
    if "num_params" in meta:
        count = sum(tensor.numel() for tensor in fixture.model.state_dict().values())
        case.equal("parameters", count, meta["num_params"])
    if "n_ranks" in meta:
        case.equal("ranks", tokenizer.n_ranks, meta["n_ranks"])
    if "img_token_span" in meta:
        case.equal("slots per image", fixture.queries, meta["img_token_span"])
    for name, token in meta.get("special", {}).items():
        known = name in _META_SPECIALS
        case.equal(f"special {name}", getattr(tokenizer, name) if known else "not understood", token)


def _changed_by_export(fixture: Fixture) -> list[str]:
    """Official names that our export lacks, adds, or writes with another bit, precision or shape."""
    _, ours = our_tensors(fixture.path)
    recorded, exported = stored_tensors(fixture.path), official_tensors(ours, fixture.config)
    changed = recorded.keys() ^ exported.keys()
    changed |= {
        name
        for name in recorded.keys() & exported.keys()
        if not same_bits(recorded[name].read(), exported[name].read())
    }
    return sorted(changed)


# === Vision ===


def _vision(fixture: Fixture, case: Case) -> None:
    """Pixels, patches after every step of the encoder, the adapter before and after its norm and projection."""
    case.describes("fp32_vs_fp64_max_abs")
    case.check_images(fixture, case["image_keys"], case["images"])
    found = vision_stages(fixture, case["images"])
    if not case.tensors and not case.get("stats"):
        raise ValueError("a vision case without a recorded stage")
    for stage, recorded in case.get("stats", {}).items():
        if recorded.keys() != {"mean", "std"}:
            raise ValueError(f"statistics {sorted(recorded)} of {stage}, expected mean and std")
        spread = float(recorded["std"])
        case.close(f"mean of {stage}", found[stage].mean(), recorded["mean"], scale=spread)
        case.close(f"std of {stage}", found[stage].std(), recorded["std"], scale=spread)
    rows = {name: case.tensor(name) for name in ("vit_positions", "query_positions") if name in case.tensors}
    for name in case.tensors:
        if name in rows:
            continue
        if name == "resized_uint8_hwc":
            case.equal(name, _levels(fixture, case["images"]), case.tensor(name).tolist())
        elif name == "pixel_values":
            case.equal(name, found[name].tolist(), case.tensor(name).tolist())
        elif name in found:
            kept = rows.get("vit_positions" if name.startswith("vit_") else "query_positions")
            ours = found[name] if kept is None else found[name][:, kept]
            case.close(name, ours, case.tensor(name))


@torch.no_grad()
def vision_stages(fixture: Fixture, paths: list[str]) -> dict[str, Tensor]:
    """Every stage between pixels and visual tokens, under its recorded name; (images, rows, channels)."""
    model, pixels = fixture.model, fixture.pixels(paths)
    if pixels is None:
        raise ValueError("a vision case without images")
    watched: dict[str, nn.Module] = {
        "ln_pre": model.vision.norm_pre,
        "post": model.adapter.norm_out,
        **{f"vit_block_{index}": block for index, block in enumerate(model.vision.blocks)},
    }
    stages, inputs = _watch(watched, lambda: model.encode(pixels))
    blocks = {name: stages[name] for name in watched if name.startswith("vit_block_")}
    return {
        "pixel_values": pixels,
        "vit_embed": inputs["ln_pre"],
        "vit_ln_pre": stages["ln_pre"],
        **blocks,
        "vit_out": stages[f"vit_block_{len(blocks) - 1}"],
        "resampler_out": inputs["post"],
        "image_embeds": stages["returned"],
    }


def _levels(fixture: Fixture, paths: list[str]) -> list[Any]:
    size = fixture.config.vision.image_size
    return np.stack([images.resize(images.open_image(fixture.path / path), size) for path in paths]).tolist()


def _watch(
    modules: Mapping[str, nn.Module], call: Callable[[], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and first inputs of the modules during `call`, whose own result is called "returned"."""
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            outputs[name], inputs[name] = output, args[0]

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        outputs["returned"] = call()
    finally:
        for handle in handles:
            handle.remove()
    return outputs, inputs


# === Language model ===


@torch.no_grad()
def _forward(fixture: Fixture, case: Case) -> None:
    """One row without padding: hidden states, logits, argmax, loss, keys and values."""
    case.describes("fp32_vs_fp64_max_abs", "kv_cache")
    model, config = fixture.model, fixture.config.llm
    ids = answers.checked_prompt(fixture, case, case["input_ids"], case["image_keys"], case.get("prompt"))
    case.check_images(fixture, case["image_keys"], case["images"])
    row, pixels = torch.tensor([ids]), fixture.pixels(case["images"])
    alpha = ntk_alpha(len(ids), config)
    case.equal("ntk_alpha", alpha, case.get("ntk_alpha", alpha))
    long_context = torch.tensor([alpha])
    blocks = {f"{index + 1}": block for index, block in enumerate(model.llm.blocks)}
    outputs, inputs = _watch(blocks, lambda: model.hidden(row, pixels, long_context=long_context))
    outputs |= {"0": inputs["1"], f"{config.layers}": outputs["returned"]}
    logits = model.llm.head(outputs["returned"])[0]  # (tokens, vocab)

    kept = case.tensor("positions") if "positions" in case.tensors else torch.arange(len(ids))
    for layer, recorded in case.numbered("hidden_states.").items():
        case.close(f"hidden_states.{layer}", outputs[f"{layer}"][0, kept], recorded)
    if "logits" in case.tensors:
        case.close("logits", logits[kept], case.tensor("logits"))
    if "argmax" in case:
        case.equal("argmax", logits.argmax(-1).tolist(), case["argmax"])
    if "labels" in case:
        loss = _loss(logits, case["labels"])
        case.close("loss", loss, case["loss"])
        if "loss_fp64" in case:
            case.close("loss_fp64", loss, case["loss_fp64"])
    _check_cache(fixture, case, row, pixels, long_context, kept)


def _check_cache(
    fixture: Fixture, case: Case, row: Tensor, pixels: Tensor | None, long_context: Tensor, kept: Tensor
) -> None:
    """Keys after rotation and values; recorded (tokens, heads, channels), ours (heads, tokens, channels)."""
    keys, values = case.numbered("past_key."), case.numbered("past_value.")
    if not keys and not values:
        return
    cache = new_rows(fixture.config.llm, 1, device=row.device, dtype=torch.float32)
    fixture.model.hidden(row, pixels, cache=cache, long_context=long_context)
    stored = cache.cache.snapshot(cache.rows[0], 0, row.shape[1]).transpose(
        2, 3
    )  # (layers, 2, tokens, heads, head)
    for name, recorded, which in (("past_key", keys, 0), ("past_value", values, 1)):
        for layer, tensor in recorded.items():
            case.close(f"{name}.{layer}", stored[layer, which][kept], tensor)


def _loss(logits: Tensor, labels: list[int]) -> Tensor:
    """Mean over the labels that are not -100, each predicted by the position before it."""
    return F.cross_entropy(logits[:-1], torch.tensor(labels)[1:], ignore_index=-100)


@torch.no_grad()
def _forward_batch(fixture: Fixture, case: Case) -> None:
    """Padded rows: positions are absolute in the padded row and the stretch is that of the padded length."""
    model, config = fixture.model, fixture.config.llm
    rows, mask = answers.checked_batch(fixture, case)
    ids, pixels = torch.tensor(rows), fixture.pixels([path for row in case["images"] for path in row])
    batch, tokens = ids.shape
    hidden = model.hidden(
        ids,
        pixels,
        positions=torch.arange(tokens).expand(batch, -1),
        segments=mask * BRANCHES,
        long_context=torch.full((batch,), ntk_alpha(tokens, config)),
    )
    kept = case.numbered("positions.")
    if not any(case.numbered(name) for name in ("last_hidden.", "logits.")):
        raise ValueError("a padded batch without recorded numbers")
    for name, ours in (("last_hidden.", hidden), ("logits.", model.llm.head(hidden))):
        for row, recorded in case.numbered(name).items():
            if not mask[row, kept[row]].all():
                raise ValueError(f"positions.{row} names padding")
            case.close(f"{name}{row}", ours[row, kept[row]], recorded)


# === Training ===


def _train(fixture: Fixture, case: Case) -> None:
    """Loss and gradients as in training: no log-n, no stretch.

    The official code sends an empty image through the encoder when a row has none, so that its gradients there are
    zeros; ours has none, which is the same number. A null stands for what is never trained: our buffers.
    """
    case.describes("note")
    model, config = fixture.model, fixture.config
    ids = answers.checked_prompt(fixture, case, case["input_ids"], case["image_keys"], case.get("prompt"))
    case.check_images(fixture, case["image_keys"], case["images"])
    parameters = dict(model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass rounds four times more
        loss = _loss(model(torch.tensor([ids]), fixture.pixels(case["images"]))[0], case["labels"])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    case.close("loss", loss, case["loss"])
    ours: dict[str, Tensor] = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        official, layout = names.foreign(name, names.OFFICIAL) or (name, names.same)
        ours[official] = layout(torch.zeros_like(parameter) if gradient is None else gradient, config)
    recorded = case.get("grad_norms", {})
    if recorded:
        never = {names.foreign(name, names.OFFICIAL) or (name,) for name, _ in model.named_buffers()}
        case.equal(
            "tensors with gradients", {*ours}, {name for name in recorded if recorded[name] is not None}
        )
        case.equal(
            "tensors without", {name for name, *_ in never}, {n for n in recorded if recorded[n] is None}
        )
    for name in recorded.keys() & ours.keys():
        if recorded[name] is not None:
            case.close(f"gradient norm of {name}", ours[name].double().norm(), recorded[name])
    for name in case.tensors:
        if name.startswith("grad:"):
            case.close(name, ours[name.removeprefix("grad:")], case.tensor(name))


CHECKS: Mapping[str, Callable[[Fixture, Case], None]] = {
    "vision": _vision,
    "forward": _forward,
    "forward_batch": _forward_batch,
    "train": _train,
    **answers.CHECKS,
}
"""Kind of a case -> its check."""
