"""Every benchmark in small, in the format that it is published in, with answers whose score is known by hand."""

import base64
import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.data.datasets.sample import Source
from qwenvl.evaluation.metrics.mme import COGNITION, PERCEPTION

MODEL = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
"""An official checkpoint with random weights: its answers are noise, but it answers."""


@dataclass(frozen=True)
class Small:
    """The files, answers by question id, and what they score."""

    source: Source
    said: Mapping[str, str]
    value: float
    failures: int = 0


def paint(path: Path, colour: str = "red", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def dump(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def lines(path: Path, records: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def ten(answer: str, times: int) -> list[dict[str, str]]:
    """Ten people, of whom so many agree."""
    return [{"answer": answer if k < times else f"other {k}"} for k in range(10)]


# Agreement of 10, 3, 2, 4 and 0 people: 1, (3 * 2/3 + 7) / 10, (2 * 1/3 + 8 * 2/3) / 10, 1 and 0.
AGREEMENT = (("red", 10), ("dog", 3), ("car", 2), ("sky", 4), ("cat", 5))
VQA_SAID = ("Red.", "a dog", "the car", "sky", "bird")
VQA_VALUE = 100 * (1 + 0.9 + 0.6 + 1 + 0) / 5


def vqa(folder: Path) -> Small:
    for k in range(5):
        paint(folder / f"COCO_val2014_{k + 1:012d}.jpg")
    questions = [{"image_id": k + 1, "question": "What?", "question_id": 10 * k} for k in range(5)]
    people = [
        {"question_id": 10 * k, "answers": ten(a, n), "answer_type": "other"}
        for k, (a, n) in enumerate(AGREEMENT)
    ]
    data = dump(folder / "questions.json", {"data_subtype": "val2014", "questions": questions})
    answers = dump(folder / "annotations.json", {"annotations": people})
    return Small(Source(data, answers), {str(10 * k): s for k, s in enumerate(VQA_SAID)}, VQA_VALUE)


def vizwiz(folder: Path) -> Small:
    names = [paint(folder / f"VizWiz_val_{k:08d}.jpg").name for k in range(5)]
    records = [
        {"image": name, "question": "What is this?", "answers": ten(*pair), "answer_type": "other"}
        for name, pair in zip(names, AGREEMENT, strict=True)
    ]
    return Small(
        Source(dump(folder / "val.json", records)), dict(zip(names, VQA_SAID, strict=True)), VQA_VALUE
    )


def textvqa(folder: Path) -> Small:
    records = [
        {"question_id": 34602 + k, "image_id": paint(folder / f"pic{k}.jpg").stem, "question": "What does it say?",
         "answers": [one["answer"] for one in ten(*pair)]}
        for k, pair in enumerate(AGREEMENT)
    ]  # fmt: skip
    said = {str(34602 + k): s for k, s in enumerate(VQA_SAID)}
    return Small(Source(dump(folder / "TextVQA_0.5.1_val.json", {"data": records})), said, VQA_VALUE)


def docvqa(folder: Path) -> Small:
    truth = ("abcd", "same", "abcd", "abcd", "full")
    said = ("abce", " SAME ", "abxy", "axyz", "")  # 0.75, 1, exactly one half, below it, nothing
    records = [
        {"questionId": k, "question": "What?", "answers": [answer, "zzzzzzzz"],
         "image": str(paint(folder / "documents" / f"{k}.png").relative_to(folder))}
        for k, answer in enumerate(truth)
    ]  # fmt: skip
    data = dump(folder / "val_v1.0.json", {"data": records})
    return Small(
        Source(data), {str(k): s for k, s in enumerate(said)}, 100 * (0.75 + 1 + 0.5) / 5, failures=1
    )


def gqa(folder: Path) -> Small:
    said = (
        "The dog.",
        "dog",
        "It is a dog, I think",
        "cat",
        "A dog of the house",
    )  # the last is cut to "house"
    records = {
        f"q{k}": {"imageId": paint(folder / f"n{k}.jpg").stem, "question": "What is it?", "answer": "dog"}
        for k in range(5)
    }
    data = dump(folder / "testdev_balanced_questions.json", records)
    return Small(Source(data), {f"q{k}": s for k, s in enumerate(said)}, 60.0)


def chartqa(folder: Path) -> Small:
    halves = {"human": ("10.4", "0.0", "Yes"), "augmented": ("106", "0.5")}
    said = {
        "human": ("10", "0", "yes"),
        "augmented": ("100", "50%"),
    }  # 4 % off; a zero is compared as text; 6 % off
    for part, truth in halves.items():
        records = [
            {"imgname": paint(folder / "png" / f"{part}{k}.png").name, "query": "How many?", "label": label}
            for k, label in enumerate(truth)
        ]
        dump(folder / f"test_{part}.json", records)
    answers = {f"{part}-{k}": s for part, own in said.items() for k, s in enumerate(own)}
    return Small(Source(folder), answers, 100 * (2 / 3 + 1 / 2) / 2)


def ocrvqa(folder: Path) -> Small:
    books = {
        f"book{k}": {
            "split": 3 if k < 3 else 1,
            "questions": ["Title?", "Author?"],
            "answers": ["It", "S. King"],
        }
        for k in range(4)
    }
    for name in books:
        paint(folder / f"{name}.jpg")
    said = {f"book{k}-{q}": ("IT ", "King")[q] for k in range(3) for q in range(2)}
    return Small(Source(dump(folder / "dataset.json", books)), said, 50.0)


def ai2d(folder: Path) -> Small:
    for k in range(5):
        paint(folder / f"{k}.png")
        about = {
            "answerTexts": ["frog", "tadpole", "egg", "fish"],
            "correctAnswer": k % 2,
            "questionId": f"{k}.png-0",
        }
        dump(folder / f"{k}.png.json", {"imageName": f"{k}.png", "questions": {"What grows?": about}})
    return Small(Source(folder), {f"{k}.png-0": "Frog" for k in range(5)}, 60.0)


def captions(folder: Path) -> Small:
    """A caption equal to its only reference scores 10; one that shares no word scores 0."""
    texts = [
        "one two three four",
        "five six seven eight",
        "nine ten red blue",
        "dogs run over hills",
        "cats sit under trees",
    ]
    images = [{"id": k, "file_name": paint(folder / f"{k}.jpg").name} for k in range(5)]
    notes = [{"id": k, "image_id": k, "caption": text} for k, text in enumerate(texts)]
    said = [*texts[:3], "nothing like that", "nor like this"]
    data = dump(folder / "val_captions.json", {"images": images, "annotations": notes})
    return Small(Source(data), {str(k): s for k, s in enumerate(said)}, 100 * 10 * 3 / 5)


def karpathy(folder: Path) -> Small:
    small = captions(folder)
    notes = json.loads(small.source.data.read_text())
    images = [
        {
            "filename": f"{k}.jpg",
            "imgid": k,
            "split": "test",
            "sentences": [{"raw": notes["annotations"][k]["caption"]}],
        }
        for k in range(5)
    ]
    images += [
        {
            "filename": paint(folder / f"{k}.jpg").name,
            "imgid": k,
            "split": "train",
            "sentences": [{"raw": "a wall"}],
        }
        for k in range(5, 8)
    ]
    return Small(Source(dump(folder / "dataset_flickr30k.json", {"images": images})), small.said, small.value)


PHRASE_SAID = ("(0,0),(499,499)", "(0,0),(499,990)", "(500,500),(999,999)", "nowhere", "(0, 0),(499, 499)")
"""Of a box that is the left upper quarter: IoU 1, a little over one half, 0, no box, IoU 1."""
PHRASE_VALUE = 100 * 3 / 5


def refcoco(split: str) -> Callable[[Path], Small]:
    def build(folder: Path) -> Small:
        for k in range(5):
            paint(folder / f"COCO_train2014_{k:012d}.jpg", size=(999, 999))
        images = [
            {"id": k, "file_name": f"COCO_train2014_{k:012d}.jpg", "width": 999, "height": 999}
            for k in range(5)
        ]
        boxes = [{"id": 100 + k, "image_id": k, "bbox": [0, 0, 499, 499]} for k in range(5)]
        refs = [
            {
                "ref_id": k,
                "ann_id": 100 + k,
                "image_id": k,
                "split": split,
                "sentences": [{"sent_id": k, "sent": "dog"}],
            }
            for k in range(5)
        ]
        refs.append({**refs[0], "split": "train", "sentences": [{"sent_id": 99, "sent": "dog"}]})
        (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
        answers = dump(folder / "instances.json", {"images": images, "annotations": boxes})
        source = Source(folder / "refs(unc).p", answers)
        return Small(source, {str(k): s for k, s in enumerate(PHRASE_SAID)}, PHRASE_VALUE, failures=1)

    return build


def grit(folder: Path) -> Small:
    records = [
        {"example_id": f"e{k}", "image": paint(folder / f"{k}.jpg").name, "phrase": "the dog",
         "bbox": [0, 0, 499, 499], "width": 999, "height": 999}
        for k in range(5)
    ]  # fmt: skip
    said = {f"e{k}": s for k, s in enumerate(PHRASE_SAID)} | {
        "e4": "(0,0),(499,998)"
    }  # exactly one half: not above it
    return Small(Source(dump(folder / "refexp.json", records)), said, 40.0, failures=1)


def scienceqa(folder: Path) -> Small:
    problems: dict[str, object] = {
        str(k): {"question": "Which?", "choices": ["a", "b", "c"], "answer": k % 3, "hint": "", "image": "image.png",
                 "split": "test", "subject": "natural science"}
        for k in range(5)
    }  # fmt: skip
    problems["6"] = {"question": "No image", "choices": ["a"], "answer": 0, "image": None, "split": "test"}
    for k in range(5):
        paint(folder / "test" / str(k) / "image.png")
    said = {str(k): " A" for k in range(4)} | {"4": "Z"}  # the last is no option
    return Small(Source(dump(folder / "problems.json", problems)), said, 40.0, failures=1)


def seed(part: str) -> Callable[[Path], Small]:
    """Questions about images and videos in turn; the answers are A, A, B, B, C, C."""

    def build(folder: Path) -> Small:
        options = {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
        records = []
        for k in range(6):
            kind = 11 if k % 2 else 1
            number = f"{kind}_{k}"
            names = [f"{number}_{n}.jpg" for n in range(8)] if k % 2 else [f"{k}.jpg"]
            for name in names:
                paint(folder / name)
            records.append(
                {"question_id": number, "question_type_id": kind, "data_id": f"{k}.jpg", "question": "Which?",
                 "answer": "ABCD"[k // 2], **options}
            )  # fmt: skip
        asked = {"all": range(6), "image": range(0, 6, 2), "video": range(1, 6, 2)}[part]
        said = {f"{11 if k % 2 else 1}_{k}": "A" for k in asked}
        return Small(Source(dump(folder / "SEED-Bench.json", {"questions": records})), said, 100 / 3)

    return build


MMBENCH_SAID = ("AB", "AA", "ABB", "A")
"""To the rotations of four questions: all right; one of two; two of three; the only one. Two of four are right."""


def mmbench(folder: Path) -> Small:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "blue").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    rows = ["index\timage\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory"]
    said = {}
    for question, answers in enumerate(MMBENCH_SAID):
        options = ("up", "down", "left")[: max(2, len(answers))]
        for k, answer in enumerate(
            answers
        ):  # each rotation moves the first option, which is right, one place back
            turned = [*options[-k:], *options[:-k]] if k else [*options]
            cells = "\t".join([*turned, "", ""][:4])
            rows.append(f"{k * 1_000_000 + question}\t{image}\tWhich one?\t\t{cells}\t{'ABC'[k]}\tlogic")
            said[str(k * 1_000_000 + question)] = answer
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mmbench_dev.tsv").write_text("\n".join(rows) + "\n")
    return Small(Source(folder / "mmbench_dev.tsv"), said, 50.0)


def exam(header: str, split: str, ending: str) -> Callable[[Path], Small]:
    def build(folder: Path) -> Small:
        columns = header.lower().split(",") if header else ["question", *"abcd", "answer"]
        for part, count in (("dev", 5), (split, 5)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            rows = [header] if header else []
            for k in range(count):
                cells = {"question": f"{k} plus one?", "answer": "ABCD"[k % 4], "id": str(k), "": str(k)}
                rows.append(",".join(cells.get(column, f"option {column}") for column in columns))
            name = f"algebra{'_' + part if ending else ''}.csv"
            (folder / part / name).write_text("\n".join(rows) + "\n")
        return Small(Source(folder), {f"algebra-{k}": "A" for k in range(5)}, 40.0)

    return build


def mme(subtasks: tuple[str, ...]) -> Callable[[Path], Small]:
    def build(folder: Path) -> Small:
        said = {}
        for subtask in subtasks:
            rows = []
            for k in range(2):
                name = paint(folder / subtask / "images" / f"{k}.jpg").name
                rows += [f"{name}\tIs it red? Please answer yes or no.\tYes", f"{name}\tIs it blue? ...\tNo"]
                said |= {f"{subtask}/{name}/0": "Yes.", f"{subtask}/{name}/1": "No" if k else "yes"}
            (folder / f"{subtask}.txt").write_text("\n".join(rows) + "\n")
        return Small(Source(folder), said, 125.0 * len(subtasks))  # acc 3/4, acc+ 1/2

    return build


def touchstone(folder: Path) -> Small:
    rows = ["index\timage\tquestion\thuman_annotation\tgpt4_ha_answer\tcategory\ttask_name"]
    for k in range(5):
        rows.append(f"{k}\t{paint(folder / f'{k}.jpg').name}\tTell me.\tA red wall.\tIt is a wall.\tbasic\tx")
    (folder / "touchstone.tsv").write_text("\n".join(rows) + "\n")
    return Small(Source(folder / "touchstone.tsv"), {str(k): "a wall" for k in range(5)}, 0.0)


SMALL: Mapping[str, Callable[[Path], Small]] = {
    "flickr30k": karpathy, "nocaps": captions, "vqav2": vqa, "okvqa": vqa, "gqa": gqa, "scienceqa": scienceqa,
    "vizwiz": vizwiz, "textvqa": textvqa, "docvqa": docvqa, "chartqa": chartqa, "ai2d": ai2d, "ocrvqa": ocrvqa,
    **{f"refcoco{plus}-{split}": refcoco(split) for plus in ("", "+") for split in ("val", "testA", "testB")},
    **{f"refcocog-{split}": refcoco(split) for split in ("val", "test")},
    "grit": grit, "touchstone-en": touchstone, "touchstone-cn": touchstone,
    "seed": seed("all"), "seed-image": seed("image"), "seed-video": seed("video"), "mmbench": mmbench,
    "mme-perception": mme(PERCEPTION), "mme-cognition": mme(COGNITION),
    "mmlu": exam("", "test", "_"), "cmmlu": exam(",Question,A,B,C,D,Answer", "test", ""),
    "ceval": exam("id,question,A,B,C,D,answer", "val", "_"),
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], Small]:
    """`small("okvqa")`: the files in a folder of this test."""

    def build(name: str) -> Small:
        (tmp_path / "data").mkdir(exist_ok=True)
        return SMALL[name](tmp_path / "data")

    return build


@pytest.fixture
def model() -> Path:
    """A checkpoint that answers noise."""
    return MODEL
