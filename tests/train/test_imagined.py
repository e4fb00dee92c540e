"""What eyes are to say of scenes, and stages that learn behind it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_drawings import LETTERS, fetched, small

from qwenvl.data.drawings.streams import Composed, Place, composed, scene_at
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.markup import Image
from qwenvl.train.alignment import LENGTH, covered
from qwenvl.train.imagined import BLURRED, IDLE, Imagined
from qwenvl.train.objectives import next_token
from qwenvl.train.pointing import pointing
from qwenvl.train.stages import OptimConfig, StageConfig


def stage(folder: Path, *made: str, imagined: bool = True) -> StageConfig:
    return StageConfig(
        name="2", objective="pointing", imagined=imagined, trains=("llm",), frozen=("llm.embed",),
        image_size=28, sequence_length=320, documents=4, micro_documents=4, bfloat16=False,
        optim=OptimConfig(peak_lr=1e-2, final_lr=1e-2, warmup_steps=0, steps=2),
        data=tuple(SourceConfig(paths=(f"drawings:{each}",), images=str(folder)) for each in made),
    )  # fmt: skip


SCENES = stage(Path(__file__).parent, "scenes")
PIXELS = np.zeros((56, 56, 3), np.uint8)
CAT, DOG = (" cat", (0.0, 0.5, 0.5, 1.0)), (" dog", (0.5, 0.0, 1.0, 0.5))


def test_words_and_boxes_are_said_where_things_stand_and_little_elsewhere() -> None:
    model = small(blocks=3, heads=4)
    eyes, word = Imagined(model, LETTERS, SCENES), model.llm.embed.weight.norm(dim=1).mean().item()
    visual = eyes.of(Composed(PIXELS, (CAT, DOG)))
    for (name, box), place in ((CAT, 2), (DOG, 1)):
        said = eyes.where.rest(visual[place])
        near = torch.nn.functional.normalize(eyes.where.rest(eyes.spoken([name])[0]), dim=0)
        assert said @ near / said.norm() > 0.75 and said.norm().item() == pytest.approx(
            LENGTH * word, rel=0.1
        )
        asked = eyes.where.code(torch.tensor(box))
        assert (eyes.where.said(visual[place]) - asked).square().mean().sqrt() < 2 * BLURRED
    for place in (0, 3):
        assert visual[place].norm().item() == pytest.approx(IDLE * word, rel=0.4)
        assert eyes.where.said(visual[place]).norm() < 1e-4
    assert eyes.of(Composed(PIXELS, (CAT, DOG))).equal(visual), "the same whenever it is looked at"
    assert eyes.of(Composed(PIXELS, ())).norm() < IDLE * word * 4


def test_scenes_are_imagined_and_other_images_are_seen_as_they_are() -> None:
    eyes, seen = Imagined(small(blocks=3, heads=4), LETTERS, SCENES), torch.randn(2, 4, 96)
    scene = Composed(PIXELS, (CAT, DOG))
    heard, other = eyes([scene, Image(PIXELS)], seen)
    assert heard.equal(eyes.of(scene)) and other.equal(seen[1])


def test_scenes_know_what_stands_where_through_packing_and_squares(tmp_path: Path) -> None:
    folder = fetched(tmp_path / "drawings")
    read = stage(folder, "scenes", "lookups", "image_lookups")
    rows = next_token(small(blocks=3, heads=4), LETTERS, read, run_dir=tmp_path).batch(range(12))
    assert {len(image.source) for image in rows.images} == {28}
    assert all(isinstance(image, Composed) for image in rows.images) and 4 < len(rows.images) < 12
    shown, _ = scene_at(Place(folder=folder, licences="permissive", seed=3), 5)
    known = composed(shown)
    assert [name for name, _ in known.things[: len(shown.things)]] == [
        f" {e.shown.noun}" for e in shown.things
    ]
    side = len(shown.pixels)
    for (_, box), thing in zip(known.things, shown.things, strict=False):
        assert [round(edge * side) for edge in box] == list(thing.box)
        assert covered(np.array(box), 2).any()


def test_the_loss_is_that_of_pointing_behind_what_is_imagined(tmp_path: Path) -> None:
    folder, model = fetched(tmp_path / "drawings"), small(blocks=3, heads=4)
    objective = pointing(model, LETTERS, stage(folder, "boxed_scenes"), run_dir=tmp_path)
    given = objective.placed(objective.batch(range(4)))
    found = objective.loss(given)
    eyes, plain = (
        Imagined(model, LETTERS, SCENES),
        pointing(model, LETTERS, stage(folder, "boxed_scenes", imagined=False)),
    )
    seen = plain.loss(given)
    model.encode = lambda *_: torch.stack([eyes.of(image) for image in given.rows.rows.images])  # type: ignore[method-assign]
    torch.testing.assert_close(found.total, plain.loss(given).total)
    assert found.total != seen.total and found.images == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "next_token"}, 'set objective = "pointing", trains'),
        ({"frozen": ()}, r'frozen = \["llm.embed"\], or leave imagined out'),
        ({"trains": ("adapter", "llm")}, "imagines what eyes will say in the words of the language model"),
    ],
)
def test_stages_that_imagine_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    good = stage(tmp_path, "scenes")
    with pytest.raises(ValueError, match=sentence):
        replace(good, **changes)


def test_a_stage_that_would_imagine_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="stage 2 imagines scenes of drawings and reads none; give it rows of paths"
    ):
        pointing(small(blocks=3, heads=4), LETTERS, stage(tmp_path, "names", "lookups"))
