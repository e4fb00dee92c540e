"""Training state: a folder that appears whole or not at all, from which a run goes on, on any number of processes.

    step-000200/  shard-*.safetensors   weights.NAME: what learns; moments.KEY.NAME: what the optimisers remember of it
                  state.json            the step
Every process writes what it holds and reads what it needs (torch.distributed.checkpoint), in the background while the
run goes on. Documents are pure functions of their number, so the step says which come next; there is no random state.
"""

import errno
import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from qwenvl.parsing import read_json
from qwenvl.train import distributed

Optimizers = Sequence[torch.optim.Optimizer]


class Saver:
    """Saves states of a run into a folder, one at a time; a complete one takes the place of those before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saving: Future[Any] | None = None
        self._published = threading.Event()
        # Of its own: messages of a save and of the update that goes on beside it must not mix.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is: one process

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.finish()
        except ValueError:
            if kind is None:  # else what went wrong first is told
                raise

    def save(self, step: int, module: nn.Module, optimizers: Optimizers) -> None:
        """Begin to save the state after `step` updates; it is copied before this returns.

        Raises ValueError when the one before could not be written.
        """
        self.finish()
        target = self.folder / f"step-{step:06}"
        unfinished = self.folder / f".{target.name}-unfinished"
        distributed.on_rank0(lambda: self._begin(unfinished, step))
        self._published.clear()
        saving = dcp.async_save(
            dict(_tensors(module, optimizers)),
            storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(saving, Future)
        self._saving = saving
        saving.add_done_callback(lambda done: self._publish(done, unfinished, target))

    def finish(self) -> None:
        """Return when nothing is being saved. Raises ValueError when it could not be written."""
        if self._saving is None:
            return
        self._published.wait()
        error, self._saving = self._saving.exception(), None
        if error is not None:
            raise ValueError(_sentence(self.folder, error))

    def _begin(self, unfinished: Path, step: int) -> None:
        try:
            for other in self.folder.glob(".step-*-unfinished"):
                shutil.rmtree(other)
            unfinished.mkdir(parents=True)
            (unfinished / "state.json").write_text(json.dumps({"step": step}) + "\n")
        except OSError as error:
            raise ValueError(_sentence(self.folder, error)) from None

    def _publish(self, done: "Future[Any]", unfinished: Path, target: Path) -> None:
        """In process 0, which is told when all have written: give the folder its name and drop older ones."""
        try:
            if distributed.rank() == 0 and done.exception() is None:
                older = [state for state in saved_states(self.folder) if state != target]
                if not target.exists():  # a resumed run may save the very state that it started from
                    unfinished.rename(target)
                    _flush(self.folder)
                for state in older:
                    shutil.rmtree(state)
        finally:
            self._published.set()


def load_state(folder: Path, module: nn.Module, optimizers: Optimizers) -> int:
    """Load the newest state of `folder` into what learns and its optimisers; returns its step, 0 when there is none.

    It may have been saved by any number of processes that shared the weights in any way. Raises ValueError when other
    parameters learn than those that were saved.
    """
    newest = distributed.on_rank0(lambda: next(reversed(saved_states(folder)), None))
    if newest is None:
        return 0
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    reader = HuggingFaceStorageReader(str(newest))
    stored = reader.read_metadata().state_dict_metadata
    places = dict(_trainable(module))
    if missing := sorted(name for name in places if f"weights.{name}" not in stored):
        raise ValueError(
            f"{newest} holds no {missing[0]}: it is of a run that trained something else; give another folder."
        )
    state: dict[str, Tensor] = {f"weights.{name}": each.detach() for name, each in places.items()}
    for optimizer, name, parameter in _parameters(optimizers):
        for key in stored:
            if key.startswith("moments.") and key.split(".", 2)[2] == name:
                state[key] = _place(
                    stored[key], parameter, counts=key.startswith("moments.step."), optimizer=optimizer
                )
                optimizer.state[parameter][key.split(".", 2)[1]] = state[key]
    dcp.load(state, storage_reader=reader)
    return int(read_json(newest / "state.json")["step"])


def saved_states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _tensors(module: nn.Module, optimizers: Optimizers) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in _trainable(module):
        yield f"weights.{name}", parameter.detach()
    for optimizer, name, parameter in _parameters(optimizers):
        for key, value in optimizer.state[parameter].items():
            yield f"moments.{key}.{name}", value.detach()


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return (each for each in module.named_parameters() if each[1].requires_grad)


def _parameters(optimizers: Optimizers) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                yield optimizer, name, parameter


def _place(stored: Any, parameter: nn.Parameter, *, counts: bool, optimizer: torch.optim.Optimizer) -> Tensor:
    """Room for what was stored: laid out as the parameter where it has its shape, else whole on its device.

    What `counts` steps lies on the CPU, but where a fused kernel counts them.
    """
    dtype = stored.properties.dtype
    if stored.size == parameter.shape and not counts:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    there = "cpu" if counts and not optimizer.defaults.get("fused") else parameter.device
    return torch.zeros(stored.size, dtype=dtype, device=there)


def _sentence(folder: Path, error: BaseException) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(error).splitlines()[0]
    return f"could not save a state in {folder}: {reason}; the state before it still stands. Make room and go on."


def _flush(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
