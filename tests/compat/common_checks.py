"""transformers' own common tests over our classes, run by `make compat` from the source of that version.

The source package of transformers carries `ModelTesterMixin` and `ProcessorTesterMixin`; `benchmarks/compat.py` fetches
it, and stands in for the two files it lacks. What does not apply is listed below with its reason, test by test.
"""

import re
import unittest
from typing import Any

import torch
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_processing_common import ProcessorTesterMixin

from qwenvl.integrations.transformers import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLProcessor,
    QwenVLTokenizer,
)

NOT_OURS = {
    r"Model.test_eager_matches_sdpa_inference": "it leaves the images out and keeps their places, which is "
    "refused; there is one attention here, `attn_implementation` chooses nothing",
    r"Model.test_generation_tester_mixin_inheritance": "the source package lacks the generation tests; greedy, "
    "sampled, beam, assisted, static and embedded ones stand in tests/integrations/test_transformers_model.py",
    r"Model.test_get_image_features": "it gives the visual tokens as a tensor, as 5.0 did",
    r"Model.test_gradient_checkpointing_enable|Model.test_training_gradient_checkpointing": "looks for a layer of "
    "transformers; ours recompute without: test_f26_recomputed_activations_give_the_same_gradients",
    r"Model.test_resize_tokens_embeddings": "cuts the vocabulary below the control symbols, which is refused; growing "
    "is test_f27_a_longer_vocabulary",
    r"Model.test_retain_grad_hidden_states": "attentions are computed beside the fused kernel, no gradient runs there",
    r"Model.test_bc_cache_name_forward": "wants a warning for the older name of `cache`; both are taken without one",
    r"Processor.test_apply_chat_template_assistant_mask": "reads the mask off a Jinja template; ours is "
    "test_f24_the_answers_mask_is_what_the_assistant_says",
    r"Processor.test_chat_template_(jinja_kwargs|message_objects)": "the dialogue format is the released one, spelled "
    "from objects: no Jinja templates",
    r"Processor.test_(flat_kwarg_applied|model_input_names)": "calls with videos and audio",
    r"Processor.test_init_arguments_not_in_processor_kwargs": "`size` is the model's, not an option of a call",
    r"Processor.test_(processor_from_and_save|save_load)_pretrained": "the files hold what our folders hold, and the "
    "symbols of the tokenizer are fixed",
    r"Processor.*(video|audio)": "no video, no audio",
}
"""Checks that do not apply: a pattern of their names, and why."""


def fitting(cls: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """The class with the checks of `NOT_OURS` skipped, each with its reason."""
    for name in [each for each in dir(cls) if each.startswith("test_")]:
        whole = f"{cls.__name__.removeprefix('Common')}.{name}"
        reason = next((why for pattern, why in NOT_OURS.items() if re.match(pattern, whole)), None)
        if reason:
            setattr(cls, name, unittest.skip(reason)(getattr(cls, name)))
    return cls


class Tester:
    """A model of two blocks, and a batch with an image in each row."""

    batch_size, seq_length, is_training = 2, 12, True
    num_hidden_layers, num_attention_heads, hidden_size, image_size, queries = 2, 2, 32, 28, 4
    encoder_seq_length = key_length = seq_length

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> QwenVLConfig:
        vision = {"width": 24, "layers": 2, "heads": 2, "mlp_width": 32, "patch_size": 14, "image_size": 28}
        llm = {
            "vocab_size": 320,
            "hidden": 32,
            "layers": 2,
            "heads": 2,
            "mlp_width": 37,
            "sequence_length": 512,
        }
        adapter = {"queries": 4, "heads": 2}
        return QwenVLConfig(vision=vision, adapter=adapter, llm=llm, imgpad_id=300)

    def prepare_config_and_inputs_for_common(self) -> tuple[QwenVLConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = torch.randint(1, 70, (self.batch_size, self.seq_length))
        ids[:, 2:6] = config.imgpad_id
        pixels = torch.randn(self.batch_size, 3, self.image_size, self.image_size)
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@fitting
class CommonModel(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (QwenVLForConditionalGeneration,)
    test_torch_exportable = False  # with its own tests: test_f29_export_with_any_number_of_images

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": inputs["input_ids"]} if return_labels else inputs

    def setUp(self) -> None:
        self.model_tester = Tester(self)


@fitting
class CommonProcessor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = QwenVLProcessor

    @classmethod
    def _setup_tokenizer(cls) -> QwenVLTokenizer:
        from qwenvl.checkpoint.folder import resolve

        return QwenVLTokenizer(str(resolve("tiny") / "qwen.tiktoken"))

    @staticmethod
    def prepare_processor_dict() -> dict[str, int]:
        return {"queries": 36, "size": 112}
