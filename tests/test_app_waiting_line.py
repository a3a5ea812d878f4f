"""The line before the model: order, limits, and that leaving, in whatever way, gives up the place."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.waiting_line import LineClosedError, LineFullError, TimeLimitError, WaitingLine

PATIENCE = 20.0  # seconds, after which a test that hangs fails


class Work:
    """An iterator of items that records how it ended and, with `gate`, waits inside its items."""

    def __init__(self, items=(), gate=None, error=None):
        self.items, self.gate, self.error, self.closed = iter(items), gate, error, 0
        self.inside = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        self.inside.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return next(self.items)

    def close(self):
        self.closed += 1


def position(ahead):
    return f"ahead {ahead}"


def new_line(**options):
    return WaitingLine(**{"longest": 20, "seconds": PATIENCE, "heartbeat": PATIENCE} | options)


def test_work_alone_is_passed_on_and_leaves_nothing_behind():
    line, work = new_line(), Work("ab")
    place = line.run(work, position)
    assert not line.busy
    assert next(place) == "a" and line.busy and line.waiting == 0
    assert list(place) == ["b"] and list(place) == []
    assert not line.busy and work.closed == 1


def test_those_who_wait_are_told_their_place_and_served_in_order():
    line, served = new_line(), []
    first = line.run(Work("a"), position)
    assert next(first) == "a"
    others = [line.run(Work([name]), position) for name in "bcde"]
    assert [next(other) for other in others] == [position(ahead) for ahead in (1, 2, 3, 4)]
    assert line.waiting == 4

    def read(other):
        told = []
        for item in other:
            told.append(item)
            if not item.startswith("ahead"):
                served.append(item)
        return told

    with ThreadPoolExecutor(4) as threads:
        told = [threads.submit(read, other) for other in others]
        assert list(first) == []
        told = [one.result(PATIENCE) for one in told]
    assert served == list("bcde") and told[0] == ["b"]
    assert all(items[:-1] == sorted(items[:-1], reverse=True) for items in told)
    assert not line.busy


def test_two_pieces_of_work_never_run_at_once():
    line, inside, most = WaitingLine(30, PATIENCE), [], []

    def work(name):
        for _ in range(5):
            inside.append(name)
            most.append(len(inside))
            inside.remove(name)
            yield name

    def read(name):
        return [item for item in line.run(work(name), position) if not item.startswith("ahead")]

    with ThreadPoolExecutor(20) as threads:
        names = [f"user{number}" for number in range(20)]
        assert list(threads.map(read, names)) == [[name] * 5 for name in names]
    assert max(most) == 1 and not line.busy


def test_a_full_line_refuses_and_says_so():
    line = new_line(longest=1)
    first, second, refused = (line.run(work := Work("a"), position) for _ in range(3))
    assert next(first) == "a" and next(second) == position(1)
    with pytest.raises(LineFullError, match="2 requests are before this; try again"):
        next(refused)
    assert work.closed == 1 and list(refused) == []
    first.close()
    assert list(second) == ["a"] and not line.busy


@pytest.mark.parametrize("leave", ["close", "collect"])
def test_leaving_while_waiting_gives_up_the_place(leave):
    line, work = new_line(), Work("x")
    first, last = line.run(Work("a"), position), line.run(Work("z"), position)
    leaver = line.run(work, position)
    next(first)
    assert next(leaver) == position(1) and next(last) == position(2)
    if leave == "close":
        leaver.close()
        leaver.close()
    del leaver
    assert work.closed == 1 and line.waiting == 1 and next(last) == position(1)
    del first, last
    assert not line.busy


def test_a_generator_around_the_place_that_is_closed_gives_it_up():
    line, work = new_line(), Work("ab")

    def event():
        yield from line.run(work, position)

    running = event()
    assert next(running) == "a"
    running.close()
    assert work.closed == 1 and not line.busy


def test_closing_from_another_thread_ends_a_next_that_waits_in_line():
    line, work = new_line(), Work("x")
    first, place = line.run(Work("a"), position), line.run(work, position)
    next(first), next(place)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(list, place)
        place.close()
        assert waiting.result(PATIENCE) == []
    assert work.closed == 1 and line.waiting == 0


def test_closing_from_another_thread_ends_work_at_its_next_item():
    line, gate = new_line(), threading.Event()
    work = Work("ab", gate)
    place, second = line.run(work, position), line.run(Work("z"), position)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(list, place)
        assert work.inside.wait(PATIENCE)
        place.close()
        assert work.closed == 0 and next(second) == position(1)
        gate.set()
        assert reading.result(PATIENCE) == []
    assert work.closed == 1 and list(second) == ["z"] and not line.busy


def test_failing_work_fails_its_own_request_alone():
    line, work = new_line(), Work(error=RuntimeError("out of memory"))
    failing, second = line.run(work, position), line.run(Work("z"), position)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(failing)
    assert list(second) == ["z"] and work.closed == 1 and not line.busy


def test_work_over_its_time_is_stopped_between_items(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("app.waiting_line.time.monotonic", lambda: now[0])
    line, work = WaitingLine(2, 60), Work("abc")
    place = line.run(work, position)
    read = [next(place)]
    now[0] += 59
    read.append(next(place))
    now[0] += 2
    with pytest.raises(TimeLimitError, match="took longer than 60 seconds"):
        read += place
    assert read == ["a", "b"] and work.closed == 1 and not line.busy


def test_a_request_that_is_not_read_on_loses_its_turn_to_those_who_wait():
    line, work = new_line(seconds=0.05), Work("abc")
    idle, second = line.run(work, position), line.run(Work("z"), position)
    assert next(idle) == "a"
    assert list(second) == [position(1), "z"]
    assert work.closed == 1
    with pytest.raises(TimeLimitError):
        next(idle)
    assert list(idle) == [] and not line.busy


def test_work_that_is_inside_an_item_after_its_time_is_stuck(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("app.waiting_line.time.monotonic", lambda: now[0])
    line, gate = WaitingLine(2, 60), threading.Event()
    work = Work("a", gate)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(list, line.run(work, position))
        assert work.inside.wait(PATIENCE) and not line.stuck
        now[0] += 61
        assert line.stuck
        gate.set()
        with pytest.raises(TimeLimitError):
            reading.result(PATIENCE)
    assert not line.stuck and not line.busy


def test_a_waiting_request_returns_to_its_reader_at_every_heartbeat():
    line = new_line(heartbeat=0.01)
    first, second = line.run(Work("a"), position), line.run(Work("z"), position)
    next(first)
    assert [next(second) for _ in range(3)] == [position(1)] * 3


def test_work_that_cannot_be_closed_does_not_block_the_line(caplog):
    line = new_line()

    def stubborn():
        try:
            yield "a"
        finally:
            raise RuntimeError("stubborn")

    place = line.run(stubborn(), position)
    next(place)
    place.close()
    assert not line.busy and "stubborn" in caplog.text
    assert list(line.run(iter("b"), position)) == ["b"]


def test_a_closed_line_ends_what_is_in_it_and_refuses_the_rest():
    line, works = new_line(), [Work("ab"), Work("x")]
    places = [line.run(work, position) for work in works]
    assert [next(place) for place in places] == ["a", position(1)]
    line.close()
    assert [list(place) for place in places] == [[], []] and [work.closed for work in works] == [1, 1]
    with pytest.raises(LineClosedError):
        next(line.run(Work("a"), position))
    assert not line.busy


def test_closing_the_line_waits_for_the_item_that_is_being_made():
    line, gate = new_line(), threading.Event()
    work = Work("ab", gate)
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(list, line.run(work, position))
        assert work.inside.wait(PATIENCE)
        assert not line.close(patience=0)
        closing = threads.submit(line.close, PATIENCE)
        gate.set()
        assert closing.result(PATIENCE) and work.closed == 1 and not line.busy
        assert reading.result(PATIENCE) == []


@pytest.mark.parametrize("limits", [(-1, 1.0), (1, 0.0), (1, float("nan"))])
def test_limits_that_leave_nothing_to_do(limits):
    with pytest.raises(ValueError, match="give"):
        WaitingLine(*limits)
