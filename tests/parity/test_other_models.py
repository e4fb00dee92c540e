"""Shapes that no fixture has: random official checkpoints, recorded with `official_reference`, then certified."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official_reference import Reference, random_weights
from PIL import Image as pillow
from safetensors.torch import save_file
from torch import Tensor

from qwenvl.parity import models, official
from qwenvl.tokenizer import Tokenizer

VOCABULARY = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4" / "qwen.tiktoken"

SMALL: dict[str, Any] = {
    "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96, "seq_length": 8,
    "layer_norm_epsilon": 1e-6, "no_bias": True, "rotary_pct": 1.0, "rotary_emb_base": 10000, "ranks": 300,
    "use_dynamic_ntk": True, "use_logn_attn": True,
}  # fmt: skip
"""What the shapes below change; `ranks` is the size of their vocabulary."""

EYE = {
    "width": 40,
    "heads": 5,
    "layers": 1,
    "mlp_ratio": 2.6,
    "image_size": 40,
    "patch_size": 8,
    "n_queries": 9,
}

SHAPES: dict[str, dict[str, Any]] = {
    # prompts of 20 x the trained length; a quarter of the channels turns; biases everywhere
    "long": {"hidden_size": 256, "num_attention_heads": 8, "no_bias": False, "rotary_pct": 0.25, "ranks": 270,
             "layer_norm_epsilon": 1e-5, "visual": {**EYE, "layers": 2}},
    # no projection into the adapter, three adapter heads, log-n without NTK, positions not interpolated
    "wide": {"hidden_size": 384, "num_attention_heads": 3, "num_hidden_layers": 1, "layer_norm_epsilon": 1e-3,
             "seq_length": 20, "rotary_emb_base": 2.5e5, "use_dynamic_ntk": False,
             "visual": {**EYE, "width": 384, "heads": 12, "mlp_ratio": 0.34, "image_size": 48, "patch_size": 3}},
    # NTK without log-n; as many queries as patches, so that no position of the adapter is interpolated
    "square": {"num_hidden_layers": 3, "rotary_pct": 0.5, "rotary_emb_base": 777, "seq_length": 32, "ranks": 256,
               "use_logn_attn": False, "visual": {**EYE, "image_size": 64, "patch_size": 16, "n_queries": 16}},
}  # fmt: skip


class Recorder:
    """Writes a folder in the form of the golden fixtures."""

    def __init__(self, folder: Path, shape: dict[str, Any]) -> None:
        self.folder, ranks = folder, shape["ranks"]
        self.eos, self.img = ranks, ranks + 214
        visual = {**shape["visual"], "image_start_id": self.img, "output_dim": shape["hidden_size"]}
        config = {key: value for key, value in shape.items() if key != "ranks"}
        config |= {"model_type": "qwen", "vocab_size": ranks + 225, "visual": visual}
        config["kv_channels"] = shape["hidden_size"] // shape["num_attention_heads"]
        lines = VOCABULARY.read_bytes().splitlines(keepends=True)[:ranks]
        (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
        (folder / "config.json").write_text(json.dumps(config))
        weights = random_weights(config, seed=len(lines))
        save_file(weights, folder / "model.safetensors")
        self.model, self.queries = Reference(config, weights), visual["n_queries"]
        self.size, self.cases = visual["image_size"], []
        noise = np.random.default_rng(ranks).integers(0, 256, (2, 23, 31, 3), dtype=np.uint8)
        for name, levels in zip("ab", noise, strict=True):
            pillow.fromarray(levels).save(folder / f"{name}.png")
        meta = {"image_keys": {"a": "a.png", "b": "b.png"}, "img_token_span": self.queries, "n_ranks": ranks}
        (folder / "meta.json").write_text(json.dumps(meta))

    def slots(self, key: str) -> list[int]:
        """The official ids of an image: its path as bytes, then pads."""
        return [self.img, *key.encode(), *[self.img + 2] * (self.queries - len(key)), self.img + 1]

    def words(self, count: int, seed: int) -> list[int]:
        return np.random.default_rng(seed).integers(0, 250, count).tolist()

    def pixels(self, keys: str) -> Tensor | None:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        levels = [
            np.asarray(
                pillow.open(self.folder / f"{key}.png").resize([self.size] * 2, pillow.Resampling.BICUBIC)
            )
            for key in keys
        ]
        if not levels:
            return None
        shares = torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2).float() / 255
        return (shares - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    def add(self, kind: str, tensors: dict[str, Tensor] | None = None, **values: Any) -> None:
        name = f"{kind}_{len(self.cases)}"
        case = {"kind": kind, "id": name, **values}
        if tensors:
            case["tensors"] = f"{name}.safetensors"
            save_file({k: v.contiguous().clone() for k, v in tensors.items()}, self.folder / case["tensors"])
        self.cases.append(case)

    def done(self) -> dict[str, str]:
        """The verdict on every case."""
        (self.folder / "cases.json").write_text(json.dumps(self.cases))
        return {result.case: f"{result.status} {result.note}" for result in models.certify(self.folder)}

    @torch.no_grad()
    def greedy(self, ids: list[list[int]], mask: Tensor, keys: str, steps: int) -> tuple[Tensor, Tensor]:
        """Ids and logits, (batch, steps[, vocab]): whole rows again at every step, the stretch of the prompt."""
        rows, prefill, logits = torch.tensor(ids), len(ids[0]), []
        for _ in range(steps):
            found = self.model.read(rows, self.pixels(keys), mask, prefill=prefill)["logits"][:, -1]
            logits.append(found)
            rows = torch.cat([rows, found.argmax(-1, keepdim=True)], dim=1)
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
        return rows[:, prefill:], torch.stack(logits, dim=1)


def images(keys: str) -> dict[str, list[str]]:
    return {"image_keys": list(keys), "images": [f"{key}.png" for key in keys]}


def record_stages(recorder: Recorder) -> None:
    model, layers = recorder.model, recorder.model.config["num_hidden_layers"]
    with torch.no_grad():
        recorder.add("vision", model.see(recorder.pixels("ba")), **images("ba"))  # type: ignore[arg-type]
        for count, keys in ((7, ""), (60, "ab"), (150, "b")):
            ids = [*recorder.words(count, 1), *(i for key in keys for i in recorder.slots(key)), 5, 6]
            labels = [-100, *ids[1:]]
            labels = [label if label < 250 else -100 for label in labels]
            found = {k: v[0] for k, v in model.read(torch.tensor([ids]), recorder.pixels(keys)).items()}
            kept = {k: v for k, v in found.items() if not k.startswith("past_") or k.endswith(".0")}
            assert f"hidden_states.{layers}" in kept
            loss = F.cross_entropy(found["logits"][:-1], torch.tensor(labels)[1:]).item()
            argmax, alpha = found["logits"].argmax(-1).tolist(), model.alpha(len(ids))
            facts = {"input_ids": ids, "argmax": argmax, "ntk_alpha": alpha, "labels": labels, "loss": loss}
            recorder.add("forward", kept, **facts, **images(keys))


def record_answers(recorder: Recorder) -> None:
    for count, keys in ((5, "a"), (140, "ba")):
        ids = [*(i for key in keys for i in recorder.slots(key)), *recorder.words(count, 2)]
        generated, logits = recorder.greedy([ids], torch.ones(1, len(ids), dtype=torch.long), keys, 6)
        written = generated[0].tolist()
        written = written[: written.index(recorder.eos) + 1] if recorder.eos in written else written
        recorder.add(
            "generate",
            {"step_logits": logits[0, : len(written)]},
            **{"input_ids": ids, "generated": written, "max_new_tokens": 6, **images(keys)},
        )


def record_batches(recorder: Recorder) -> None:
    rows = [
        [*recorder.words(9, 3), *recorder.slots("a")],
        [*recorder.slots("b"), *recorder.words(30, 4)],
        [7],
    ]
    longest = max(map(len, rows))
    for side in ("left", "right"):
        padded, masks = [], []
        for row in rows:
            pad, ones = [recorder.eos] * (longest - len(row)), [1] * len(row)
            padded.append([*pad, *row] if side == "left" else [*row, *pad])
            masks.append([*[0] * len(pad), *ones] if side == "left" else [*ones, *[0] * len(pad)])
        values = {"input_ids": padded, "attention_mask": masks, "padding_side": side}
        values |= {"image_keys": [["a"], ["b"], []], "images": [["a.png"], ["b.png"], []]}
        mask = torch.tensor(masks)
        with torch.no_grad():
            found = recorder.model.read(torch.tensor(padded), recorder.pixels("ab"), mask)
        last = found[f"hidden_states.{recorder.model.config['num_hidden_layers']}"]
        tensors = {}
        for i, real in enumerate(mask):
            (places,) = real.nonzero(as_tuple=True)
            tensors |= {f"positions.{i}": places, f"logits.{i}": found["logits"][i, places]}
            tensors[f"last_hidden.{i}"] = last[i, places]
        recorder.add("forward_batch", tensors, **values)
        if side == "left":
            generated, _ = recorder.greedy(padded, mask, "ab", 5)
            recorder.add(
                "generate_batch", None, **values, max_new_tokens=5, generated=until(generated, recorder)
            )


def until(generated: Tensor, recorder: Recorder) -> list[list[int]]:
    """Behind its end, a row is padded with end-of-text."""
    ended = (generated == recorder.eos).cumsum(1) > 0
    return generated.masked_fill(ended, recorder.eos).tolist()


def record_training(recorder: Recorder) -> None:
    ids = [*recorder.words(40, 5), *recorder.slots("a"), 9, 8, 7]
    labels = [-100] * len(recorder.words(40, 5)) + [i if i < 250 else -100 for i in ids[40:]]
    weights = {name: tensor.clone().requires_grad_() for name, tensor in recorder.model.weights.items()}
    model = Reference(recorder.model.config, weights)
    logits = model.read(torch.tensor([ids]), recorder.pixels("a"), training=True)["logits"][0]
    loss = F.cross_entropy(logits[:-1], torch.tensor(labels)[1:])
    loss.backward()
    never = "transformer.visual.attn_pool.pos_embed"
    norms = {n: None if n == never else w.grad.double().norm().item() for n, w in weights.items()}  # type: ignore[union-attr]
    shown = "transformer.visual.attn_pool.attn.in_proj_weight"
    recorder.add(
        "train",
        {f"grad:{shown}": weights[shown].grad},  # type: ignore[dict-item]
        **{"input_ids": ids, "labels": labels, "loss": loss.item(), "grad_norms": norms, **images("a")},
    )


def record_chat(recorder: Recorder) -> None:
    """Two turns, the second about an image; the text scheme is ours, told to read as the official one does."""
    tokenizer, turns, history = Tokenizer.load(recorder.folder), [], []
    for query, keys in (("hi, who are you?", ""), ("Picture 1: <img>a</img>\nWhat is <ref>it</ref>?", "a")):
        raw_text, context = official.make_context(tokenizer, query, history, "Be brief.")
        if keys:  # 256 slots become those of this model
            place = context.index(recorder.img) + 1
            context = [*context[: place + recorder.queries], *context[place + official.SLOTS :]]
        ones = torch.ones(1, len(context), dtype=torch.long)
        generated = recorder.greedy([context], ones, keys, 5)[0][0].tolist()
        assert not {tokenizer.im_start, tokenizer.im_end, tokenizer.endoftext} & {*generated}
        response, _ = official.decode_tokens(tokenizer, raw_text, context, generated)
        history = [*history, [query, response]]
        turn = {"query": query, "raw_text": raw_text, "context_ids": context, "generated": generated}
        turn |= {"stop_words_ids": [[tokenizer.im_end], [tokenizer.im_start]], "response": response}
        turns.append({**turn, "history_after": history, **images(keys)})
    recorder.add("chat", None, turns=turns, system="Be brief.", max_new_tokens=5, max_window_size=6144)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_another_shape_is_certified(shape: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, {**SMALL, **SHAPES[shape]})
    record_stages(recorder)
    record_answers(recorder)
    record_batches(recorder)
    record_training(recorder)
    record_chat(recorder)
    verdicts = recorder.done()
    assert len(verdicts) == 13
    failed = {case: verdict for case, verdict in verdicts.items() if verdict.startswith("FAIL")}
    assert not failed, failed
    fixed = [case for case, verdict in verdicts.items() if verdict.startswith("FIXED")]
    assert all("generate_batch" in case or "chat" in case for case in fixed)
