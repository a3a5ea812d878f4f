"""A served app as programs meet it: the real command, a real (tiny, random) model, the real clients."""

import json
import re
import subprocess
import sys

import httpx
import numpy as np
import openai
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.client_example import main as example_main
from app.load_test import main as load_main
from osprey_tp import RegionDescriber
from osprey_tp.grabcut import GrabCutSegmenter
from osprey_tp.masks import to_mask
from osprey_tp.prompts import CATEGORY_QUESTION, region_introduction

from .serving import ROOT, Served, data_url, encoded, message, scene
from .tiny_models import save_tiny_model

BOX = {"box": [30, 30, 110, 110]}
OTHER = {"segmentation": {"size": [200, 320], "counts": [40000, 2000, 22000]}}
CLICK = {"points": [[70, 70]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    save_tiny_model(folder / "model")
    scene().save(folder / "scene.png")
    return folder


@pytest.fixture(scope="module")
def served(folder):
    """Ended while an answer is being streamed: even so it stops in order."""
    limits = ["--max-upload-mb", "0.5", "--max-pixels", "1000000", "--max-pictures", "4", "--queue", "8"]
    served = Served(folder, *limits)
    yield served
    url = data_url(encoded(scene()))
    with httpx.stream(
        "POST",
        f"{served.address}/v1/chat/completions",
        json=request_body(served, [message("Go on.", url=url)], stream=True, max_tokens=2000),
        timeout=60,
    ) as stream:
        lines = stream.iter_lines()  # held: dropped, it would close the connection
        assert next(lines)
        assert served.stop() == 0, served.log
    assert served.said.endswith("app: stopped\n") and "Traceback" not in served.log, served.log


@pytest.fixture(scope="module")
def chat(served):
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)
    yield client
    client.close()


@pytest.fixture(scope="module")
def gradio(served):
    client = Client(served.address, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def session(folder):
    return RegionDescriber.from_pretrained(folder / "model", device="cpu").open(scene())


@pytest.fixture(scope="module")
def url():
    return data_url(encoded(scene()))


def model_of(served):
    return "/".join(json.loads(httpx.get(f"{served.address}/v1/models").text)["data"][0]["id"].split("/"))


def request_body(served, messages, **options):
    return {"model": model_of(served), "messages": messages, **options}


def ask(chat, messages, **options):
    return chat.chat.completions.create(model=chat.models.list().data[0].id, messages=messages, **options)


def joined(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_health_tells_what_runs(served):
    answer = httpx.get(f"{served.address}/health")
    facts = answer.json()
    assert answer.status_code == 200 and facts["status"] == "ok"
    assert facts["model"].endswith("/model") and (facts["segmenter"], facts["device"]) == ("GrabCut", "cpu")
    assert facts["waiting_requests"] == 0 and facts["open_pictures"] <= 4


def test_an_answer_is_that_of_the_library_whole_or_streamed(chat, session, url):
    regions = [BOX, OTHER, CLICK]
    asked = [message("What is region1 doing to region2 and region3?", regions, url)]
    mask = GrabCutSegmenter().open(scene()).segment([(70.0, 70.0)], [True])[0].mask
    question = region_introduction(3) + "What is region1 doing to region2 and region3?"
    expected = session.ask([BOX, OTHER, mask], question, together=True, max_new_tokens=24)[0]
    answer = ask(chat, asked, max_tokens=24)
    assert answer.choices[0].message.content == expected.strip() and answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = list(ask(chat, asked, max_completion_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == expected.strip() and len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == answer.usage
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id != answer.id


def test_later_messages_add_regions_and_go_on_counting(chat, session, url):
    earlier = [
        message("Is <mask> red?", [BOX], url),
        {"role": "assistant", "content": "Yes, <mask> is."},
        message("And what is region2?", [OTHER]),
    ]
    turns = [
        ("user", "Is <mask> red?"),
        ("assistant", "Yes,  is."),
        ("user", region_introduction(1, first=1) + "And what is region2?"),
    ]
    expected = "".join(session.converse(turns, [BOX, OTHER], max_new_tokens=12))
    assert ask(chat, earlier, max_tokens=12).choices[0].message.content == expected.strip()
    plain = ask(chat, [message("What is this?", url=url)], max_tokens=12).choices[0].message.content
    assert plain == "".join(session.converse([("user", "What is this?")], max_new_tokens=12)).strip()


def test_sampling_seed_stop_and_limits_are_honoured(chat, url):
    asked = [message("What is <mask>?", [BOX], url)]
    sampled = [
        ask(chat, asked, max_tokens=16, temperature=1.5, top_p=0.95, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    unseeded = {ask(chat, asked, max_tokens=16, temperature=2).choices[0].message.content for _ in range(2)}
    assert len(unseeded) == 2
    greedy = ask(chat, asked, max_tokens=16)
    text = greedy.choices[0].message.content
    assert greedy.choices[0].finish_reason == "length" and greedy.usage.completion_tokens == 16
    again = ask(chat, asked, max_tokens=16, temperature=0, top_p=0.5).choices[0].message.content
    cold = ask(chat, asked, max_tokens=16, temperature=1, top_p=1e-6, seed=3).choices[0].message.content
    assert text == again == cold
    place = len(text) // 2
    stop = text[place : place + 4]
    cut = ask(chat, asked, max_tokens=16, stop=["not in there", stop])
    assert cut.choices[0].message.content == text[: text.index(stop)].rstrip()
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens <= 16
    streamed = list(ask(chat, asked, max_tokens=16, stop=stop, stream=True))
    assert joined(streamed) == cut.choices[0].message.content and streamed[-1].choices[0].finish_reason == "stop"


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
HOSTILE_PICTURES = {
    "truncated": (lambda: data_url(encoded(scene(), "JPEG")[:1500], "jpeg"), 400, "cannot be read"),
    "text": (lambda: data_url(b"This is no picture."), 400, "cannot be read"),
    "svg": (lambda: data_url(SVG, "svg+xml"), 400, "cannot be read"),
    "empty": (lambda: data_url(b""), 400, "cannot be read"),
    "large": (lambda: data_url(encoded(scene(size=(2000, 1000)))), 400, "2000000 pixels, the limit is 1000000"),
    "huge": (lambda: data_url(encoded(Image.new("1", (12000, 9000)))), 400, "pixels"),
    "heavy": (lambda: data_url(bytes(600_000)), 413, "larger than the limit of 524288 bytes"),
    "no base64": (lambda: "data:image/png;base64,####", 400, "not in base64"),
    "bad padding": (lambda: "data:image/png;base64,abc", 400, "not in base64"),
    "web": (lambda: "http://127.0.0.1/a.png", 400, "fetches no pictures"),
    "file": (lambda: "file:///etc/passwd", 400, "fetches no pictures"),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_hostile_pictures_get_one_line_and_the_right_status(served, name):
    make, status, message_part = HOSTILE_PICTURES[name]
    told = refused(served, request_body(served, [message("Hi", url=make())], max_tokens=1), status)
    assert message_part in told["message"]


def test_a_gif_and_a_picture_on_its_side_are_taken(chat, session):
    gif = ask(chat, [message("What?", url=data_url(encoded(scene(), "GIF"), "gif"))], max_tokens=2)
    assert gif.usage.completion_tokens == 2
    turned = scene().transpose(2)  # by 90 degrees; the tag turns it back
    exif = turned.getexif()
    exif[0x0112] = 6
    content = encoded(turned, "PNG", exif=exif)
    answer = ask(chat, [message("What is <mask>?", [BOX], data_url(content))], max_tokens=12)
    assert answer.choices[0].message.content == session.ask([BOX], "What is <mask>?", max_new_tokens=12)[0].strip()


def refused(served, body, status=400):
    """What the server says against a body: in OpenAI's form, on one line, naming no path of its own."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{served.address}/v1/chat/completions", content=content, timeout=60)
    assert answer.status_code == status, answer.text[:500]
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and "\n" not in told["message"]
    assert told["message"] and not re.search(r"/tmp|Traceback|\.py", told["message"])
    return told


RLE = {"size": [200, 320], "counts": [10, 20]}
HOSTILE_REGIONS = {
    "outside": ({"box": [400, 10, 420, 20]}, "outside"),
    "point outside": ({"points": [[400, 10]]}, "region 1: point (400, 10) lies outside"),
    "no area": ({"box": [10, 10, 10, 20]}, "no area"),
    "short counts": ({"segmentation": RLE}, "add up to 30 pixels"),
    "wrong size": ({"segmentation": {"size": [2, 2], "counts": [1, 3]}}, "2 x 2"),
    "huge size": ({"segmentation": {"size": [2**31, 2**31], "counts": [1, 2**62 - 1]}}, "the picture 200 x 320"),
    "bad string": ({"segmentation": {"size": [200, 320], "counts": "é~"}}, "malformed"),
    "negative run": ({"segmentation": {"size": [200, 320], "counts": [-1, 64001]}}, "negative"),
    "empty": ({"segmentation": {"size": [200, 320], "counts": [64000]}}, "empty"),
    "two corners": ({"segmentation": [[1, 1, 5, 5]]}, "at least 3"),
    "nothing": ({}, "a region is a box, a segmentation, or points"),
    "path": ({"mask": "/etc/passwd"}, "mask"),
    "labels": ({"points": [[1, 1]], "labels": [1, 0]}, "1 points, 2 labels"),
    "off alone": ({"points": [[1, 1]], "labels": [0]}, "no point on the object"),
    "text": ("everything", "regions.0"),
}


@pytest.mark.parametrize("name", HOSTILE_REGIONS)
def test_hostile_regions_say_what_is_wrong(served, url, name):
    region, message_part = HOSTILE_REGIONS[name]
    told = refused(served, request_body(served, [message("Hi", [region], url)], max_tokens=1))
    assert message_part in f"{told['param']}: {told['message']}"


def test_hostile_bodies(served, url):
    def body(**changes):
        return request_body(served, [message("Hi", url=url)], max_tokens=1) | changes

    refused(served, b"{")
    refused(served, b"[" * 100_000)
    refused(served, b"[]")
    nan = json.dumps(body(messages=[message("Hi", [{"box": [1, 1, float("nan"), 5]}], url)])).encode()
    assert "finite" in refused(served, nan)["message"]
    many = refused(served, body(messages=[message("Hi", [BOX] * 10_000, url)]))
    assert "64" in many["message"] and many["param"].startswith("messages.0.content.1")
    cases = {
        "n": (2, None),
        "tools": ([], "unsupported_parameter"),
        "logit_bias": ({"1": 5}, "unsupported_parameter"),
        "frequency_penalty": (0.5, None),
        "temperature": (2.5, None),
        "top_p": (0, None),
        "max_tokens": (0, None),
        "max_completion_tokens": (10**9, None),
        "stop": (["a"] * 5, None),
        "seed": ("x", None),
        "stream": ("maybe", None),
    }
    for name, (value, code) in cases.items():
        told = refused(served, body(**{name: value}))
        assert told["param"].split(".")[0] == name and told["code"] == code, told
    assert refused(served, body(model="gpt-4"), 404)["code"] == "model_not_found"
    talks = {
        "system": [{"role": "system", "content": "Be brief."}, message("Hi", url=url)],
        "no picture": [message("Hi")],
        "two pictures": [{"role": "user", "content": message("", url=url)["content"][:1] * 2}],
        "late picture": [message("Hi", url=url), message("Yes.", role="assistant"), message("So?", url=url)],
        "answer last": [message("Hi", url=url), message("Yes.", role="assistant")],
        "two users": [message("Hi", url=url), message("Hi")],
        "no messages": [],
        "masks": [message("<mask> <mask>", [BOX], url)],
        "image text": [message("<image>", url=url)],
        "half a character": [message("What is \ud83d?", url=url)],
        "audio": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        "long": [message("word " * 10_000, url=url)],
        "too long for the model": [message("x " * 9_000, url=url)],
    }
    for name, talk in talks.items():
        told = refused(served, body(messages=talk))
        assert (told["code"] == "context_length_exceeded") == ("long" in name), (name, told)
    assert httpx.get(f"{served.address}/v1/nowhere").json()["error"]["code"] == "unknown_url"
    assert httpx.get(f"{served.address}/v1/models/{model_of(served)}").json()["object"] == "model"
    too_much = httpx.post(
        f"{served.address}/v1/chat/completions", content=(bytes(2**20) for _ in range(12)), timeout=60
    )
    assert too_much.status_code == 413 and too_much.json()["error"]["code"] == "request_too_large"
    assert httpx.get(f"{served.address}/health").json()["status"] == "ok"


def test_the_api_of_gradio_client(gradio, session, folder):
    image = handle_file(str(folder / "scene.png"))
    mask = GrabCutSegmenter().open(scene()).segment([(70.0, 70.0)], [True])[0].mask
    found = gradio.predict(image=image, points=[[70, 70]], api_name="/segment")
    assert np.array_equal(to_mask(found["candidates"][0]["segmentation"], 200, 320), mask)
    job = gradio.submit(image=image, regions=[BOX, CLICK], max_new_tokens=12, api_name="/describe")
    told = job.result(60)
    assert told["answers"] == session.ask([BOX, mask], CATEGORY_QUESTION, max_new_tokens=12)
    assert (told["height"], told["width"]) == (200, 320)
    assert [update["status"] for update in job.outputs()] == ["working", "working", "done"]
    own = gradio.predict(image=image, regions=[BOX], question="Is it red?", max_new_tokens=5, api_name="/describe")
    asked = region_introduction(1) + "Is it red?"
    assert own["answers"] == session.ask([BOX], asked, max_new_tokens=5)
    matches = gradio.predict(image=image, expression="red disc", regions=[BOX, OTHER], api_name="/find")["matches"]
    scores = session.score(["red disc"], [BOX, OTHER], "Please give me a short description of <mask>.")[:, 0]
    assert [match["index"] for match in matches] == np.argsort(-scores).tolist()
    every = gradio.predict(image=image, most=3, max_new_tokens=4, api_name="/everything")["regions"]
    assert 1 <= len(every) <= 3
    assert all(to_mask(region["segmentation"], 200, 320).any() and "answer" in region for region in every)


def test_the_api_of_gradio_client_says_what_is_wrong(gradio, folder, served, tmp_path):
    image = handle_file(str(folder / "scene.png"))
    (tmp_path / "notes.png").write_text("This is no picture.")
    notes = handle_file(str(tmp_path / "notes.png"))
    cases = [
        ("/describe", {"image": image, "regions": [{"box": [30, 30, 10, 110]}]}, "no area"),
        ("/describe", {"image": image, "regions": [BOX] * 65}, "65 regions in one request, the limit is 64"),
        ("/describe", {"image": image, "regions": [{"mask": "/etc/passwd"}]}, "regions.0.mask"),
        ("/describe", {"image": image, "regions": [BOX], "max_new_tokens": 10**9}, "max_new_tokens"),
        ("/describe", {"image": {"path": "/etc/passwd"}, "regions": [BOX]}, "not uploaded"),
        ("/describe", {"image": notes, "regions": [BOX]}, "notes.png cannot be read"),
        ("/segment", {"image": image, "points": [[1000, 1]]}, "outside"),
        ("/segment", {"image": image}, "no point on the object"),
        ("/find", {"image": image, "expression": " ", "regions": [BOX]}, "what to look for"),
        ("/everything", {"image": image, "most": 0}, "most is a whole number from 1 to 64"),
    ]
    for name, values, expected in cases:
        with pytest.raises(AppError, match=re.escape(expected)):
            gradio.predict(**values, api_name=name)
    (tmp_path / "heavy.png").write_bytes(bytes(600_000))
    with pytest.raises(ValueError, match="exceeds the maximum file size of 524288 bytes"):
        gradio.predict(image=handle_file(str(tmp_path / "heavy.png")), regions=[BOX], api_name="/describe")
    files = {"files": ("heavy.png", bytes(600_000))}
    assert httpx.post(f"{served.address}/gradio_api/upload", files=files).status_code == 413
    assert "Traceback" not in served.log


def test_the_example_of_the_readme_runs(served, folder):
    command = [sys.executable, "-m", "app.client_example", folder / "scene.png", "--address", served.address]
    done = subprocess.run([*map(str, command), "--point", "70,70"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("masks at (70, 70)", "described:", "fits 'a red disc' with a share of", "tokens)", "streamed: "):
        assert part in done.stdout


def test_the_example_says_what_is_wrong(served, folder, capsys):
    assert example_main([str(folder / "scene.png"), "--address", served.address, "--point", "700,70"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "outside" in error


def test_several_users_at_once_get_each_their_own_answers(served, capsys, tmp_path):
    arguments = ["--address", served.address, "--users", "4", "--seconds", "2", "--pid", str(served.pid)]
    assert load_main([*arguments, "--out", str(tmp_path / "figures.json")]) == 0
    assert "0 wrong, 0 errors" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["warm"]["memory_mib"] > 0 and figures["latencies"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--address", "http://192.0.2.1:7860"], "not on this machine"),
        (["--address", "http://localhost.example"], "not on this machine"),
        (["--users", "65"], "from 1 to 64"),
        (["--seconds", "nan"], "at most 600"),
    ],
)
def test_the_load_test_harms_nobody(capsys, arguments, reason):
    assert load_main(arguments) == 1
    assert reason in capsys.readouterr().err
