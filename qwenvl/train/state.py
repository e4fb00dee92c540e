"""Training state: a folder that appears whole or not at all, from which a run goes on bit for bit.

    step-000200/  weights.safetensors   every parameter and buffer of what learns
                  moments.safetensors   what the optimisers remember of each parameter, by its name
                  state.json            the step
Documents are pure functions of their number, so the step says which come next; there is no random state to keep.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qwenvl.checkpoint.folder import new_folder
from qwenvl.config import read_json


def save_state(
    folder: Path, step: int, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write the state after `step` updates and drop older ones."""
    with new_folder(folder / f"step-{step:06}") as unfinished:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(weights, unfinished / "weights.safetensors")
        moments = {
            f"{key}.{name}": value.detach().cpu()
            for optimizer, name, parameter in _parameters(optimizers)
            for key, value in optimizer.state[parameter].items()
        }
        save_file(moments, unfinished / "moments.safetensors")
        (unfinished / "state.json").write_text(json.dumps({"step": step}) + "\n")
        _flush(unfinished)
    for other in saved_states(folder):
        if other.name != f"step-{step:06}":
            shutil.rmtree(other)


def load_state(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load the newest state of `folder` into the module and its optimisers; returns its step, 0 when there is none."""
    states = saved_states(folder)
    if not states:
        return 0
    module.load_state_dict(load_file(states[-1] / "weights.safetensors"))
    remembered: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(states[-1] / "moments.safetensors").items():
        key, _, parameter_name = name.partition(".")
        remembered.setdefault(parameter_name, {})[key] = value
    for optimizer, name, parameter in _parameters(optimizers):
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in remembered[name].items()
        }
    return int(read_json(states[-1] / "state.json")["step"])


def _parameters(
    optimizers: Sequence[torch.optim.Optimizer],
) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                yield optimizer, name, parameter


def saved_states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
