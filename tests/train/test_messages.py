"""What an update costs beside arithmetic: the messages between processes, and the waits of the host for its device."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small_drawings
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwenvl.checkpoint import folder
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, launcher, toy
from qwenvl.train.loop import OBJECTIVES, train
from qwenvl.train.objectives import next_token
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
GATHERS = ("all_gather_into_tensor", "all_gather_single")
SCATTERS = ("reduce_scatter_tensor", "reduce_scatter_single")
"""What FSDP sends; torch has renamed them."""
MESSAGES = (
    *("all_reduce", "all_gather", "all_gather_object", *GATHERS, *SCATTERS),
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


class DeviceWaits(TorchDispatchMode):
    """Counts the kernels that the host waits for, on what a GPU would hold: weights, what `runtime.on_device` puts
    there, and all that is computed from either, forward and backward.
    """

    KERNELS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "_unique2",
        "unique_dim",
    )
    BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._there: dict[int, Any] = {}  # holds the storages, so that no number is used twice

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = storage
        return tensor

    def _is_there(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self._there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = any(map(self._is_there, given))
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in self.BY_MASK and any(each.dtype == torch.bool for each in given[1:])
        if there and (name in self.KERNELS or by_mask):
            self.found[name] += 1
        made = func(*args, **kwargs)
        if there:
            for each in tree_leaves(made):
                if isinstance(each, torch.Tensor):
                    self.put(each)
        return made


def waits_of(objective: Any, documents: range, patch: pytest.MonkeyPatch) -> Counter[str]:
    """Of one micro-batch, forward and backward."""
    modes = DeviceWaits()
    for module in ("objectives", "loss", "toy", "naming", "alignment"):
        patch.setattr(f"qwenvl.train.{module}.on_device", lambda tensor, device: modes.put(tensor.to(device)))
    patch.setattr("qwenvl.model.vlm._runs_behind", lambda device: True)
    for parameter in objective.module.parameters():
        modes.put(parameter.data)
    batch = objective.placed(objective.batch(documents))
    with modes:
        objective.loss(batch).total.backward()
    return modes.found


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
        for name in (each for each in MESSAGES if hasattr(dist, each)):
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
    cases = {
        "none": ParallelConfig(),
        "full": ParallelConfig(shard="full"),
        "optimizer": ParallelConfig(shard="optimizer"),
        "last": ParallelConfig(shard="optimizer", reduce_once_per_step=True),
    }
    for name, parallel in cases.items():
        found = second_update(start, out / name, MIXED, parallel)
        gathers, scatters = (sum(found.pop(each, 0) for each in names) for names in (GATHERS, SCATTERS))
        text = repr((sorted(found.items()), gathers, scatters))
        (out / f"{name}-{distributed.rank()}").write_text(text)


READ_ONCE = [("distributed.py tolist", 1)]
"""The totals. What is learned is found where labels are read, by another thread."""


def test_an_update_waits_once_for_the_device(start: Path, tmp_path: Path) -> None:
    assert sorted(second_update(start, tmp_path, MIXED, ParallelConfig()).items()) == READ_ONCE


def test_a_micro_batch_waits_for_no_kernel(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to count the places of images nor to find what is learned, forward or backward."""
    model, words = folder.load(start, CPU), Tokenizer.load(start)
    objective = next_token(model, words, MIXED)
    assert any(objective.batch(range(at, at + 2)).images for at in (0, 2, 4))
    for at in (0, 2, 4):
        assert waits_of(objective, range(at, at + 2), monkeypatch) == Counter()
    assert model.vision.position.grad is not None


def test_dense_labels_wait_for_no_kernel(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = stage(objective="dense_labels", trains=("vision",), bfloat16=False)
    model, words = folder.load(start, CPU), Tokenizer.load(start)
    assert waits_of(toy.dense(model, words, dense), range(2), monkeypatch) == Counter()


@pytest.mark.parametrize("objective", ["names", "align", "pointing"])
def test_what_drawings_teach_waits_for_no_kernel(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nouns, words, places and boxes, of drawings and of scenes with signs that nobody has named before."""
    monkeypatch.setattr("qwenvl.data.drawings.labels.LEAST", 2)
    folder_of_drawings = small_drawings.fetched(tmp_path)
    read = small_drawings.stage(folder_of_drawings)
    if objective == "align":
        scenes = SourceConfig(paths=("drawings:scenes",), images=str(folder_of_drawings))
        read = dataclasses.replace(read, objective="align", data=(*read.data, scenes), image_size=28)
    if objective == "pointing":
        scenes = SourceConfig(paths=("drawings:scenes",), images=str(folder_of_drawings))
        read = dataclasses.replace(read, objective="pointing", data=(scenes,), sequence_length=320)
    model = small_drawings.small(blocks=3, heads=4)
    made = OBJECTIVES[objective](model, small_drawings.LETTERS, read)
    assert waits_of(made, range(4), monkeypatch) == Counter()


def test_a_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would see."""
    modes = DeviceWaits()
    weight = modes.put(torch.randn(4, 4))
    with modes:
        bool((weight * 2).sum() > 0), weight[weight > 0], weight.view(-1).nonzero()
        bool(torch.ones(2).sum() > 0)  # never left the CPU
    assert modes.found == Counter({"_local_scalar_dense": 1, "index": 1, "nonzero": 1})


@pytest.mark.parametrize("images", [0, 2])
def test_rows_whose_images_do_not_fit_are_refused_before_the_device(start: Path, images: int) -> None:
    objective = next_token(folder.load(start, CPU), Tokenizer.load(start), MIXED)
    rows = next(rows for at in range(0, 8, 2) if (rows := objective.batch(range(at, at + 2))).images)
    wrong = dataclasses.replace(rows, images=(rows.images * 2)[: 0 if not images else len(rows.images) + 1])
    with pytest.raises(ValueError, match="image placeholders in the ids but"):
        objective.placed(wrong)


def test_an_update_sends_its_gradients_and_one_message(start: Path, tmp_path: Path) -> None:
    """Counts, losses, norms, the request to stop and seconds of work go together; the rest is FSDP's.

    It has seven groups of weights: the two blocks of each side, what else the ViT has, the adapter, the rest. Where the
    optimizer's state alone is cut, two micro-batches of a process gather each once, not twice.
    """
    launcher.run(2, count_each, start, tmp_path)
    expected = {
        "none": ([("all_reduce", 2), *READ_ONCE], 0, 0),
        "full": ([("all_reduce", 1), *READ_ONCE], 26, 14),
        "optimizer": ([("all_reduce", 1), *READ_ONCE], 7, 14),
        "last": ([("all_reduce", 1), *READ_ONCE], 7, 7),
    }
    for name, messages in expected.items():
        assert [(tmp_path / f"{name}-{rank}").read_text() for rank in (0, 1)] == [repr(messages)] * 2, name


def test_a_source_that_the_objective_does_not_name_is_refused(start: Path, tmp_path: Path) -> None:
    """Processes add up numbers without telling their names, so that a name too many would be added to another."""
    from qwenvl.train.objectives import Objective, next_token

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        return dataclasses.replace(next_token(model, tokenizer, stage), sources=("tasks",))

    with pytest.raises(
        ValueError, match=r"the objective tells \['text'\] apart; expected some of its `sources`"
    ):
        train(folder.load(start, CPU), Tokenizer.load(start), MIXED, tmp_path, CPU, make_objective=objective)
