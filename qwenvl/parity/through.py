"""The certificate through another program that serves the model: its greedy answers against the recorded ones.

The fixtures are those of `models`; of each folder the answers are asked (kinds `generate` and `generate_batch`), for a
program shows nothing else of itself. Ids must be equal, log-probabilities within the tolerance of what was recorded of
the logits, and of what this project computes where nothing was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwenvl.generate import engine
from qwenvl.parity import answers
from qwenvl.parity.certificate import NotHere, Result
from qwenvl.parity.fixture import Case, Fixture, read_cases

Answers = Callable[[Sequence[tuple[Sequence[int], Sequence[Path]]], int], list[tuple[list[int], list[float]]]]
"""Prompts (ids with placeholders, files of images), a number of tokens -> (ids, log-probabilities) of each answer."""

Door = Callable[[Path], AbstractContextManager[Answers]]
"""Opens a model folder in the other program; it and `Answers` raise ValueError for what the program does not serve."""


def judged(door: Door) -> Callable[[Path], Iterator[Result]]:
    """What `certificate.certify` asks about each model folder."""
    return partial(certify, door=door)


def certify(path: Path, door: Door) -> Iterator[Result]:
    """Results of the answers of one model folder; NOT RUN, with the reason, for what the program does not serve."""
    cases = [values for values in read_cases(path / "cases.json") if values.get("kind") in CHECKS]
    if not cases:
        return
    fixture = Fixture(path)
    try:
        with door(path) as ask:
            for values in cases:
                yield _run(fixture, values, ask)
    except ValueError as refused:
        yield Result(path.name, "NOT RUN", None, None, str(refused))


def _run(fixture: Fixture, values: Mapping[str, Any], ask: Answers) -> Result:
    case = Case(f"{fixture.path.name} {values.get('id')}", values, fixture.path)
    case.describes(*values)
    for name in case.tensors:
        case.tensor(name)
    try:
        CHECKS[values["kind"]](fixture, case, ask)
    except NotHere as refused:
        return Result(case.name, "NOT RUN", None, None, str(refused))
    return case.result()


def _one(fixture: Fixture, case: Case, ask: Answers) -> None:
    ids, _ = fixture.split_paths(case["input_ids"])
    recorded = list(case["generated"])
    if case.get("stop_words_ids"):  # the official code writes end-of-text behind a stop word
        recorded = recorded[:-1]
    ((written, logprobs),) = _asked(ask, [(ids, _files(fixture, case["images"]))], case["max_new_tokens"])
    case.equal("generated", written[: len(recorded)], recorded)
    _compare(fixture, case, ids, case["images"], recorded, logprobs)


def _batch(fixture: Fixture, case: Case, ask: Answers) -> None:
    """Rows without their padding: where the official answer depends on it, ours is the measure."""
    rows, mask = answers.checked_batch(fixture, case)
    prompts = [row[-sum(real) :] for row, real in zip(rows, mask.tolist(), strict=True)]
    files = [_files(fixture, paths) for paths in case["images"]]
    found = _asked(ask, list(zip(prompts, files, strict=True)), case["max_new_tokens"])
    end = fixture.tokenizer.endoftext
    settings = engine.Settings(max_new_tokens=case["max_new_tokens"], stop=((end,),))
    asked = [
        engine.Prompt(ids=tuple(ids), pixels=fixture.arrays(paths))
        for ids, paths in zip(prompts, case["images"], strict=True)
    ]
    ours = [list(answer.ids) for answer in engine.generate(fixture.model, asked, settings)]
    for (written, logprobs), own, ids, paths in zip(found, ours, prompts, case["images"], strict=True):
        case.equal("generated", written, own)
        _compare(fixture, case, ids, paths, own, logprobs)


def _asked(ask: Answers, prompts: Any, new_tokens: int) -> list[tuple[list[int], list[float]]]:
    try:
        return ask(prompts, new_tokens)
    except ValueError as refused:
        raise NotHere(str(refused)) from None


def _compare(
    fixture: Fixture, case: Case, ids: Sequence[int], paths: Any, written: list[int], logprobs: list[float]
) -> None:
    prompt = engine.Prompt(ids=tuple(ids), pixels=fixture.arrays(paths))
    logits = answers.step_logits(fixture.model, prompt, written)[:-1]
    if "step_logits" in case.tensors:
        recorded = case.tensor("step_logits")
        logits = torch.cat([recorded, logits[len(recorded) :]])
    expected = logits.log_softmax(-1)[torch.arange(len(written)), torch.tensor(written)]
    case.close("log-probabilities", torch.tensor(logprobs[: len(written)]), expected, scale=1.0)


def _files(fixture: Fixture, paths: Sequence[str]) -> list[Path]:
    return [fixture.path / path for path in paths]


CHECKS: Mapping[str, Callable[[Fixture, Case, Answers], None]] = {"generate": _one, "generate_batch": _batch}
"""Kind of a case -> its check."""
