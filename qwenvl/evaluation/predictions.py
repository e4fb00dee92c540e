"""Predictions on disk: one JSON object per line, whole lines only, whatever killed the run.

id        the question
key       digest of all that the answer depends on: weights, prompt, images, decoding
prompt    as asked, tags and all; an image is `<img></img>`
raw       what the model wrote, with tags        plain   without, as the metrics read it
nll       negative log-likelihoods of the options, where one was chosen: means of their tokens, or of whole answers
parsed, score, failed, truth                     added by scoring
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedRandom, BytesIO
from pathlib import Path
from typing import Any

from qwenvl.config import from_dict
from qwenvl.data.datasets.annotations import is_lines, load_json, load_lines
from qwenvl.files import atomic
from qwenvl.images import rgb
from qwenvl.parsing import Damaged, json_lines

ANSWER_FIELDS = ("plain", "answer", "prediction", "caption", "raw")
"""Where a line that another program wrote may keep its answer."""
ID_FIELDS = ("id", "question_id", "questionId", "image_id", "index")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer, not judged yet."""

    id: str
    key: str = ""
    prompt: str = ""
    raw: str = ""
    plain: str = ""
    nll: tuple[float, ...] = ()
    seconds: float = 0.0
    """Share of its batch's time."""
    ground: tuple[int, ...] = ()
    """What stood behind the transparency of its images (`images.rgb`)."""

    def __post_init__(self) -> None:
        rgb(self.ground)


@contextmanager
def appending(path: Path) -> Iterator[BufferedRandom]:
    """The file, open at the end of its last whole line. Raises ValueError while another process writes it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another run is writing {path}; wait for it or give another --out.") from None
        content = file.read()
        file.seek(content.rfind(b"\n") + 1)
        file.truncate()
        yield file


def append(file: BufferedRandom, predictions: Iterable[Prediction]) -> None:
    """Write whole lines and hand them to the system."""
    lines = [json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in predictions]
    file.write("".join(lines).encode())
    file.flush()


def read_written(folder: Path) -> dict[str, Prediction]:
    """All predictions of a run's folder by key, whoever wrote them; a torn last line is left out.

    Raises ValueError for a line that no run wrote.
    """
    found: dict[str, Prediction] = {}
    for path in sorted(folder.glob("predictions-*.jsonl")):
        whole = path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        for number, record in json_lines(BytesIO(whole), str(path)):
            if isinstance(record, Damaged):
                raise ValueError(f"{record.reason} Remove the line, and its question is asked again.")
            prediction = _prediction(record, f"{path}, line {number}")
            found[prediction.key] = prediction
    return found


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader never finds half of it."""
    with atomic(path) as file:
        file.write(text.encode())


def read_foreign(path: Path) -> dict[str, Prediction]:
    """Answers by question id from JSON lines or a JSON list: ours, or any with an id and an answer.

    Raises ValueError for an entry without either, with a value of another type, and for an id that occurs twice.
    """
    found: dict[str, Prediction] = {}
    for number, record in enumerate(_records(path), start=1):
        where = f"{path} entry {number}"
        name = next((name for name in ID_FIELDS if name in record), None)
        said = next((name for name in ANSWER_FIELDS if name in record), None)
        if name is None or said is None:
            raise ValueError(
                f"{where} has the fields {', '.join(record)}; expected one of {', '.join(ID_FIELDS)} and one of "
                f"{', '.join(ANSWER_FIELDS)}."
            )
        if not isinstance(record[name], str | int) or isinstance(record[name], bool):
            raise ValueError(
                f"{where} has the {name} {record[name]!r}; expected the number or the text of a question."
            )
        key, answer = str(record[name]), record[said]
        if key in found:
            raise ValueError(f"{where} answers the question {key!r} a second time; every id must occur once.")
        if not isinstance(answer, str):
            raise ValueError(f"{where} has an answer that is a {type(answer).__name__}; expected text.")
        optional = {name: record[name] for name in ("prompt", "seconds", "ground") if name in record}
        own = {"id": key, "raw": record.get("raw", answer), "plain": answer, **optional}
        found[key] = _prediction(own, where)
    return found


def _prediction(record: Any, where: str) -> Prediction:
    """A record of our own form. Raises ValueError for an unknown key, a value of another type or no finite number."""
    prediction = from_dict(Prediction, record, where)
    if not all(map(math.isfinite, (prediction.seconds, *prediction.nll))):
        raise ValueError(f"{where} has seconds or nll that are no finite numbers; write it again.")
    return prediction


def _records(path: Path) -> list[Mapping[str, Any]]:
    if is_lines(path):
        return list(load_lines(path))
    records = load_json(path)
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(
            f"{path} is not a list of objects; expected predictions as JSON lines or a JSON list."
        )
    return records
