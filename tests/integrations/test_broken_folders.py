"""One clear sentence for folders that are not whole, at the doors of transformers and of vLLM alike."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from broken_folders import (
    ANOTHER_QWEN,
    OTHER_VOCABULARY,
    WEIGHTS_BROKEN,
    another_qwen,
    another_vocabulary,
    quantised,
)
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import qwenvl
from qwenvl.checkpoint.folder import resolve
from qwenvl.integrations.transformers import QwenVLConfig
from qwenvl.integrations.vllm.settings import Settings
from qwenvl.runtime import Runtime

broken = pytest.mark.parametrize(
    ("breaks", "said"), [pytest.param(*each, id=each[0].__name__) for each in WEIGHTS_BROKEN.items()]
)


class Given:
    """vLLM's configuration of a folder as our hooks see it."""

    def __init__(self, folder: Path, load_format: str = "auto", lora: object = None) -> None:
        self.model_config: Any = SimpleNamespace(
            model=str(folder), revision=None, tokenizer=str(folder), tokenizer_revision=None,
            tokenizer_mode="auto", original_max_model_len=None, hf_config=QwenVLConfig.from_pretrained(folder),
        )  # fmt: skip
        self.load_config, self.lora_config = SimpleNamespace(load_format=load_format), lora


@broken
def test_weights_through_transformers(breaks: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    breaks(tmp_path / "model")
    with pytest.raises(ValueError, match=said):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model")


@broken
def test_weights_through_vllm(breaks: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    breaks(tmp_path / "model")
    with pytest.raises(ValueError, match=said):
        Settings.verify_and_update_config(Given(tmp_path / "model"))
    Settings.verify_and_update_config(Given(tmp_path / "model", "dummy"))


def test_a_vocabulary_of_another_model(tmp_path: Path) -> None:
    another_vocabulary(tmp_path / "model")
    for door in (AutoProcessor, AutoTokenizer):
        with pytest.raises(ValueError, match=OTHER_VOCABULARY):
            door.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=OTHER_VOCABULARY):
        Settings.verify_and_update_model_config(Given(tmp_path / "model").model_config)


def test_another_qwen(tmp_path: Path) -> None:
    another_qwen(tmp_path / "model")
    for door in (AutoConfig, AutoModelForImageTextToText):  # vLLM reads config.json through the first
        with pytest.raises(ValueError, match=ANOTHER_QWEN):
            door.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(("to", "method"), [("int8", "compressed-tensors"), ("int4", "gptq")])
def test_weights_of_8_and_4_bits(to: Any, method: str, tmp_path: Path) -> None:
    """transformers has the weights that the integers mean, under its own classes; vLLM refuses them."""
    quantised(tmp_path / to, to)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / to, dtype=torch.float32)
    plain = qwenvl.load(tmp_path / to, Runtime.detect(device="cpu", dtype="float32"), dequantise=True)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(model(ids).logits, plain(ids))
    assert not hasattr(model.config, "quantization_config")
    with pytest.raises(ValueError, match=rf"is quantised \({method}\), which is not served through vLLM"):
        Settings.verify_and_update_model_config(Given(tmp_path / to).model_config)


def test_adapters_in_vllm() -> None:
    with pytest.raises(
        ValueError, match=r"LoRA adapters .* are not applied through vLLM.*Serve the merged model"
    ):
        Settings.verify_and_update_config(Given(resolve("tiny"), lora=object()))
