"""Our class under a stand-in of lmms-eval's interface; `benchmarks/inside_lmms_eval.py` runs it under the real kit."""

import abc
import importlib
import io
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image as pillow

from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.run import Job, run, samples_of

NAME = "qwenvl.integrations.lmms_eval"


class Lmms(abc.ABC):
    """What lmms_eval.api.model.lmms gives its subclasses and wants of them (0.7.3)."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None


@dataclass
class Request:
    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def kit() -> Iterator[ModuleType]:
    """Our module, imported where the kit seems to be installed."""
    names = (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    )
    patch = pytest.MonkeyPatch()
    for name in names:
        patch.setitem(sys.modules, name, ModuleType(name))
    setattr(sys.modules["lmms_eval.api.model"], "lmms", Lmms)  # noqa: B010
    setattr(sys.modules["lmms_eval.models.registry_v2"], "ModelManifest", ModelManifest)  # noqa: B010
    patch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)
    patch.undo()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return benchmark("toyworld-vqa").read(Source(Path()))[:6]


@pytest.fixture(scope="module")
def model(kit: ModuleType, samples: list[Sample]) -> Lmms:
    made = kit.QwenVL(pretrained="tiny", batch_size="4", device="cpu", prompt_format="raw")
    made.task_dict["toy"] = {"test": samples}
    return made


def images(sample: Sample) -> list[pillow.Image]:
    return [pillow.open(io.BytesIO(image)) for image in sample.images if isinstance(image, bytes)]


def asked(samples: list[Sample], **options: object) -> list[Request]:
    """Requests to write an answer, as the kit makes them; some tasks leave a mark where images go."""
    settings = {"max_new_tokens": 64, "temperature": 0, **options}
    return [
        Request((f"<image>{sample.text}", settings, images, k, "toy", "test"))
        for k, sample in enumerate(samples)
    ]


def test_the_entry_point_names_a_model_of_the_kit(kit: ModuleType) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["qwenvl"].partition(":")
    assert module == NAME
    manifest = getattr(kit, name)()
    module, _, name = manifest.simple_class_path.rpartition(".")
    found = getattr(sys.modules[module], name)
    assert manifest.model_id == "qwenvl" and issubclass(found, Lmms) and found.is_simple


def test_it_answers_as_our_own_run(model: Lmms, samples: list[Sample], tmp_path: Path) -> None:
    job = Job(
        checkpoint="tiny",
        benchmark="toyworld-vqa",
        source=Source(Path()),
        out=tmp_path,
        limit=6,
        device="cpu",
    )
    assert [s.id for s in samples_of(job)] == [s.id for s in samples]
    assert model.generate_until(asked(samples)) == [prediction.plain for prediction in run(job)]


def test_answers_keep_the_order_of_requests_and_end_where_the_task_says(
    model: Lmms, samples: list[Sample]
) -> None:
    whole = model.generate_until(asked(samples))
    mixed = [
        request
        for pair in zip(asked(samples), asked(samples, max_new_tokens=1), strict=True)
        for request in pair
    ]
    answers = model.generate_until(mixed)
    assert answers[::2] == whole
    assert all(long.startswith(short) for long, short in zip(whole, answers[1::2], strict=True))
    first = whole[0][:2]
    assert model.generate_until(asked(samples[:1], until=[whole[0][2:], "never"])) == [first.strip()]


def test_likelihoods_are_losses_and_know_what_greedy_decoding_writes(
    model: Lmms, samples: list[Sample]
) -> None:
    (said,) = model.generate_until(asked(samples[:1]))
    options = [f" {said}", " purple elephants", lambda sample: f" {said}"]
    requests = [Request((samples[0].text, option, images, 0, "toy", "test")) for option in options]
    best, worst, called = model.loglikelihood(requests)
    assert best == called and best[1] and not worst[1]
    assert 0 <= best[0] < worst[0]
    ours: Any = model
    prompt = ours.asker.prompt(ours._content(samples[0].text, images, 0, "toy", "test"))
    ((row,),) = ours.asker.likelihoods([prompt], [[" purple elephants"]])
    assert len(row) > 1 and worst[0] == pytest.approx(-sum(row) / len(row), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "expected a number from 1"),
        ({"prompt_format": "alpaca"}, "expected raw or chatml"),
    ],
)
def test_bad_model_arguments_are_refused(kit: ModuleType, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kit.QwenVL(pretrained="tiny", **options)


def test_what_it_cannot_do_is_said(model: Lmms, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="wants 5 beams"):
        model.generate_until(asked(samples, num_beams=5))
    with pytest.raises(ValueError, match="several rounds"):
        model.generate_until_multi_round([])
