"""A model so small that a stage takes a second, on documents of the toy world."""

import io
from collections.abc import Iterator
from multiprocessing import forkserver, popen_forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwenvl.checkpoint import folder
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.data.tars import write_tar
from qwenvl.data.toy.streams import vocabulary_texts
from qwenvl.model.vlm import QwenVL
from qwenvl.processes import Worker
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.stages import OptimConfig, StageConfig
from qwenvl.train.toy import initialise_narrow_


@pytest.fixture(scope="session", autouse=True)
def ready_processes() -> Iterator[None]:
    """What a test spawns itself is forked from a process that has imported all: three to six seconds less for each.

    Commands that a test starts spawn as they do for a person.
    """
    forkserver.set_forkserver_preload(["qwenvl.train.recipe", "peft"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_Popen", staticmethod(popen_forkserver.Popen))
        yield


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model with its vocabulary."""
    root = tmp_path_factory.mktemp("start")
    tokenizer = Tokenizer.train(vocabulary_texts(100), 300)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, patch_size=14, image_size=56),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(vocab_size=tokenizer.n_vocab, hidden=32, layers=2, heads=2, mlp_width=64),
        imgpad_id=tokenizer.imgpad,
    )
    model = QwenVL(config)
    initialise_narrow_(model, torch.Generator().manual_seed(0))
    tokenizer.save(root / "vocabulary")
    folder.save(model, root / "model", sidecars=root / "vocabulary")
    return root / "model"


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.tar"
    with write_tar(file) as tar:
        for number in range(12):
            encoded = io.BytesIO()
            Image.fromarray(np.full((30, 40, 3), 20 * number, dtype=np.uint8)).save(encoded, "JPEG")
            tar.add(f"{number:03}.jpg", encoded.getvalue())
            tar.add(f"{number:03}.txt", f"a plain wall of grey number {number}".encode())
    return file


def source(name: str, weight: float = 1.0) -> SourceConfig:
    """A source of the toy world."""
    return SourceConfig(paths=(f"toy:{name}",), weight=weight)


def stage(**changes: object) -> StageConfig:
    """A stage of four updates over everything the toy world has."""
    values: dict[str, object] = {
        "name": "trial",
        "image_size": 56,
        "sequence_length": 384,
        "data": (source("tasks", 2.0), source("text"), source("chats")),
        "documents": 8,
        "micro_documents": 4,
        "bfloat16": False,
        "save_every": 2,
        "optim": OptimConfig(peak_lr=1e-2, final_lr=1e-3, warmup_steps=1, steps=4),
    }
    return StageConfig(**{**values, **changes})  # type: ignore[arg-type]
