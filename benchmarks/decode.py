"""Prefill and decode of our engine against transformers' Qwen2 with the same weights.

    python benchmarks/decode.py                      all cells on the CPU
    python benchmarks/decode.py --device cuda        the same on a GPU

Ours is the whole engine: cache, choice of the token, its log-probability, ids on the host after every step.
Theirs is the bare forward of `Qwen2ForCausalLM` with its DynamicCache and an argmax: no `generate()` around it.
Both greedy, in one process, step by step in turn, so that a busy machine slows both alike; a cell's ratio is their
median time of a step over ours (above 1: ours is faster). Prefill is the first step, choice of the token included.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Prompt, Settings, stream
from qwenvl.model.vlm import QwenVL

LAYERS, HIDDEN, HEADS, MLP_WIDTH, VOCAB = 12, 1024, 16, 2816, 32_000


def build(device: str, dtype: torch.dtype) -> tuple[QwenVL, Qwen2ForCausalLM]:
    """The two models with one set of random weights."""
    torch.manual_seed(0)
    llm = LLMConfig(vocab_size=VOCAB, hidden=HIDDEN, layers=LAYERS, heads=HEADS, mlp_width=MLP_WIDTH)
    vision = VisionConfig(width=32, layers=1, heads=2, mlp_width=32, image_size=28)  # unused
    config = ModelConfig(
        vision=vision, adapter=AdapterConfig(queries=4, heads=8), llm=llm, imgpad_id=VOCAB - 1
    )
    ours = QwenVL(config).to(device, dtype).eval()
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=MLP_WIDTH,
            rms_norm_eps=llm.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": llm.rope_base},
            attn_implementation="sdpa",
        )
    )
    theirs = theirs.to(device, dtype).eval()
    weights = {}
    for name, tensor in ours.llm.state_dict().items():
        weights |= translated(name, tensor)
    theirs.load_state_dict(weights)
    return ours, theirs


def translated(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Our tensor under its name in transformers; `qkv` is ordered head by head and falls into three."""
    if ".attention.qkv." in name:
        place = name.replace("blocks.", "model.layers.").replace("attention.qkv", "self_attn.{}_proj")
        parts = tensor.unflatten(0, (HEADS, 3, -1)).unbind(1)
        return {place.format(letter): part.flatten(0, 1) for letter, part in zip("qkv", parts, strict=True)}
    for ours, theirs in {
        "embed": "model.embed_tokens",
        "blocks": "model.layers",
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attention.out": "self_attn.o_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.down": "mlp.down_proj",
        "head": "lm_head",
    }.items():
        name = name.replace(ours, theirs)
    return {"model.norm.weight" if name == "norm.weight" else name: tensor}


def ours_by_step(model: QwenVL, ids: torch.Tensor, new: int) -> Iterator[list[int]]:
    """The ids of every row, step by step; the first step is the prefill."""
    prompts = [Prompt(ids=tuple(row)) for row in ids.tolist()]
    tokens = stream(model, prompts, Settings(max_new_tokens=new))
    while step := [token.id for token in islice(tokens, len(prompts))]:
        yield step


@torch.inference_mode()
def theirs_by_step(model: Qwen2ForCausalLM, ids: torch.Tensor, new: int) -> Iterator[list[int]]:
    """The same with transformers."""
    ids = ids.to(model.device)
    cache = DynamicCache(config=model.config)
    for _ in range(new):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        yield ids[:, 0].tolist()


def side_by_side(ours: Iterator[list[int]], theirs: Iterator[list[int]], new: int) -> list[dict[str, float]]:
    """Seconds of each step of both, taken in turn; who goes first changes with every step."""
    runs = {"ours": ours, "theirs": theirs}
    times: list[dict[str, float]] = []
    for number in range(new):
        seconds, written = {}, {}
        for name in sorted(runs, reverse=bool(number % 2)):
            start = perf_counter()
            written[name] = next(runs[name])
            seconds[name] = perf_counter() - start
        times.append(seconds)
    return times


def compare(
    device: str, dtype: str, batch: int, prompt: int, new: int, rounds: int
) -> list[dict[str, object]]:
    """The prefill cell and the decode cell of one batch size and precision."""
    ours, theirs = build(device, getattr(torch, dtype))
    ids = torch.randint(0, VOCAB - 1, (batch, prompt), generator=torch.Generator().manual_seed(1))
    short = ids[:, :16]  # warm-up, and the check that both are the same model
    written = list(ours_by_step(ours, short, 4)), list(theirs_by_step(theirs, short, 4))
    if dtype == "float32" and written[0] != written[1]:
        raise SystemExit("the two models do not write the same ids; the comparison would mean nothing")
    steps: dict[str, list[dict[str, float]]] = {"prefill": [], "decode": []}
    for _ in range(rounds):
        prefill, *decode = side_by_side(ours_by_step(ours, ids, new), theirs_by_step(theirs, ids, new), new)
        steps["prefill"].append(prefill)
        steps["decode"].extend(decode)
    cells: list[dict[str, object]] = []
    for phase, times in steps.items():
        median = {name: statistics.median(step[name] for step in times) for name in ("ours", "theirs")}
        tokens = batch * (prompt if phase == "prefill" else 1)
        cells.append(
            {
                **{"phase": phase, "dtype": dtype, "batch": batch, "device": device},
                **{f"{name}_tokens_per_s": round(tokens / seconds, 1) for name, seconds in median.items()},
                "ratio": round(median["theirs"] / median["ours"], 3),
            }
        )
    del ours, theirs
    gc.collect()
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt (256)")
    parser.add_argument("--new", type=int, default=24, help="tokens written behind it (24)")
    parser.add_argument("--rounds", type=int, default=5, help="prompts answered per cell (5)")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="one JSON object per cell")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, {args.device}, {threads} threads, {LAYERS} x {HIDDEN}", file=sys.stderr
    )
    for dtype in args.dtype:
        for batch in args.batch:
            for cell in compare(args.device, dtype, batch, args.prompt, args.new, args.rounds):
                if args.json:
                    print(json.dumps(cell), flush=True)
                else:
                    speed = (
                        f"{cell['ours_tokens_per_s']:>9} tokens/s, theirs {cell['theirs_tokens_per_s']:>9}"
                    )
                    print(
                        f"{cell['phase']:8} {dtype:9} batch {batch}   ours {speed}   ratio {cell['ratio']}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
