"""For tests of the benchmarks: small data in the published forms, read by the real readers; a describer; judges."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from data_pipelines.prepare import prepare
from eval.evaluation import Settings

from .annotation_files import CATEGORIES, annotation_entry, image_entry, polygon, write_json, write_picture
from .eval_fakes import OpensMany

LEFT, RIGHT = polygon(2, 4, 20, 30), polygon(30, 5, 50, 25)


@dataclass
class TellingDescriber(OpensMany):
    """Answers by `answer(question)`; remembers overviews, and how many regions each question had."""

    answer: Callable[[str], str]
    overviews: list[str] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def open(self, image: Path, overview: str = "the default") -> "TellingSession":
        self.overviews.append(overview)
        width, height = Image.open(image).size
        return TellingSession(self, height, width)


@dataclass
class TellingSession:
    describer: TellingDescriber
    height: int
    width: int

    def ask_groups(self, groups: Sequence[Sequence[object]], questions: Sequence[str], **options: object) -> list[str]:
        self.describer.asked += [(text, len(group)) for text, group in zip(questions, groups, strict=True)]
        return [self.describer.answer(text) for text in questions]


def settings_for(task: str, data: Path, **changes) -> Settings:
    model = data.parent / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return Settings(task, data, data.parent / f"out-{task}", model=model, **changes)


def judged_by(server, **changes) -> dict:
    return {"judge": server.url, "judge_model": "judge-8b", "judge_key_variable": "TEST_KEY", **changes}


def prepare_pope(folder: Path, labels: Sequence[str]) -> Path:
    """Question n asks for thing n, two a picture."""
    lines = []
    for number, label in enumerate(labels, start=1):
        picture = f"COCO_val2014_{number // 2:012d}.jpg"
        write_picture(folder / "images", picture)
        entry = {"question_id": number, "image": picture, "text": f"Is there a thing {number} in the image?"}
        lines.append(json.dumps({**entry, "label": label}) + "\n")
    path = folder / "coco_pope_random.json"
    path.write_text("".join(lines))
    return prepared(folder, "pope", path)


def prepare_ferret(folder: Path, questions: Sequence[tuple[str, str]]) -> Path:
    """(category, text) of each question, which is about a polygon of its own picture."""
    entries = []
    for number, (category, text) in enumerate(questions):
        picture = f"{number:012d}.jpg"
        write_picture(folder / "images", picture)
        annotation = {"bbox": [2, 4, 18, 26], "segmentation": [LEFT]}
        entry = {"question_id": number, "image": picture, "category": category, "text": text}
        entries.append({**entry, "annotation": annotation})
    return prepared(folder, "ferret-bench", write_json(folder / "box_refer.json", entries))


def prepare_descriptions(folder: Path, descriptions: Sequence[Sequence[str]]) -> Path:
    """Osprey's detailed descriptions: those of the one or two regions of each picture."""
    entries = []
    for number, texts in enumerate(descriptions):
        write_picture(folder / "images", f"{number:012d}.jpg")
        entry = {"file_name": f"{number:012d}.jpg", "height": 40, "width": 60}
        regions = [{"segmentation": [outline]} for outline in (LEFT, RIGHT)[: len(texts)]]
        told = [f"<region{place}>: {text}" for place, text in enumerate(texts, start=1)]
        entries.append({**entry, "annotation": regions, "description": told})
    return prepared(
        folder, "osprey-detailed-description", write_json(folder / "osprey_detail_description.json", entries)
    )


def prepare_dlc_bench(folder: Path, objects: Sequence[tuple[str, list[dict]]]) -> Path:
    """(class name, questions) of each object, numbered from 100; each is alone in its picture."""
    images, annotations = [], []
    for number in range(len(objects)):
        name = f"objects365_v2_{number:08d}.jpg"
        write_picture(folder / "images", name)
        images.append(image_entry(number, file_name=name))
        annotations.append(annotation_entry(100 + number, number, [LEFT]))
    write_json(folder / "qa.json", {str(100 + n): questions for n, (_, questions) in enumerate(objects)})
    write_json(folder / "class_names.json", {str(100 + n): name for n, (name, _) in enumerate(objects)})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return prepared(folder, "dlc-bench", write_json(folder / "annotations.json", content))


def prepared(folder: Path, source: str, annotations: Path) -> Path:
    prepare(source, annotations, folder / "images", folder / "records", progress=False)
    return folder / "records"


def rated_texts(body: dict) -> tuple[str, str]:
    """The reference and the model's answer in a request for ratings."""
    return re.findall(r"\[Assistant \d\]\n(.*?)\n\[End of", body["messages"][-1]["content"], re.DOTALL)


def overlap_judge(body: dict) -> str:
    """Rates the reference 10, the answer by the share of the reference's words in it."""
    reference, answer = (set(text.lower().split()) for text in rated_texts(body))
    return f"10 {1 + 9 * len(reference & answer) / len(reference):g}\nBy words in common."


def described(body: dict) -> tuple[str, str, dict[str, str]]:
    """Description, question and choices by letter in a request about DLC-Bench."""
    content = body["messages"][-1]["content"]
    description, rest = re.search(r"description is:\n(.*)\n\nFrom the [^\n]*\n(.*)", content, re.DOTALL).groups()
    question, *choices = rest.strip().split("\n")
    return description, question, dict(choice.split(". ", 1) for choice in choices)


def reading_judge(body: dict) -> str:
    """Chooses the first choice whose words are in the description, else the last; recognises things by their name."""
    description, question, choices = described(body)
    if question.startswith("Is it likely"):
        name = re.search(r"(?:is an?|are) (.*?) or (?:an object|objects) of", question)[1]
        return "A. Yes" if name in description else "B. No"
    return next((letter for letter, text in choices.items() if text in description), list(choices)[-1])
