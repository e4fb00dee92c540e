"""The calling conventions of transformers, kept or refused: nothing that is handed over is passed over."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

import qwenvl
from qwenvl.integrations.transformers import QwenVLForConditionalGeneration
from qwenvl.runtime import Runtime

OFFICIAL = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime.detect(device="cpu", dtype="float32")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def model() -> QwenVLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(OFFICIAL, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor() -> object:
    return AutoProcessor.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def batch(processor):
    """Two rows: one image and two, the first padded."""
    rows = [
        [
            {
                "role": "user",
                "content": [*[{"type": "image", "image": IMAGE}] * n, {"type": "text", "text": text}],
            }
        ]
        for n, text in ((1, "What?"), (2, "Where is it?"))
    ]
    return processor.apply_chat_template(
        rows, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.fixture(scope="module")
def row(batch):
    """The second row alone."""
    return {"input_ids": batch["input_ids"][1:], "pixel_values": batch["pixel_values"][1:]}


# === Official folders ===


def test_official_folders_load_directly(model, row):
    plain = qwenvl.load(OFFICIAL, CPU)
    assert torch.equal(model(**row).logits, plain(row["input_ids"], row["pixel_values"]))
    assert isinstance(AutoModelForCausalLM.from_pretrained(OFFICIAL), QwenVLForConditionalGeneration)
    assert AutoModel.from_pretrained(OFFICIAL)(**row).last_hidden_state.shape[-1] == plain.config.llm.hidden
    tokenizer = AutoTokenizer.from_pretrained(OFFICIAL)
    assert tokenizer.core.imgpad == plain.config.imgpad_id
    assert model.generation_config.eos_token_id == [tokenizer.core.specials[name] for name in ENDS]


ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_another_qwen_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen", "hidden_size": 64}')
    with pytest.raises(ValueError, match="a Qwen without eyes"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_an_official_folder_without_a_tensor_is_refused_by_name(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(OFFICIAL, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.wte.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"does not fit its config\.json: missing"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model")


# === Generation ===


@pytest.mark.parametrize(
    "how", [{"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1}], ids=str
)
def test_f20_f107_every_cache_gives_the_same_answers(model, batch, how):
    assert torch.equal(model.generate(**batch, **GREEDY, **how), model.generate(**batch, **GREEDY))


def test_f107_an_assistant_model_gives_the_same_answer(model, row):
    assert torch.equal(
        model.generate(**row, **GREEDY, assistant_model=model), model.generate(**row, **GREEDY)
    )


def test_prompt_lookup_gives_the_same_answer(model, row):
    greedy = {"max_new_tokens": 6, "do_sample": False}  # before 5.14 it fails where no end is set
    found = model.generate(**row, **greedy, prompt_lookup_num_tokens=3)
    assert torch.equal(found, model.generate(**row, **greedy))


def test_draws_follow_the_seed(model, row):
    def drawn(seed):
        torch.manual_seed(seed)
        return model.generate(**row, **{**GREEDY, "do_sample": True}, temperature=1.5)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_f107_stop_strings_with_the_processor_as_tokenizer(model, processor, row):
    whole = model.generate(**row, **GREEDY)
    start = row["input_ids"].shape[1]
    first = processor.decode(whole[0, start])
    ended = model.generate(**row, **GREEDY, stop_strings=[first], tokenizer=processor)
    assert ended.shape[1] == start + 1


def test_f23_generation_from_embeddings_sees_the_images(model, batch):
    ids, rest = batch["input_ids"], {k: v for k, v in batch.items() if k != "input_ids"}
    answers = model.generate(inputs_embeds=model.llm.embed(ids), **rest, **GREEDY)
    assert torch.equal(answers[:, -6:], model.generate(**batch, **GREEDY)[:, -6:])


def test_a_static_cache_beyond_the_trained_length(tmp_path):
    long = AutoModelForImageTextToText.from_pretrained(OFFICIAL.parent / "tiny_ntk_logn", dtype=torch.float32)
    length = 2 * long.config.shape.llm.sequence_length + 5
    ids = torch.randint(0, 200, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    fixed = long.generate(ids, attention_mask=mask, **GREEDY, cache_implementation="static")
    assert torch.equal(fixed, long.generate(ids, attention_mask=mask, **GREEDY))


# === Arguments of forward ===


def test_f23_embeddings_with_pixels_are_as_ids_with_pixels(model, batch):
    rest = {k: v for k, v in batch.items() if k != "input_ids"}
    found = model(inputs_embeds=model.llm.embed(batch["input_ids"]), **rest).logits
    assert torch.equal(found, model(**batch).logits)


def test_f23_positions_that_begin_again_begin_a_document(model):
    first, second = torch.arange(5, 12)[None], torch.arange(30, 41)[None]
    positions = torch.cat([torch.arange(7), torch.arange(11)])[None]
    packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(first).logits, model(second).logits], 1)
    assert torch.allclose(packed, apart, atol=1e-4)


def test_f23_given_positions_are_used(model):
    ids = torch.arange(5, 12)[None]
    moved = model(ids, position_ids=torch.arange(7)[None] * 2).logits
    assert not torch.allclose(moved, model(ids).logits, atol=1e-2)


def test_f23_hidden_states_and_attentions(model, batch):
    for mask in (batch["attention_mask"], None):
        found = model(**{**batch, "attention_mask": mask}, output_hidden_states=True, output_attentions=True)
        assert len(found.hidden_states) == len(model.llm.blocks) + 1
        assert torch.equal(model.llm.head(found.hidden_states[-1]), found.logits)
        weights = found.attentions[0]
        assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5)
        assert (weights.triu(1) == 0).all()
    layer, block = found.attentions[0], model.llm.blocks[0]
    heads = block.attention.qkv(block.norm_1(found.hidden_states[0])).unflatten(
        -1, (-1, 3, block.attention.head_width)
    )
    attended = block.attention.out((layer @ heads[..., 2, :].transpose(1, 2)).transpose(1, 2).flatten(2))
    after = found.hidden_states[0] + attended
    assert torch.allclose(after + block.mlp(block.norm_2(after)), found.hidden_states[1], atol=1e-4)


def test_f23_a_tuple_and_shifted_labels(model, row):
    labels = row["input_ids"].clone()
    asked = model(**row, labels=labels)
    assert torch.equal(model(**row, labels=labels, return_dict=False)[0], asked.loss)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert torch.allclose(model(**row, shift_labels=shifted).loss, asked.loss)


@pytest.mark.parametrize("name", ["nonsense", "token_type_ids", "image_grid_thw"])
def test_f23_unknown_keywords_are_refused(model, row, name):
    with pytest.raises(TypeError, match=name):
        model(**row, **{name: None})


def test_f23_missing_tensors_start_as_new_ones(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    gone = ["adapter.query", "adapter.position", "adapter.project", "vision.position", "llm.head.weight"]
    for name in [*gone, "llm.blocks.0.norm_1.weight"]:
        del kept[name]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    assert torch.allclose(again["adapter.position"], model.adapter.position)
    assert again["llm.head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert (again["llm.blocks.0.norm_1.weight"] == 1).all()
    assert all(torch.isfinite(again[name]).all() for name in gone)


# === Config, saving, precision ===


def test_f22_the_keys_of_the_ecosystem_are_read_by_both_sides(model, tmp_path):
    import json

    import transformers

    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["QwenVLForConditionalGeneration"]
    assert getattr(transformers, values["architectures"][0]) is QwenVLForConditionalGeneration
    beside = {"torch_dtype": "float32", "_name_or_path": "x", "use_cache": True, "auto_map": {}}
    (tmp_path / "config.json").write_text(json.dumps({**values, **beside}))
    assert qwenvl.load(tmp_path, CPU).config == model.config.shape
    assert AutoConfig.from_pretrained(tmp_path).shape == model.config.shape
    assert AutoConfig.from_pretrained(
        "qwenvl/tiny" if Path("qwenvl/tiny").is_dir() else OFFICIAL
    ).architectures


def test_f21_tiny_is_saved_with_its_settings(tmp_path):
    import json

    from qwenvl.checkpoint.folder import resolve

    tiny = AutoModelForImageTextToText.from_pretrained(resolve("tiny"))
    tiny.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "generation_config.json").read_text())
    assert values["top_p"] == 0.3 and values["chat_format"] == "chatml"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert not again.generation_config.do_sample


def test_f27_a_longer_vocabulary(model, tmp_path):
    longer = copy.deepcopy(model)
    longer.resize_token_embeddings(model.config.vocab_size + 10)
    longer.save_pretrained(tmp_path)
    assert qwenvl.load(tmp_path, CPU).config.llm.vocab_size == model.config.vocab_size + 10


def test_f27_half_precision_from_a_config(model, row):
    half = AutoModelForImageTextToText.from_config(model.config, dtype=torch.bfloat16)
    assert half.adapter.position.dtype == torch.bfloat16 and half(**row).logits.dtype == torch.bfloat16
    for name in ("eos_token_id", "use_cache", "is_encoder_decoder", "quantization_config"):
        getattr(model.config, name, None)
    assert model.config.use_cache and not model.config.is_encoder_decoder


# === Training ===


def test_f26_recomputed_activations_give_the_same_gradients(model, row):
    learner = copy.deepcopy(model).train()
    gradients = []
    for again in (False, True):
        learner.zero_grad()
        if again:
            learner.gradient_checkpointing_enable()
        learner(**row, labels=row["input_ids"]).loss.backward()
        gradients.append([each.grad.clone() for each in learner.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    learner.gradient_checkpointing_disable()
    assert "forward" in vars(type(learner.llm.blocks[0])) and not learner.gradient_checkpointing


def test_f26_a_backbone_without_the_head(model, row):
    """What TRL's chunked loss calls; SFTTrainer itself runs in `make compat`."""
    hidden = model.base_model(**row, use_cache=False).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(**row).logits)
    assert model.get_decoder() is model


def test_f26_the_trainer_learns_saves_and_resumes(row, tmp_path):
    from transformers import Trainer, TrainingArguments

    pytest.importorskip("accelerate")
    learner = AutoModelForImageTextToText.from_pretrained(OFFICIAL, dtype=torch.float32)
    data = [{"input_ids": row["input_ids"][0], "labels": row["input_ids"][0]}] * 2

    def collate(samples):
        stacked = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        return {**stacked, "pixel_values": row["pixel_values"].repeat(len(samples), 1, 1, 1)}

    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=True,
        remove_unused_columns=False,
    )
    Trainer(model=learner, args=settings, train_dataset=data, data_collator=collate).train()
    assert qwenvl.load(tmp_path / "checkpoint-2", CPU).config == learner.config.shape


# === The adapter's projections are layers ===


def test_f25_offloaded_and_adapted_projections_are_called(model, row, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected = model(**row).logits
    moved = copy.deepcopy(model)
    accelerate.cpu_offload(moved, execution_device=torch.device("cpu"))
    assert torch.allclose(moved(**row).logits, expected, atol=1e-5)
    moved = copy.deepcopy(model)
    accelerate.disk_offload(moved, str(tmp_path), execution_device=torch.device("cpu"))
    assert torch.allclose(moved(**row).logits, expected, atol=1e-5)


@pytest.mark.parametrize("device_map", ["auto", {"vision": "cpu", "adapter": "cpu", "llm": "disk"}], ids=str)
def test_a_device_map_gives_the_same_logits(model, row, tmp_path, device_map):
    pytest.importorskip("accelerate")
    placed = AutoModelForImageTextToText.from_pretrained(
        OFFICIAL, device_map=device_map, offload_folder=tmp_path, dtype=torch.float32
    )
    assert (placed.llm.embed.weight.device.type == "meta") == (device_map != "auto")
    assert torch.allclose(placed(**row).logits, model(**row).logits, atol=1e-5)


def test_f25_lora_on_all_linear_layers_learns_in_each(model, row):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    adapted(**row, labels=row["input_ids"]).loss.backward()
    learning = {name: each.grad for name, each in adapted.named_parameters() if each.requires_grad}
    assert any("adapter.qkv" in name for name in learning)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in learning.values())


# === Traced: one graph, any batch ===


@pytest.mark.compile
def test_f29_export_with_any_number_of_images(model, row):
    batch = torch.export.Dim("batch", min=1, max=8)
    two = {name: tensor[:1].repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in row.items()}
    two["input_ids"] = two["input_ids"].masked_fill(_second_image(two["input_ids"], model), 7)
    program = torch.export.export(
        model,
        (),
        {**two, "use_cache": False},
        dynamic_shapes={**{name: {0: batch} for name in two}, "use_cache": None},
    ).module()
    three = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in two.items()}
    assert torch.equal(program(**three, use_cache=False).logits, model(**three).logits)


def _second_image(ids: torch.Tensor, model: QwenVLForConditionalGeneration) -> torch.Tensor:
    slots = ids == model.config.imgpad_id
    return slots & (slots.cumsum(1) > model.config.adapter["queries"])


@pytest.mark.compile
def test_f29_the_whole_model_is_one_graph(model, row):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(**row, use_cache=False).logits, model(**row).logits, atol=1e-4)
    with pytest.raises(RuntimeError, match="placeholders"):
        compiled(row["input_ids"], row["pixel_values"][:1], use_cache=False)


def test_forward_takes_what_trainers_and_generation_look_for():
    known = inspect.signature(QwenVLForConditionalGeneration.forward).parameters
    assert {"position_ids", "labels", "num_items_in_batch", "logits_to_keep", "cache"} <= set(known)
    assert not any(each.kind is each.VAR_KEYWORD for each in known.values())
