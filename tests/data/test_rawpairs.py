"""Raw pairs with planted defects: as many as said, and the sound ones survive the presets."""

from pathlib import Path

import pytest

from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.presets import PRESETS
from qwenvl.data.clean.run import clean
from qwenvl.data.synth.rawpairs import DEFECTS, planted, write_raw


@pytest.mark.parametrize(
    ("count", "share", "spoiled"), [(60, 0.5, 30), (61, 0.5, 30), (40, 0.25, 10), (9, 0, 0), (9, 1, 9)]
)
def test_f14_half_of_the_pairs_have_a_defect_where_half_is_said(
    count: int, share: float, spoiled: int
) -> None:
    pairs = planted(count, share=share)
    assert len(pairs) == count and len({pair.key for pair in pairs}) == count
    assert sum(pair.defect != "none" for pair in pairs) == spoiled


def test_every_defect_is_planted_as_often_as_the_others() -> None:
    defects = [pair.defect for pair in planted(4 * len(DEFECTS)) if pair.defect in DEFECTS]
    assert max(map(defects.count, DEFECTS)) - min(map(defects.count, DEFECTS)) <= 1


def test_f14_sound_pairs_survive_a_preset(tmp_path: Path) -> None:
    """F-14: the example of docs/DATA.md kept 0 of 60, because every image was smaller than the preset wants."""
    write_raw(planted(60), tmp_path / "raw", shards=3, cut=False)
    outcome = clean(tmp_path / "raw", tmp_path / "out", Settings(thresholds=PRESETS["laion-en"].thresholds))
    assert outcome.total.read == 60 and 20 <= outcome.total.kept <= 40
