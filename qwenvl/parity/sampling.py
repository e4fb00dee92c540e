"""Fixtures of the sampling warpers and of the official stop-word rule (`sampling.json`), checked against ours."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from qwenvl.generate.sampling import SamplingConfig, stopped, warp
from qwenvl.parity.certificate import Result
from qwenvl.parsing import read_json

TOLERANCE = 1e-4
"""Of the standard deviation of the recorded probabilities; never below the rounding of float32, 1e-6."""

_KNOWN = frozenset({"order", "cases", "stop_words"})
_PARAMETERS = frozenset({"temperature", "top_k", "top_p", "repetition_penalty"})


def certify(path: Path) -> Iterator[Result]:
    """One result for every recorded distribution and for every recorded decision of the stop-word processor."""
    fixture = read_json(Path(path))
    if not isinstance(fixture, dict) or not (fixture.get("cases") or fixture.get("stop_words")):
        yield Result("sampling", "FAIL", None, None, "case not understood: no list of cases")
        return
    for key in sorted(set(fixture) - _KNOWN):
        yield Result(f"sampling {key}", "FAIL", None, None, "case not understood: unknown kind")
    for kind, check in (("cases", _warp), ("stop_words", _stop_words)):
        for number, case in enumerate(fixture.get(kind, [])):
            name = f"sampling {kind} {number}"
            try:
                yield check(name, case)
            except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
                yield Result(name, "FAIL", None, None, f"case not understood: {type(error).__name__} {error}")


def _warp(name: str, case: Mapping[str, Any]) -> Result:
    """The warped distribution: the same tokens survive, with the same probabilities."""
    _require_keys(case, {"params", "input_ids", "logits", "kept", "probs"})
    given = {key: value for key, value in case["params"].items() if value is not None}
    if unknown := set(given) - _PARAMETERS:
        raise ValueError(f"unknown parameters {sorted(unknown)}")
    name = " ".join([name, *(f"{key}={value}" for key, value in given.items())])
    with torch.device("cpu"):  # where they were recorded: how a sort orders equal scores is up to the device
        logits = torch.tensor([case["logits"]], dtype=torch.float32)
        previous = torch.tensor([case["input_ids"]], dtype=torch.long)
    scores = warp(logits, SamplingConfig(greedy=False, **given), previous)[0]
    ours = scores.softmax(dim=-1)
    kept = {token for token, score in enumerate(scores.tolist()) if score != float("-inf")}
    drawable = {token for token in kept if ours[token] > 0}  # a kept token's probability may underflow
    disputed = sorted((set(case["kept"]) - kept) | (drawable - set(case["kept"])))

    official = torch.zeros_like(ours)
    for token, probability in case["probs"].items():
        official[int(token)] = probability
    tolerance = max(TOLERANCE * official[case["kept"]].std(correction=0).item(), 1e-6)
    largest = (ours - official).abs().max().item()
    note = f"tokens kept by one side only: {disputed}" if disputed else ""
    return Result(name, "PASS" if largest <= tolerance and not disputed else "FAIL", largest, tolerance, note)


def _stop_words(name: str, case: Mapping[str, Any]) -> Result:
    """Whether end-of-text is forced: the whole sequence, prompt included, ends with a stop sequence.

    That is our `stopped` over prompt and answer together, without the sequence that is end-of-text alone.
    """
    _require_keys(case, {"stop_words_ids", "eos_token_id", "input_ids", "forced"})
    if not isinstance(case["forced"], bool) or not all(case["stop_words_ids"]):
        raise ValueError("`forced` must be true or false, and no stop sequence empty")
    sequences = [ids for ids in case["stop_words_ids"] if ids != [case["eos_token_id"]]]
    forced = stopped(case["input_ids"], sequences)
    note = "" if forced == case["forced"] else f"forced: ours {forced}, official {case['forced']}"
    return Result(name, "FAIL" if note else "PASS", None, None, note)


def _require_keys(case: Mapping[str, Any], expected: set[str]) -> None:
    if set(case) != expected:
        raise ValueError(f"keys {sorted(case)}, expected {sorted(expected)}")
