"""Held-out samples: their scores against known and independent ones, the page, and that training does not notice."""

import base64
import io
import json
import os
import re
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp import RegionDescriber
from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.held_out import SHOWN, Answered, HeldOut, HeldOutScorer, Processes, normalised, undisturbed
from osprey_tp.training.trainer import StageTrainer
from scripts import train
from scripts.held_out_page import Asked, Panel, curves, page_of, ticks

from . import preloaded
from .test_training_collator import sample
from .test_training_run import settings, weights, write_records
from .tiny_models import save_tiny_model, tiny_model
from .training_logs import reproducible_log

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 5


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout, which draws from the random state while it trains."""
    folder = save_tiny_model(tmp_path_factory.mktemp("start") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.3
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("held"), 9, "held")


def scored(held: Path, *more: str) -> list[str]:
    return [f"held_out=[{held}]", f"held_out_samples={HELD_OUT}", "evaluate_every=2", *more]


@pytest.fixture(scope="module")
def run(start: Path, records: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "stage2"
    assert train.main([*settings(start, records, output, "max_steps=5"), *scored(held)]) == 0
    return output


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("  Red\tRing. ", "red ring", True),
        ("Red ring .", "red  ring", True),
        ("STRASSE", "straße", True),
        ("red ring", "red rings", False),
        ("U.S.", "u.s", True),
        ("no", "no!", False),
    ],
)
def test_answers_are_compared_without_what_does_not_matter(answer: str, reference: str, equal: bool) -> None:
    assert (normalised(answer) == normalised(reference)) is equal


class KnownModel:
    """Answers by the record's number; the loss of a batch is a known number."""

    def __init__(self, processor, answers: list[str], losses: list[float]) -> None:
        self.processor, self.answers, self.losses = processor, iter(answers), iter(losses)
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.limits: list[int] = []

    def __call__(self, **batch):
        assert "record_ids" not in batch
        return SimpleNamespace(loss=torch.tensor(next(self.losses)))

    def generate(self, input_ids, generation_config, **batch):
        assert not generation_config.do_sample
        self.limits.append(generation_config.max_new_tokens)
        texts = [next(self.answers) for _ in input_ids]
        tokens = self.processor.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        return torch.cat([input_ids, tokens["input_ids"]], dim=1)


def test_known_answers_and_losses_give_known_scores() -> None:
    processor, _ = tiny_model()[1], None
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    references = ["cat", "dog", "Two dogs.", long, *["cat"] * (SHOWN - 4), "one dog", "two"]
    answers = ["Cat.", "cat", "two  dogs", long, *["cat"] * (SHOWN - 4), "one dog", "three"]
    samples = [sample(f"a:{number}", [reference]) for number, reference in enumerate(references)]
    places = {(0, place): entry for place, entry in enumerate(samples)}
    model = KnownModel(processor, answers, [2.0, 4.0])
    scorer = HeldOutScorer(model, processor, HeldOut(places, len(samples), print), SHOWN, lambda batch: batch)
    scores, shown = scorer.score()
    tokens = [
        int((ConversationCollator(processor)([entry])["labels"] != -100).sum()) for entry in samples
    ]  # the first token of all is never taught, so all of them are predicted
    first, second = sum(tokens[:SHOWN]), sum(tokens[SHOWN:])
    assert scores["tokens"] == first + second and scores["samples"] == len(samples)
    assert scores["loss"] == pytest.approx((2.0 * first + 4.0 * second) / (first + second))
    assert scores["short_answers"] == len(samples) - 1  # all but the long one
    assert scores["exact_match"] == pytest.approx((len(samples) - 3) / (len(samples) - 1))
    assert [shown[place] for place in range(4)] == [("Cat.", True), ("cat", False), ("two  dogs", True), (long, None)]
    assert list(shown) == list(range(SHOWN)) and model.limits[0] > model.limits[1]


@pytest.fixture(scope="module")
def real() -> tuple:
    """A real model, and samples of one and two questions, one of text alone."""
    model, processor = tiny_model()
    text = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "two dogs"}]
    samples = [sample("a", ["one cat"]), {"id": "b", "conversation": text}, sample("c", ["one", "three dogs"])]
    held_out = HeldOut({(0, place): entry for place, entry in enumerate(samples)}, len(samples), print)
    return model, processor, samples, held_out


def scores_of(real: tuple, batch_size: int, processes: Processes = Processes()):
    model, processor, _, held_out = real
    scorer = HeldOutScorer(model, processor, held_out, batch_size, lambda batch: batch, processes)
    with undisturbed(model):
        return scorer.score()


def test_the_loss_is_that_of_every_taught_token(real: tuple) -> None:
    model, processor, samples, _ = real
    total, count = 0.0, 0
    for entry in samples:
        batch = processor.prepare([entry["conversation"]], return_labels=True)
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            chances = model(**batch).logits[0].log_softmax(-1)
        for place in (labels != -100).nonzero().flatten().tolist():
            total, count = total - float(chances[place - 1, labels[place]]), count + 1
    for batch_size in (1, 3):
        scores, _ = scores_of(real, batch_size)
        assert scores["loss"] == pytest.approx(total / count, rel=1e-5) and scores["tokens"] == count


def test_answers_are_those_of_a_session(real: tuple) -> None:
    model, processor, samples, _ = real
    image = samples[0]["conversation"][0]["content"][0]
    session = RegionDescriber(model, processor).open(image["image"], overview="")
    expected = session.ask(image["regions"], "What is <mask>?", max_new_tokens=64)
    _, shown = scores_of(real, 2)
    assert shown[0][0] == expected[0] and len(expected[0]) > 3


def test_processes_in_step_run_the_model_equally_often_and_score_as_one(real: tuple) -> None:
    """As under ZeRO-3: three processes, one without a picture, one with a region less."""
    alone, shown = scores_of(real, 2)
    barrier, parts, calls, results = threading.Barrier(3), [[], [], []], [[], [], []], [None] * 3
    model = real[0]

    def gatherer(rank):
        def gather(values):
            parts[rank] = values
            barrier.wait()
            everything = [value for part in parts for value in part]
            barrier.wait()
            return everything

        return gather

    def work(rank):
        class Counted:
            generation_config = model.generation_config

            def __call__(self, **batch):
                calls[rank].append(("loss", "pixel_values" in batch, "region_coverage" in batch))
                return model(**batch)

            def generate(self, **batch):
                calls[rank].append(("answer", "pixel_values" in batch, "region_coverage" in batch))
                return model.generate(**batch)

        processes = Processes(rank, 3, in_step=True, gather=gatherer(rank))
        with torch.no_grad():
            scorer = HeldOutScorer(Counted(), real[1], real[3], 1, lambda batch: batch, processes)
            results[rank] = scorer.score()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls[0] == calls[1] == calls[2] == [("loss", True, True), ("answer", True, True)]
    for scores, answers in results:
        assert answers == shown and scores == pytest.approx(alone, rel=1e-5)


def test_scoring_leaves_modes_and_random_states_as_they_were() -> None:
    model, _ = tiny_model()
    model.train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    with undisturbed(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        torch.rand(5), np.random.rand(5)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


def test_training_does_not_notice(run: Path, start: Path, records: Path, tmp_path: Path) -> None:
    output = tmp_path / "unwatched"
    assert train.main([*settings(start, records, output, "max_steps=5"), "report_to=none"]) == 0
    watched, unwatched = weights(run), weights(output)
    assert all(torch.equal(value, watched[name]) for name, value in unwatched.items())
    assert reproducible_log(output / "training_log.json") == reproducible_log(run / "training_log.json")


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def test_scores_are_logged_every_so_many_steps_and_at_the_end(run: Path) -> None:
    scores = json.loads((run / "held_out.json").read_text())
    assert [entry["step"] for entry in scores] == [2, 4, 5]
    assert {entry["samples"] for entry in scores} == {HELD_OUT} and scores[0]["loss"] != scores[-1]["loss"]
    found = [(event.step, event.value) for event in events_of(run).Scalars("eval/loss")]
    assert found == [(entry["step"], pytest.approx(entry["loss"])) for entry in scores]


def test_scores_go_on_after_an_interruption(
    run: Path, start: Path, records: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("max_steps=5", "save_every=3", "log_every=2")
    arguments = [*settings(start, records, tmp_path / "out", *more), *scored(held)]
    training_step = StageTrainer.training_step

    def interrupted(self, *rest):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return training_step(self, *rest)

    monkeypatch.setattr(StageTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    before = json.loads((tmp_path / "out.unfinished" / "held_out.json").read_text())
    assert [entry["step"] for entry in before] == [2, 4]
    monkeypatch.setattr(StageTrainer, "training_step", training_step)
    assert train.main(arguments) == 0
    assert reproducible_log(tmp_path / "out" / "held_out.json") == reproducible_log(run / "held_out.json")
    assert [event.step for event in events_of(tmp_path / "out").Scalars("train/loss")] == [2, 4]
    # What was counted before the checkpoint in the middle of an interval is counted after it.
    whole = [entry["tokens"] for entry in reproducible_log(run / "training_log.json")]
    resumed = [entry["tokens"] for entry in reproducible_log(tmp_path / "out" / "training_log.json")]
    assert resumed == [whole[0] + whole[1], whole[2] + whole[3]]


def test_the_page_of_a_run_shows_pictures_answers_and_scores(run: Path) -> None:
    page = (run / "held_out.html").read_text("utf-8")
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) == HELD_OUT
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (288, 144)  # three times the records'
    for entry in json.loads((run / "held_out.json").read_text()):
        assert re.search(rf"<td[^>]*>{entry['step']}</td><td[^>]*>{entry['loss']:.4f}</td>", page)
    assert page.count("<dt>reference</dt>") == HELD_OUT
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", re.sub(r"data:[^\"]+", "", page))


def test_the_page_escapes_what_models_and_data_say() -> None:
    evil = "<script>alert('1')</script>"
    spoken = sample(evil, [evil])
    answered = Answered(evil, spoken["conversation"], evil + "&", False)
    text = Answered("b", [{"role": "user", "content": "2 < 3?"}, {"role": "assistant", "content": "yes"}], "", None)
    page = page_of(
        evil, [{"step": 1, "loss": float("nan"), "tokens": 3, "samples": 1, "short_answers": 0}], [answered, text]
    )
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert "2 &lt; 3?" in page and "(empty)" in page


def test_the_last_question_is_shown_with_its_own_regions() -> None:
    conversation = sample("a", ["one", "two", "three"])["conversation"]
    boxes = [{"box": [0, 0, 10, 10]}, {"box": [10, 0, 20, 10]}, {"box": [20, 0, 30, 10]}]
    conversation[0]["content"][0]["regions"] = boxes
    asked = Asked.last_of(conversation)
    assert (asked.question, asked.reference) == ("What is region1?", "three")
    assert len(asked.masks) == 1 and asked.masks[0][5, 25] and not asked.masks[0][5, 15]
    conversation[0]["content"][1]["text"] = "There are 2 regions: region1<mask>,region2<mask>. Which is red?"
    conversation[0]["content"][0]["regions"] = boxes[:2]
    asked = Asked.last_of(conversation[:2])
    assert asked.question == "There are 2 regions: region1,region2. Which is red?" and len(asked.masks) == 2


def test_curves_go_through_their_points() -> None:
    svg = curves([Panel("a < b", [(10, 1.0), (20, 3.0), (30, float("nan")), (40, 2.0)], 0.0, 4.0)])
    assert "a &lt; b" in svg and svg.count("<circle") == 3
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2 and (x2 - x1) == pytest.approx(2 * (x1 - x0), abs=0.2)
    assert y1 < y2 < y0 and (y0 - y2) == pytest.approx(y2 - y1, abs=0.2)
    assert ticks(0.0, 4.0) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert ticks(7.06, 7.1) == pytest.approx([7.06, 7.07, 7.08, 7.09, 7.1])


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train.main(arguments) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_samples_that_a_run_trains_on_are_not_held_out(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = settings(start, records, tmp_path / "out")
    same = f"{records.parent}/../{records.parent.name}/records"
    error = error_of([*arguments, f"held_out=[{same}]"], capsys)
    assert error.startswith(f"error: held_out names {same}, whose records are those of {records}, which data names too")
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in records.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert f"held_out names {copied}, whose records are those of {records}" in error_of(
        [*arguments, f"held_out=[{copied}]"], capsys
    )
    assert not list(tmp_path.glob("out*"))


def test_folders_for_evaluation_are_scored_where_they_have_answers(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(name: str, turns: tuple[Turn, ...]) -> Path:
        with RecordWriter(tmp_path / name, source="pope", image_root=tmp_path, purpose="evaluation") as writer:
            writer.add(RegionRecord(f"{name}:1", "pope", "", 0, 0, (), turns))
        return tmp_path / name

    question = Turn("user", "Is there a dog? Answer yes or no.")
    answered, asked = folder("answered", (question, Turn("assistant", "no"))), folder("asked", (question,))
    arguments = [*settings(start, records, tmp_path / "out"), "max_steps=1"]
    error = error_of([*arguments, f"held_out=[{asked}]"], capsys)
    assert error.startswith(f"error: held_out: {asked} holds a question without an answer (record asked:1)")
    assert "prepared for evaluation; training needs" in error_of([*arguments, f"data=[{answered}]"], capsys)
    assert train.main([*arguments, f"held_out=[{answered}]"]) == 0
    assert json.loads((tmp_path / "out" / "held_out.json").read_text())[0]["short_answers"] == 1


def test_the_order_of_held_out_samples_is_that_of_no_run(
    start: Path, records: Path, held: Path, tmp_path: Path
) -> None:
    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.outputs import RunFolder

    def ids(*more: str) -> list[str]:
        options = load_settings(None, [*settings(start, records, tmp_path / "out"), *scored(held), *more])
        held_out = train.load_held_out(options, ConversationDataset({records: 1.0}), RunFolder.of(options))
        return [held_out.sample(place)["id"] for place in range(held_out.count)]

    assert ids() == ids("seed=7") and len(set(ids())) == HELD_OUT


ZERO_3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 10_000},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


@pytest.mark.parametrize("deepspeed", [None, ZERO_3], ids=["torchrun", "ZeRO-3"])
def test_two_processes_watch_and_stop_together(
    deepspeed: dict | None, real: tuple, records: Path, held: Path, tmp_path: Path
) -> None:
    """The learning rate is 0 until the second step, so the first scores are those of the model at the start."""
    model, processor, _, _ = real
    start, talk, output = save_tiny_model(tmp_path / "start"), tmp_path / "talk", tmp_path / "out"
    with RecordWriter(talk, source="pope", image_root=tmp_path) as writer:
        turns = (Turn("user", "How many?"), Turn("assistant", "two dogs"))
        writer.add(RegionRecord("talk:1", "pope", "", 0, 0, (), turns))
    arguments = [*settings(start, records, output, "batch_size=2", "save_every=2"), "evaluate_every=1"]
    arguments += [f"held_out={{{held}: 0.45, {talk}: 1}}", "resume=never"]
    if deepspeed is not None:
        (tmp_path / "zero.json").write_text(json.dumps(deepspeed))
        arguments.append(f"deepspeed={tmp_path / 'zero.json'}")
    command = [preloaded.python(), "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "tests.watching_under_torchrun", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    ids, tokens, places = batches_of(records, processor)
    work = tmp_path / "out.unfinished"
    assert len(errors) == 1 and errors[0].startswith(
        f"error: step 3 has the loss nan; records of its batch: {', '.join(ids[2])}; "
        f"newest checkpoint: {work / 'checkpoint-2'}; "
    )
    assert [line.split()[1] for line in lines if line.startswith("training: ")] == ["1/6", "2/6"]
    assert sum(line.startswith("held out, step ") for line in lines) == 2
    logged = json.loads((work / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in logged if "loss" in entry]
    assert [entry["tokens"] for entry in logged] == tokens[:2]
    assert [entry["padding_share"] for entry in logged] == pytest.approx(
        [1 - each / of for each, of in zip(tokens[:2], places[:2], strict=True)]
    )
    samples = ConversationDataset({held: 0.45, talk: 1.0}, seed=train.HELD_OUT_SEED, paraphrase=False)
    expected, _ = scores_of((model, processor, [], HeldOut(samples, len(samples), print)), 4)
    first = json.loads((work / "held_out.json").read_text())[0]
    assert first.pop("step") == 1 and first.pop("seconds") > 0 and first == pytest.approx(expected, rel=1e-4)


def batches_of(records: Path, processor) -> tuple[list[list[str]], list[int], list[int]]:
    """Of the first steps of two processes, two samples each: ids, tokens, places."""
    dataset, collate = ConversationDataset({records: 1.0}), ConversationCollator(processor)
    ids, tokens, places = [], [], []
    for step in range(3):
        samples = [dataset[divmod(place, len(dataset))] for place in range(4 * step, 4 * step + 4)]
        masks = [collate(samples[half : half + 2])["attention_mask"] for half in (0, 2)]
        ids.append([each["id"] for each in samples])
        tokens.append(sum(int(mask.sum()) for mask in masks))
        places.append(sum(mask.numel() for mask in masks))
    return ids, tokens, places
