"""What is held out is never trained on, whatever stands in the folder."""

from pathlib import Path

import numpy as np
import small_drawings
from small_drawings import fetched

from qwenvl.data.drawings import splits
from qwenvl.data.drawings.collection import PERMISSIVE, Collection
from qwenvl.data.drawings.labels import common_labels, labels_of
from qwenvl.data.drawings.packages import known
from qwenvl.files import safe_key


def test_the_splits_are_those_of_the_issue() -> None:
    assert all(safe_key(key) == key for name in splits.SPLITS for _, key in splits.split(name)), (
        "as shards have them"
    )
    sizes = {name: len(splits.split(name)) for name in splits.SPLITS}
    assert sizes == {"test-style": 547, "test-medium": 1205, "test-clipart": 629}
    assert {source for source, _ in splits.split("test-medium")} == splits.HELD_OUT_SETS - {"twemoji"}
    assert {source for source, _ in splits.split("test-style")} == {"twemoji"}
    assert all(splits.noun(id) for name in splits.SPLITS for id in splits.split(name).values())


def test_every_held_out_drawing_is_kept_from_training() -> None:
    for name in splits.SPLITS:
        assert all(splits.is_held_out(source, key) for source, key in splits.split(name))
    for source in splits.HELD_OUT_SETS:
        assert splits.is_held_out(source, "a drawing without a noun")
    assert splits.is_held_out("emojione", "egg"), "twemoji's once more"
    assert not splits.is_held_out("noto", "frog") and not splits.is_held_out("openclipart", "anything else")


def test_training_reads_no_held_out_set_and_no_licence_that_asks_for_more(tmp_path: Path) -> None:
    collection = Collection(fetched(tmp_path))
    assert {each.source for each in collection.drawings} == set(small_drawings.SETS)
    assert {each.source for each in collection.training()} == {"noto", "lucide"}
    assert {each.licence for each in collection.training()} <= PERMISSIVE
    assert {each.source for each in collection.training("any")} == {"noto", "lucide", "openmoji"}


def test_held_out_drawings_are_found_with_what_they_show(tmp_path: Path) -> None:
    found = Collection(fetched(tmp_path)).held_out("test-style")
    assert {(each.source, each.key, splits.noun(id).noun) for each, id in found} >= {
        ("twemoji", "cat", "cat")
    }
    assert all(each.source == "twemoji" for each, _ in found)


def test_the_vocabularies_are_nouns_that_training_knows_and_say_them_in_two_languages() -> None:
    few, many = splits.VOCABULARIES
    nouns = splits.nouns()
    assert len({each.id for each in nouns}) == len(nouns) >= many
    assert sum(bool(each.zh) for each in nouns[:few]) >= 0.95 * few
    assert {"car", "key", "cat", "umbrella"} <= {each.noun for each in nouns[:few]}
    assert all(each.noun == each.names("en")[0] for each in nouns)


def test_every_package_whose_drawings_are_held_out_is_one_that_is_fetched() -> None:
    assert {"@iconify-json/twemoji", "tuxpaint-stamps-default", "pysiogame"} <= {
        each.name for each in known()
    }


def test_a_drawing_is_itself_with_its_transparency(tmp_path: Path) -> None:
    drawing = Collection(fetched(tmp_path)).drawings[3]
    image = drawing.image()
    assert (drawing.name, drawing.en, drawing.zh, image.mode) == ("noto/bus", "bus", "公交车", "RGBA")
    alpha = np.asarray(image)[..., 3]
    assert alpha[0, 0] == 0 and alpha[24, 24] == 255


def test_labels_are_what_several_sets_say(tmp_path: Path) -> None:
    collection = Collection(fetched(tmp_path))
    cat = next(each for each in collection.drawings if each.key == "grinning-cat")
    shares = labels_of(cat)
    assert shares["grinning cat"] == 0.5 and abs(sum(shares.values()) - 1) < 1e-9
    assert {"animal", "cat", "face"} < shares.keys()
    assert common_labels(collection.training(), least=4, sets=2) == [
        "animal",
        "cat",
        "pet",
        "road",
        "vehicle",
    ]
    assert "animal" not in common_labels(collection.training(), least=2, sets=3), "two sets are trained on"
