"""The static decode step: the engine's answers on every recorded model, without a question to the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Prompt, Settings, generate
from qwenvl.generate.static import StaticStep
from qwenvl.model.llm import ntk_alpha
from qwenvl.model.packed import pack_
from qwenvl.model.vlm import QwenVL, place_images
from qwenvl.parity.fixture import Fixture

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NEW = 12


def random_model(sequence_length: int = 24, layers: int = 2) -> QwenVL:
    """Large weights: clear winners among the next tokens."""
    torch.manual_seed(3)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=48, image_size=28),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(
            vocab_size=96, hidden=48, layers=layers, heads=4, mlp_width=64, sequence_length=sequence_length
        ),
        imgpad_id=95,
    )
    model = QwenVL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
        model.llm.head.weight[config.imgpad_id] = 0
    return model


def prompts_for(model: QwenVL, lengths: list[int]) -> list[Prompt]:
    """Of words, and every other one behind an image."""
    generator = torch.Generator().manual_seed(1)
    config, made = model.config, []
    for number, length in enumerate(lengths):
        words = torch.randint(0, min(90, config.imgpad_id), (length,), generator=generator).tolist()
        if number % 2:
            side = config.vision.image_size
            pixels = (torch.randn(3, side, side, generator=generator).numpy(),)
            made.append(Prompt(ids=(*[config.imgpad_id] * config.adapter.queries, *words), pixels=pixels))
        else:
            made.append(Prompt(ids=tuple(words)))
    return made


@torch.inference_mode()
def admit(step: StaticStep, slot: int, prompt: Prompt) -> tuple[int, float]:
    """Read a prompt into a slot; returns the first token and its log-probability."""
    model = step.model
    ids = torch.tensor([prompt.ids], device=step.ids.device)
    pixels = [torch.from_numpy(image).to(ids.device) for image in prompt.pixels]
    visual = model.encode(torch.stack(pixels)) if pixels else None
    slots, queries = ids == model.config.imgpad_id, model.config.adapter.queries
    hidden = place_images(model.llm.embed(ids), slots, visual, queries)
    step.read(slot, hidden, ntk_alpha(len(prompt.ids), model.config.llm))
    return int(step.ids[slot]), float(step.logprobs[slot])


def answers(step: StaticStep, prompts: list[Prompt], new: int) -> list[tuple[list[int], list[float]]]:
    """All rows together, greedily."""
    written = []
    for slot, prompt in enumerate(prompts):
        first, logprob = admit(step, slot, prompt)
        written.append(([first], [logprob]))
    for _ in range(new - 1):
        step()
        for slot, (ids, logprobs) in enumerate(written):
            ids.append(int(step.ids[slot]))
            logprobs.append(float(step.logprobs[slot]))
    return written


def assert_engine_agrees(model: QwenVL, prompts: list[Prompt], step: StaticStep, new: int = NEW) -> None:
    for prompt, (ids, logprobs) in zip(prompts, answers(step, prompts, new), strict=True):
        wanted = generate(model, [prompt], Settings(max_new_tokens=new))[0]
        assert tuple(ids) == wanted.ids
        assert logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
@pytest.mark.parametrize("device", DEVICES)
def test_the_engines_answers_on_every_recorded_model(folder: str, device: str):
    """Rows within the trained length, across it and beyond where that is short, an idle slot beside them."""
    model = Fixture(GOLDEN / folder).model.to(device)
    trained = min(model.config.llm.sequence_length, 100)
    prompts = prompts_for(model, [3, 9, trained - 3, trained + 5, 2 * trained + 1])
    assert_engine_agrees(model, prompts, StaticStep(model, 6, 512))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_very_unequal_length_in_long_slots(device: str):
    """What attention kernels that split the keys get wrong shows here: 3 to 2,000 tokens side by side."""
    model = random_model(sequence_length=2048).to(device)
    prompts = prompts_for(model, [3, 255, 256, 700, 1023, 1500, 2000])
    assert_engine_agrees(model, prompts, StaticStep(model, 8, 2048), new=4)


def test_slots_are_given_back_and_taken_again():
    model = random_model()
    step = StaticStep(model, 3, 128)
    first = answers(step, prompts_for(model, [5, 60, 9]), 6)
    step.release(1)
    other = prompts_for(model, [2, 7])[1]
    token, _ = admit(step, 1, other)
    ids, beside = [token], [first[0][0][-1]]
    for _ in range(5):
        step()
        ids.append(int(step.ids[1]))
        beside.append(int(step.ids[0]))
    assert tuple(ids) == generate(model, [other], Settings(max_new_tokens=6))[0].ids
    whole = generate(model, prompts_for(model, [5]), Settings(max_new_tokens=11))[0].ids
    assert tuple(first[0][0] + beside[1:]) == whole, "the neighbour went on undisturbed"


def test_another_id_may_be_chosen_before_the_next_step():
    model = random_model()
    step, prompt = StaticStep(model, 2, 64), prompts_for(model, [6])[0]
    admit(step, 0, prompt)
    step.ids[0] = 17
    step()
    longer = Prompt(ids=(*prompt.ids, 17))
    wanted = generate(model, [longer], Settings(max_new_tokens=1))[0]
    assert int(step.ids[0]) == wanted.ids[0]
    assert float(step.logits.log_softmax(-1)[0].max()) == pytest.approx(wanted.logprobs[0], abs=1e-4)


class NoQuestions(TorchDispatchMode):
    """Fails where an operator makes the host wait for the device, or makes shapes of numbers."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        """Those that compute; views cost no launch."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        assert name not in self.ASKING, f"{name} asks the host"
        if not function.is_view:
            self.operators.append(name)
        return function(*args, **(kwargs or {}))


def test_the_host_is_asked_nothing_and_every_buffer_stays_where_it_is():
    model = random_model()
    step = StaticStep(model, 4, 128)
    for slot, prompt in enumerate(prompts_for(model, [4, 30, 11])):
        admit(step, slot, prompt)
    buffers = [step.ids, step.alpha, step.running, step.logits, step.logprobs]
    buffers += [*step.cache.keys, *step.cache.values, step.cache.lengths, step.cache.mask]
    before, seen = [each.data_ptr() for each in buffers], set()
    for _ in range(20):
        with NoQuestions() as watched:
            step()
        seen.add(tuple(watched.operators))
    assert [each.data_ptr() for each in buffers] == before
    assert len(seen) == 1, "every step is the same operators"
    assert step.cache.lengths.tolist() == [24, 54, 31, 0]


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 24), (torch.bfloat16, 27)], ids=["float32", "bfloat16"]
)
def test_operators_of_a_block_become_no_more(dtype: torch.dtype, most: int):
    """A launch each on a GPU, some microseconds each on a CPU. A ratchet: lower it, never lift it."""
    counts = []
    for layers in (2, 3):
        model = random_model(layers=layers).to(dtype)
        pack_(model)
        step = StaticStep(model, 4, 128)
        step()
        with NoQuestions() as watched:
            step()
        counts.append(len(watched.operators))
    assert counts[1] - counts[0] <= most


@pytest.mark.compile
def test_one_graph_without_breaks_over_all_steps():
    model = random_model()
    step, plain = StaticStep(model, 3, 128), StaticStep(model, 3, 128)
    prompts = prompts_for(model, [4, 30])
    for slot, prompt in enumerate(prompts):
        admit(step, slot, prompt)
        admit(plain, slot, prompt)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step.forward, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        for _ in range(12):
            compiled()
            plain()
            assert torch.equal(step.ids, plain.ids)
            torch.testing.assert_close(step.logits, plain.logits, atol=1e-4, rtol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
