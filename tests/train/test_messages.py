"""What an update costs beside arithmetic: the messages between processes, and the waits of the host for its device."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from qwenvl.checkpoint import folder
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, launcher
from qwenvl.train.loop import train
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.stages import StageConfig

from .conftest import source, stage

CPU = Runtime.detect(device="cpu", dtype="float32")
MIXED = stage(
    micro_documents=2,
    data=(source("tasks"), source("text", 3.0)),
    optim=dataclasses.replace(stage().optim, steps=3),
    save_every=3,
)
"""Four micro-batches an update, some without images, and no state before the last."""
MESSAGES = (
    *("all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "reduce_scatter_tensor"),
    *("broadcast", "broadcast_object_list", "barrier", "gather_object", "reduce", "scatter", "all_to_all"),
)
WAITS = (
    "item",
    "tolist",
    "cpu",
    "nonzero",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "unique",
)


class Reads(TorchFunctionMode):
    """Counts what a GPU would have to be waited for, asked by the training loop: torch's own files aside."""

    def __init__(self, found: Counter[str]) -> None:
        self._found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS:
            caller = Path(sys._getframe(1).f_code.co_filename)
            if caller.parent.name == "train":
                self._found[f"{caller.name} {name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(found: Counter[str]) -> Iterator[None]:
    """Every message that qwenvl sends with torch.distributed, by name, and every read."""

    def counted(name: str) -> Callable[..., Any]:
        sends = getattr(dist, name)

        def send(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return sends(*args, **kwargs)

        return send

    with pytest.MonkeyPatch.context() as patch, Reads(found):
        for name in MESSAGES:
            patch.setattr(dist, name, counted(name))
        yield


def second_update(start: Path, out: Path, trial: StageConfig, parallel: ParallelConfig) -> Counter[str]:
    """What is sent and read between the ends of the first and the second of three updates."""
    found: Counter[str] = Counter()
    ends: list[Counter[str]] = []

    def watch(model: QwenVL, stage: StageConfig, step: int) -> None:
        ends.append(found.copy())

    with counting(found):
        train(folder.load(start, CPU), Tokenizer.load(start), trial, out, CPU, parallel=parallel, watch=watch)
    return ends[1] - ends[0]


def count_each(start: Path, out: Path) -> None:
    """In every process."""
    torch.set_num_threads(1)
    for shard in ("none", "full"):
        found = second_update(start, out / shard, MIXED, ParallelConfig(shard=shard))  # type: ignore[arg-type]
        (out / f"{shard}-{distributed.rank()}").write_text(repr(sorted(found.items())))


READ_ONCE = [("distributed.py tolist", 1), ("loss.py nonzero", 4)]
"""The totals; and labels that lie on the CPU, once a micro-batch."""


def test_an_update_waits_once_for_the_device(start: Path, tmp_path: Path) -> None:
    assert sorted(second_update(start, tmp_path, MIXED, ParallelConfig()).items()) == READ_ONCE


def test_an_update_sends_its_gradients_and_one_message(start: Path, tmp_path: Path) -> None:
    """Counts, losses, norms, the request to stop and seconds of work go together; FSDP's own are no call of ours."""
    launcher.run(2, count_each, start, tmp_path)
    reads = [(name, count if "tolist" in name else count // 2) for name, count in READ_ONCE]
    for rank in (0, 1):
        assert (tmp_path / f"none-{rank}").read_text() == repr([("all_reduce", 2), *reads])
        assert (tmp_path / f"full-{rank}").read_text() == repr([("all_reduce", 1), *reads])


def test_a_source_that_the_objective_does_not_name_is_refused(start: Path, tmp_path: Path) -> None:
    """Processes add up numbers without telling their names, so that a name too many would be added to another."""
    from qwenvl.train.objectives import Objective, next_token

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        return dataclasses.replace(next_token(model, tokenizer, stage), sources=("tasks",))

    with pytest.raises(
        ValueError, match=r"the objective tells \['text'\] apart; expected some of its `sources`"
    ):
        train(folder.load(start, CPU), Tokenizer.load(start), MIXED, tmp_path, CPU, make_objective=objective)
