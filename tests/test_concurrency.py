"""One model, one processor, many threads: answers are what they are alone, and nothing of the model changes."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from osprey_tp import RegionDescriber
from osprey_tp.tiling import TilePlan

from .test_sessions import QUESTION, random_picture
from .tiny_models import tiny_describer

THREADS = 8


@pytest.fixture(scope="module")
def describer() -> RegionDescriber:
    return tiny_describer()


@pytest.fixture(autouse=True)
def threads_that_change_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def work_on(describer: RegionDescriber, number: int) -> tuple:
    """Everything that a session does, each with prompts of other lengths."""
    image, masks = random_picture(number, 30 + 20 * (number % 2), 40 + 30 * (number % 3))
    session = describer.open(image)
    questions = [f"{'what ' * (number + place)}is <mask>" for place in range(3)]
    return (
        session.ask(masks[:3], questions, max_new_tokens=4),
        session.score(["one", "two three", f"cat {number}"], masks[:2]).tolist(),
        list(session.stream(masks[:1], QUESTION, max_new_tokens=4)),
        session.ask(masks[:1], QUESTION, max_new_tokens=3, num_beams=2),
        list(session.converse([("user", f"{'and ' * number}what")], max_new_tokens=3)),
    )


def state_of(describer: RegionDescriber) -> tuple:
    """What calls could change: settings, attributes of modules and their hooks. The first call adds hooks for good."""
    model = describer.model
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module), module.training)
        for name, module in model.named_modules()
    }
    return model.config.to_dict(), model.generation_config.to_dict(), hooks


def test_sessions_in_threads_answer_as_they_do_one_after_the_other(describer) -> None:
    serial = [work_on(describer, number) for number in range(THREADS)]
    before = state_of(describer)
    describer.answer_tree.cache_clear()
    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(lambda number: work_on(describer, number), range(THREADS))) == serial
    assert state_of(describer) == before


def test_one_session_may_be_asked_by_many(describer) -> None:
    """The picture's part of the prompt is read when it is first asked about: here by all threads at once."""
    image, masks = random_picture(3)
    expected = [describer.open(image).ask([mask], QUESTION, max_new_tokens=6) for mask in masks]
    session = describer.open(image)
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda mask: session.ask([mask], QUESTION, max_new_tokens=6), masks * 3))
    assert found == expected * 3


def conversations(describer: RegionDescriber, answers: bool) -> list[list[dict]]:
    tiling = describer.processor.image_processor.tiling
    picture = {"type": "image", "image": TilePlan(tiling, 1, 1, 1, 1), "regions": [{"box": [0, 0, 1, 1]}]}
    answer = [{"role": "assistant", "content": "a cat"}] if answers else []
    return [
        [{"role": "user", "content": [picture, {"type": "text", "text": f"<mask> {'what ' * length}"}]}, *answer]
        for length in (0, 5, 2)
    ]


def test_prompts_are_prepared_in_threads_as_alone(describer) -> None:
    """Rendering marks answers in the compiled template, and padding is a state of the tokenizer: both are shared."""
    processor = describer.processor
    asked, answered = conversations(describer, False), conversations(describer, True)
    jobs: list[Callable[[], object]] = [
        lambda: processor.prepare(asked, add_generation_prompt=True)["input_ids"].tolist(),
        lambda: processor.prepare(answered, return_labels=True)["labels"].tolist(),
        lambda: processor(text=["one two", "one"], padding=True, padding_side="right")["input_ids"].tolist(),
        lambda: processor.count_tokens("one two"),
    ]
    expected = [job() for job in jobs]

    def repeat(number: int) -> list[object]:
        return [jobs[number % len(jobs)]() for _ in range(20)]

    with ThreadPoolExecutor(THREADS) as threads:
        for number, found in enumerate(threads.map(repeat, range(THREADS))):
            assert found == [expected[number % len(jobs)]] * 20
