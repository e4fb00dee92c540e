"""Questions about pictures (paper A.2, Table 3): the nine VQA sets of stage 2, from the files their authors published.

Every reader takes the annotation files and the folder of pictures, and yields `Question` records in the order of the
file. Only VQAv2 needs a choice: its answer is the one given with the most confidence.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenvl.data.readers.annotations import Found, expect, listed, load_json
from qwenvl.data.records import Question, Skipped
from qwenvl.markup import Image

_CONFIDENCE = {"yes": 2, "maybe": 1, "no": 0}


def most_confident(answers: Sequence[Mapping[str, Any]]) -> str | None:
    """VQAv2's ten answers to one (A.2: "based on the maximum confidence"); None where nobody answered.

    Of the answers given with the highest confidence that anybody had (yes before maybe before no) the most frequent;
    the paper leaves ties open: among equals the one that more people gave at all, then the one given first.
    """
    said = [str(each.get("answer", "")).strip() for each in answers]
    sure = [_CONFIDENCE.get(str(each.get("answer_confidence", "no")), 0) for each in answers]
    candidates = [(word, level) for word, level in zip(said, sure, strict=True) if word]
    if not candidates:
        return None
    top = max(level for _, level in candidates)
    surest = Counter(word for word, level in candidates if level == top)
    everybody = Counter(word for word, _ in candidates)
    return max(surest, key=lambda word: (surest[word], everybody[word]))  # max keeps the first of equals


def most_frequent(answers: Iterable[Any]) -> str | None:
    """The answer that most people gave, the first of equals; None where nobody answered."""
    counted = Counter(str(answer).strip() for answer in answers if str(answer).strip())
    return counted.most_common(1)[0][0] if counted else None


def _question(image: Path, question: Any, answer: Any, source: str, key: Any) -> Question | Skipped:
    words = str(question or "").strip()
    reply = str(answer if answer is not None else "").strip()
    if not words or not reply:
        return Skipped(key=str(key), kind="no question" if not words else "no answer", source=source)
    return Question(image=Image(str(image)), question=words, answer=reply, source=source)


def vqav2(files: Sequence[Path], images: Path) -> Found:
    """`v2_OpenEnded_mscoco_train2014_questions.json` and `v2_mscoco_train2014_annotations.json`."""
    questions, annotations = expect(files, 2, "questions and annotations")
    asked = load_json(questions)
    answers = {
        each["question_id"]: each for each in listed(load_json(annotations), annotations, "annotations")
    }
    split = asked.get("data_subtype", "train2014") if isinstance(asked, dict) else "train2014"
    for each in listed(asked, questions, "questions"):
        found = answers.get(each["question_id"])
        name = images / f"COCO_{split}_{int(each['image_id']):012d}.jpg"
        answer = None if found is None else most_confident(found["answers"])
        yield _question(name, each["question"], answer, "VQAv2", each["question_id"])


def gqa(files: Sequence[Path], images: Path) -> Found:
    """`train_balanced_questions.json`: question id -> imageId, question, answer."""
    for path in files:
        for key, each in load_json(path).items():
            yield _question(
                images / f"{each['imageId']}.jpg", each["question"], each.get("answer"), "GQA", key
            )


def vgqa(files: Sequence[Path], images: Path) -> Found:
    """Visual Genome's `question_answers.json`, and `image_data.json` for the folder that each picture is in."""
    path, image_data = expect(files, 2, "question_answers.json and image_data.json")
    names = genome_names(image_data)
    for image in listed(load_json(path), path):
        for each in image["qas"]:
            name = images / names.get(
                image.get("id", image.get("image_id")), f"VG_100K/{image.get('id')}.jpg"
            )
            yield _question(name, each["question"], each["answer"], "VGQA", each["qa_id"])


def genome_names(image_data: Path) -> Mapping[int, str]:
    """Visual Genome: image id -> `VG_100K_2/1.jpg`, the end of its URL."""
    return {
        each.get("image_id", each.get("id")): "/".join(each["url"].split("/")[-2:])
        for each in listed(load_json(image_data), image_data)
    }


def dvqa(files: Sequence[Path], images: Path) -> Found:
    """`train_qa.json`: a list of question, answer, image."""
    for path in files:
        for each in listed(load_json(path), path):
            yield _question(
                images / each["image"], each["question"], each["answer"], "DVQA", each["question_id"]
            )


def ocr_vqa(files: Sequence[Path], images: Path, split: int = 1) -> Found:
    """`dataset.json`: id -> imageURL, questions, answers, split (1 train, 2 validation, 3 test); only train is read."""
    for path in files:
        for key, each in load_json(path).items():
            if each.get("split", split) != split:
                continue
            name = images / f"{key}{Path(each.get('imageURL', '')).suffix or '.jpg'}"
            for question, answer in zip(each["questions"], each["answers"], strict=False):
                yield _question(name, question, answer, "OCR-VQA", key)


def docvqa(files: Sequence[Path], images: Path) -> Found:
    """`train_v1.0.json`: data of question, image, answers; the first answer is taken."""
    for path in files:
        for each in listed(load_json(path), path, "data"):
            answer = next(iter(each.get("answers", ())), None)
            yield _question(images / each["image"], each["question"], answer, "DocVQA", each["questionId"])


def textvqa(files: Sequence[Path], images: Path) -> Found:
    """`TextVQA_0.5.1_train.json`: data of question, image_id and ten answers; the most frequent is taken."""
    for path in files:
        for each in listed(load_json(path), path, "data"):
            answer = most_frequent(each.get("answers", ()))
            yield _question(
                images / f"{each['image_id']}.jpg", each["question"], answer, "TextVQA", each["question_id"]
            )


def chartqa(files: Sequence[Path], images: Path) -> Found:
    """`train_human.json` and `train_augmented.json`: lists of imgname, query, label."""
    for path in files:
        for number, each in enumerate(listed(load_json(path), path)):
            yield _question(
                images / each["imgname"], each["query"], each["label"], "ChartQA", f"{path.stem}-{number}"
            )


def ai2d(files: Sequence[Path], images: Path) -> Found:
    """`questions/NAME.png.json`, one file per picture or the folder of them; the right option's text is the answer."""
    paths = [p for file in files for p in (sorted(file.glob("*.json")) if file.is_dir() else [file])]
    for path in paths:
        sheet = load_json(path)
        for question, each in sheet["questions"].items():
            options = each["answerTexts"]
            right = each.get("correctAnswer")
            answer = options[right] if isinstance(right, int) and 0 <= right < len(options) else None
            yield _question(images / sheet["imageName"], question, answer, "AI2D", each.get("questionId"))
