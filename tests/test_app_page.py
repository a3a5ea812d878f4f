"""How events of the page run: one at a time for each user, in the waiting line, and ended when nobody wants them."""

import threading

import gradio as gr
import pytest
from PIL import Image

from app.canvas import publish, serial_of, uploaded_file
from app.page import Event, LatestWork, Shared, overlay_value
from app.state import Kept, Selection, Shown, selection_overlay
from app.waiting_line import WaitingLine


class Trigger:
    """Stands for `button.click`: keeps what Gradio would call."""

    def __call__(self, run, inputs, outputs, **options):
        self.run, self.outputs, self.options = run, outputs, options

    def happen(self, user, *values, **data):
        return self.run(gr.Request(session_hash=user), gr.EventData(None, data), *values)


@pytest.fixture
def shared():
    with gr.Blocks():
        html = gr.HTML(), gr.HTML()
        return Shared(html[0], gr.State(), gr.State(), gr.State(), html[1], None, WaitingLine(2, 60, heartbeat=0.01))


def connect(shared, work, **options):
    trigger = Trigger()
    shared.connect(trigger, work, [], [], **options)
    return trigger


def counting(closed):
    def work(event, *values):
        try:
            for number in range(100):
                yield {"number": number}
        finally:
            closed.append(event.user)

    return work


def test_new_work_of_a_user_ends_the_old(shared):
    closed = []
    trigger = connect(shared, counting(closed))
    first, other = trigger.happen("ann"), trigger.happen("bob")
    assert next(first) == {"number": 0}
    assert "One request is ahead" in next(other)[shared.status]
    second = trigger.happen("ann")
    waiting = threading.Thread(target=lambda: next(second))
    waiting.start()
    while shared.line.waiting < 2:
        pass
    assert list(first) == [] and closed == ["ann"]
    assert any("number" in changes for changes in other)
    other.close()
    waiting.join(10)
    assert next(second)["number"] >= 0
    second.close()
    assert sorted(closed) == ["ann", "ann", "bob"] and not shared.line.busy


def test_stopping_and_leaving_end_work(shared):
    closed = []
    running = connect(shared, counting(closed)).happen("ann")
    next(running)
    shared.latest.stop("ann")
    assert list(running) == [] and closed == ["ann"] and not shared.line.busy
    running = connect(shared, counting(closed)).happen("ann")
    next(running)
    running.close()  # as Gradio does with a page that was closed
    assert closed == ["ann", "ann"] and not shared.line.busy


def test_light_work_runs_beside_what_is_running(shared):
    running = connect(shared, counting([])).happen("ann")
    next(running)
    light = connect(shared, counting([]), needs_model=False).happen("ann")
    assert next(light) == {"number": 0} and next(running) == {"number": 1}
    running.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such\nregion"), "No such region."),
        (RuntimeError("secret"), "Something went wrong (RuntimeError). The log says more."),
    ],
)
def test_errors_become_one_line(shared, error, told, caplog):
    def work(event):
        yield {"number": 1}
        raise error

    for needs_model in (True, False):
        *_, last = connect(shared, work, needs_model=needs_model).happen("ann")
        assert told in last[shared.status] and "secret" not in last[shared.status]
    assert ("secret" in caplog.text) == isinstance(error, RuntimeError)


def test_a_full_line_is_said_to_be_full(shared):
    trigger = connect(shared, counting([]))
    places = [trigger.happen(user) for user in ("ann", "bob", "eve", "joe")]
    for place in places[:3]:
        next(place)
    assert "The line is full" in next(places[3])[shared.status]
    for place in places:
        place.close()


def test_events_carry_user_and_data(shared):
    def work(event, value):
        yield {"event": event, "value": value}

    trigger = connect(shared, work, needs_model=False)
    [changes] = trigger.happen("ann", 5, x=1)
    assert changes == {"event": Event("ann", {"x": 1}), "value": 5} and trigger.outputs == [shared.status]
    assert not trigger.options["preprocess"] and LatestWork().is_wanted("ann", 1) is False


def test_the_pictures_value_is_json_that_holds_no_tags():
    selection = Selection(Shown("user/a.png", "</script>.jpg", 30, 40), serial=7)
    value = overlay_value(selection, selection_overlay(selection, Kept()))
    assert "<" not in value and '"serial":7' in value and '"width":40' in value
    assert '"picture":null' in overlay_value(Selection(busy="Reading"), selection_overlay(selection, Kept()))


def test_only_uploaded_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    inside, outside = tmp_path / "uploads" / "a.png", tmp_path / "b.png"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_text("x")
    assert uploaded_file({"path": str(inside), "name": "my.png"}) == (str(inside), "my.png")
    for path in (outside, tmp_path / "uploads" / ".." / "b.png", tmp_path / "uploads" / "none.png", "", None):
        with pytest.raises(ValueError, match="not uploaded"):
            uploaded_file({"path": path and str(path)})
    assert serial_of({"serial": 3}) == 3 and serial_of({"serial": "3"}) == 0


def test_a_picture_is_published_once(tmp_path):
    canvas = gr.HTML(render=False)
    canvas.GRADIO_CACHE = str(tmp_path)
    files = {publish(canvas, Image.new("RGB", (9, 5), colour)) for colour in ("red", "red", "blue")}
    assert len(files) == 2 and files == canvas.temp_files
