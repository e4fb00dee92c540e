"""The model under vLLM's interface: our vision encoder and adapter before vLLM's own blocks, kernels and pages.

Under tensor parallelism every process holds the whole encoder (2 of 9.6 billion parameters) and a share of the language
model.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from qwenvl.checkpoint import names
from qwenvl.config import ModelConfig
from qwenvl.integrations.vllm.processing import PLACE, DummyInputs, Info, Processor
from qwenvl.integrations.vllm.settings import text_config
from qwenvl.model.adapter import Adapter
from qwenvl.model.vision import VisionTransformer
from qwenvl.model.vlm import without_values
from qwenvl.terminal import printable


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=DummyInputs)
class QwenVLForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """Official folders and ours; weights are renamed as they arrive.

    No `SupportsLoRA`: the rows of an adapter's `qkv` stand head by head, and vLLM renames tensors without turning them.
    """

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Where messages are spelled without our tokenizer: the numbered place of an image."""
        return f"Picture {i}: {PLACE}\n" if modality == "image" else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        settings, marks = vllm_config.model_config, cast(SupportsMultiModal, self)
        self.shape: ModelConfig = settings.hf_config.shape
        with marks._mark_tower_model(vllm_config, "image"):
            self.vision = VisionTransformer(self.shape.vision)
            adapter = Adapter(self.shape.adapter, self.shape.vision.width, self.shape.llm.hidden)
            adapter.position = adapter.position.to(adapter.query.dtype)
            self.adapter = adapter
        with marks._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config,
                hf_config=text_config(self.shape.llm, settings.max_model_len),
                architectures=["LlamaForCausalLM"],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **given: Any) -> Any:
        """Visual tokens (images, queries, hidden) of `pixel_values`; nothing where there are no images."""
        pixels = given.get("pixel_values")
        if pixels is None:
            return []
        return self.adapter(self.vision(torch.stack(tuple(pixels)).to(self.vision.position.dtype)))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Hidden states of the tokens of all rows, one behind the other."""
        embeds = None if intermediate_tensors is not None else inputs_embeds
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=embeds)

    def compute_logits(self, hidden_states: Tensor) -> Any:
        """Logits of the next token."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the tensors of an official folder or of ours, in any order.

        Raises ValueError, by name, for missing, unknown and misshapen ones.
        """
        whole = without_values(self.shape).state_dict()
        expected = {name: tuple(each.shape) for name, each in whole.items()}
        found: dict[str, tuple[int, ...]] = {}
        ours = self._ours(weights, expected, found)
        self.language_model.load_weights(ours)
        names.check_names(expected, found, "the folder")
        return {name for name, _ in self.named_parameters()}

    def _ours(
        self,
        weights: Iterable[tuple[str, Tensor]],
        expected: dict[str, tuple[int, ...]],
        found: dict[str, tuple[int, ...]],
    ) -> Iterator[tuple[str, Tensor]]:
        """The language model's tensors as vLLM's Llama names them; those of vision and adapter are put in place."""
        parts = {**dict(self.named_parameters()), "adapter.position": getattr(self.adapter, "position", None)}
        for foreign, tensor in weights:
            if foreign.endswith((".qweight", ".weight_scale")):
                raise ValueError(
                    f"{printable(foreign)}: these weights are quantised, which is not served through vLLM; unpack them "
                    "first (`qwenvl convert FOLDER NEW`)."
                )
            name, layout = names.ours(foreign, names.OFFICIAL) or (foreign, names.same)
            found[name] = tuple(layout(tensor.to("meta"), self.shape).shape)
            if found[name] != expected.get(name):
                continue
            if (llama := names.foreign(name, names.LLAMA)) is not None:
                yield llama[0], llama[1](layout(tensor, self.shape), self.shape)
            elif (own := parts.get(name)) is not None:
                own.data.copy_(layout(tensor, self.shape))
