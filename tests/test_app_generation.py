"""Making one answer: text that is given out only when it is certain, counts, limits, random numbers of its own."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.api_schema import Region, first_problem
from app.generation import ContextLengthError, Outcome, Sampling, _Text, generate

from .tiny_models import tiny_describer

BOX = {"box": [2, 2, 30, 30]}
TURNS = [("user", "What is <mask>?")]


@pytest.fixture(scope="module")
def session():
    return tiny_describer().open(Image.effect_noise((60, 40), 60).convert("RGB"))


def made(session, sampling, context=None):
    outcome = Outcome()
    return "".join(generate(session, TURNS, [BOX], sampling, outcome, context)), outcome


def test_blanks_before_what_may_begin_a_stop_text_wait_with_it():
    text = _Text(["aa"])
    assert [*text.add("a a"), *text.add("a"), *text.end()] == ["a"]
    text = _Text(["aa"])
    assert [*text.add("a a"), *text.add("b"), *text.end()] == ["a", " ab"]


@given(st.text("ab \n", max_size=20), st.lists(st.text("ab ", min_size=1, max_size=3), max_size=3), st.data())
def test_text_is_that_before_the_first_stop_text_however_it_comes(whole, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[first:last] for first, last in itertools.pairwise([0, *cuts, len(whole)])]
    text, given_out = _Text(stops), []
    for piece in pieces:
        given_out += text.add(piece)
        if text.stopped:
            break
    given_out += text.end()
    places = [whole.find(stop) for stop in stops if stop in whole]
    joined = "".join(given_out)
    assert bool(places) == text.stopped
    assert all(given_out)
    # of several stop texts the one that comes first by its end may win, since later text is not there yet
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    seen = whole if not ends else whole[: max(ends)]
    assert seen.strip().startswith(joined)
    if len(places) <= 1:
        assert joined == (whole[: places[0]] if places else whole).strip()


def test_limits_of_tokens_and_of_context(session):
    text, outcome = made(session, Sampling(6))
    assert (outcome.finish_reason, outcome.completion_tokens) == ("length", 6)
    assert text == session.ask([BOX], TURNS[0][1], max_new_tokens=6)[0].strip()
    room = outcome.prompt_tokens + 2
    short, cut = made(session, Sampling(6), context=room)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2) and text.startswith(short)
    with pytest.raises(ContextLengthError, match=f"the prompt has {outcome.prompt_tokens} tokens"):
        made(session, Sampling(6), context=outcome.prompt_tokens)


def test_an_answer_that_ends_by_itself_says_stop(session, monkeypatch):
    model = session._model
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(model.config.text_config.vocab_size)))
    for limit in (1, 6):
        _, outcome = made(session, Sampling(limit))
        assert (outcome.finish_reason, outcome.completion_tokens) == ("stop", 1)


def test_random_numbers_are_the_answers_own(session):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    seeded = [made(session, Sampling(6, temperature=1.5, seed=seed))[0] for seed in (7, 7, 8)]
    unseeded = {made(session, Sampling(6, temperature=2.0))[0] for _ in range(3)}
    assert torch.equal(torch.rand(4), expected)
    assert seeded[0] == seeded[1] != seeded[2] and len(unseeded) > 1


def test_an_answer_that_is_closed_ends_its_generation_and_gives_the_random_numbers_back(session):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    pieces = generate(session, TURNS, [BOX], Sampling(200, temperature=1.5, seed=1), Outcome())
    next(pieces)
    pieces.close()
    assert torch.equal(torch.rand(1), expected)


def test_the_most_specific_problem_is_told_with_its_place():
    data = {"segmentation": {"size": [2, 2], "counts": 1.5}}
    with pytest.raises(ValueError) as error:
        Region.model_validate(data)
    place, what = first_problem(error.value, data)
    assert place == "segmentation.counts" and what
