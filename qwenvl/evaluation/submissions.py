"""Files for the test servers: VQAv2 and VizWiz (EvalAI), DocVQA (RRC), MMBench (OpenCompass)."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from qwenvl.data.datasets.sample import LETTERS, Sample
from qwenvl.evaluation.scoring import most_chosen, rotated_question

Answers = Mapping[str, str]


def write(form: str, samples: Sequence[Sample], answers: Answers, path: Path) -> None:
    """The file of one of `FORMS`. Raises ValueError if a question has no answer: a server refuses the whole file."""
    unanswered = [sample.id for sample in samples if sample.id not in answers]
    if unanswered:
        raise ValueError(
            f"{len(unanswered)} of {len(samples)} questions have no answer, such as {unanswered[0]}; "
            "a server takes complete files only. Run the benchmark to its end."
        )
    FORMS[form](samples, answers, path)


def _vqa(samples: Sequence[Sample], answers: Answers, path: Path) -> None:
    _json([{"question_id": int(sample.id), "answer": answers[sample.id]} for sample in samples], path)


def _vizwiz(samples: Sequence[Sample], answers: Answers, path: Path) -> None:
    named = [(Path(str(sample.images[0])).name, answers[sample.id]) for sample in samples]
    _json([{"image": name, "answer": said} for name, said in named], path)


def _docvqa(samples: Sequence[Sample], answers: Answers, path: Path) -> None:
    _json([{"questionId": int(sample.id), "answer": answers[sample.id]} for sample in samples], path)


def _mmbench(samples: Sequence[Sample], answers: Answers, path: Path) -> None:
    """An Excel sheet with the question, its options and the letter under `prediction`.

    As the release's file, it answers every rotation of a question with the option that most of them chose.
    """
    said = {sample.id: answers[sample.id].strip() for sample in samples}
    chosen: dict[str, list[str]] = {}
    for sample in samples:
        if said[sample.id] in sample.letters:
            chosen.setdefault(rotated_question(sample), []).append(sample.option(said[sample.id]))
    rows = [["index", "question", "A", "B", "C", "D", "prediction"]]
    for sample in samples:
        options = [*sample.options, "", "", "", ""][:4]
        agreed = most_chosen(chosen.get(rotated_question(sample), ()))
        letter = LETTERS[sample.options.index(agreed)] if agreed in sample.options else said[sample.id]
        rows.append([sample.id, sample.text, *options, letter])
    write_sheet(rows, path)


def _json(records: object, path: Path) -> None:
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


FORMS: Mapping[str, Callable[[Sequence[Sample], Answers, Path], None]] = {
    "vqa": _vqa,
    "vizwiz": _vizwiz,
    "docvqa": _docvqa,
    "mmbench": _mmbench,
}

# === The smallest workbook that Excel, LibreOffice and pandas read ===

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def write_sheet(rows: Sequence[Sequence[str]], path: Path) -> None:
    """One sheet of text cells as .xlsx."""
    cells = "".join(
        "<row>"
        + "".join(f'<c t="inlineStr"><is><t xml:space="preserve">{_clean(c)}</t></is></c>' for c in row)
        + "</row>"
        for row in rows
    )
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    files = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPES}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPES}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_MAIN}"><sheetData>{cells}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in files.items():
            book.writestr(name, head + text)


def _clean(cell: str) -> str:
    """Escaped, without the control characters that XML cannot hold."""
    return escape("".join(c for c in cell if c in "\t\n\r" or c >= " "))
