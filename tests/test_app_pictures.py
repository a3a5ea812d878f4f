"""Open pictures: once for each content, within limits, and nobody's slow opening in anybody else's way."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from app.pictures import OpenPicture, PictureCache
from osprey_tp.describer import RegionDescriber
from osprey_tp.grabcut import GrabCutSegmenter

from .tiny_models import tiny_model

PATIENCE = 20.0  # seconds, after which a test that hangs fails


class Held:
    """Stands for an open picture."""

    def __init__(self, path, nbytes=1):
        self.path, self.nbytes = path, nbytes


class Opener:
    def __init__(self, nbytes=1):
        self.opened, self.nbytes = [], nbytes

    def __call__(self, path):
        self.opened.append(path)
        return Held(path, self.nbytes)


@pytest.fixture
def files(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(name)
    return {name: str(tmp_path / name) for name in "abcd"}


def test_the_most_recently_used_are_kept(files):
    opener = Opener()
    cache = PictureCache(opener, capacity=2)
    for name in "abaca":
        cache.get("ann", files[name])
    assert opener.opened == [files[name] for name in "abc"] and len(cache) == 2
    assert ("ann", files["b"]) not in cache and ("ann", files["a"]) in cache
    with pytest.raises(ValueError, match="cache of 0"):
        PictureCache(opener, capacity=0)


def test_bytes_are_bounded_also_when_pictures_grow_after_they_were_opened(files):
    cache = PictureCache(Opener(nbytes=40), capacity=10, most_bytes=100)
    first, second = cache.get("ann", files["a"]), cache.get("ann", files["b"])
    assert cache.nbytes == 80
    second.nbytes = 90
    assert cache.get("ann", files["b"]) is second and len(cache) == 1 and cache.nbytes == 90
    first.nbytes = 1000
    assert cache.get("ann", files["c"]).nbytes == 40 and len(cache) == 1
    assert PictureCache(Opener(nbytes=1000), 2, most_bytes=100).get("ann", files["a"]).nbytes == 1000


def test_users_share_a_picture_by_its_content_alone(files, tmp_path):
    opener = Opener()
    cache = PictureCache(opener, capacity=4)
    (tmp_path / "copy").write_text("a")
    picture = cache.get("ann", files["a"])
    assert cache.get("bob", str(tmp_path / "copy")) is picture is cache.get_bytes(b"a") and len(cache) == 1
    (tmp_path / "copy").write_text("something else")
    assert cache.get("bob", str(tmp_path / "copy")) is not picture
    assert len(opener.opened) == 2


def test_pictures_of_a_user_who_left_are_closed_unless_they_are_other_users_too(files):
    cache = PictureCache(Opener(), capacity=4)
    for user, name in (("ann", "a"), ("ann", "b"), ("bob", "b"), ("bob", "c")):
        cache.get(user, files[name])
    cache.forget("ann")
    assert len(cache) == 2 and ("ann", files["b"]) not in cache and ("bob", files["b"]) in cache
    cache.forget("bob")
    assert len(cache) == 0 and cache.nbytes == 0


def test_pictures_that_nobody_asks_for_are_closed(files, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("app.pictures.time.monotonic", lambda: now[0])
    cache = PictureCache(Opener(), capacity=4, idle_seconds=60)
    cache.get("ann", files["a"])
    now[0] += 50
    cache.get("bob", files["b"])
    now[0] += 50
    cache.evict_idle()
    assert ("bob", files["b"]) in cache and len(cache) == 1


def test_an_open_picture_outlives_its_file(files, tmp_path):
    cache = PictureCache(Opener(), capacity=1)
    picture = cache.get("ann", files["a"])
    (tmp_path / "a").unlink()
    assert cache.get("ann", files["a"]) is picture
    cache.get("ann", files["b"])
    with pytest.raises(FileNotFoundError):
        cache.get("ann", files["a"])


def test_one_opening_for_all_who_want_a_picture_and_no_waiting_for_others(files):
    begun, go_on, opened = threading.Event(), threading.Event(), []

    def open_picture(path):
        opened.append(path)
        if path == files["a"]:
            begun.set()
            assert go_on.wait(PATIENCE)
        return Held(path)

    cache = PictureCache(open_picture, capacity=4)
    with ThreadPoolExecutor(3) as threads:
        slow = [threads.submit(cache.get, "ann", files["a"])]
        assert begun.wait(PATIENCE)
        slow.append(threads.submit(cache.get, "bob", files["a"]))
        assert cache.get("eve", files["b"]).path == files["b"] and len(cache) == 1
        go_on.set()
        first, second = (one.result(PATIENCE) for one in slow)
    assert first is second and opened == [files["a"], files["b"]]


def test_an_opening_that_fails_is_tried_again(files):
    errors = [ValueError("no picture")]

    def open_picture(path):
        if errors:
            raise errors.pop()
        return Held(path)

    cache = PictureCache(open_picture, capacity=1)
    with pytest.raises(ValueError, match="no picture"):
        cache.get("ann", files["a"])
    assert len(cache) == 0 and cache.get("ann", files["a"])


def test_a_real_picture_tells_its_bytes_and_names_no_path():
    describer, segmenter = RegionDescriber(*tiny_model()), GrabCutSegmenter()
    cache = PictureCache(lambda path: OpenPicture.read(path, describer, segmenter, max_pixels=10_000), capacity=2)
    picture = OpenPicture(Image.new("RGB", (90, 60)), describer, segmenter)
    assert picture.nbytes == 90 * 60 * 3
    assert picture.shown.size == (720, 480)
    assert picture.nbytes == 3 * (90 * 60 + 720 * 480)
    segmented, session = picture.segmented, picture.session
    before = picture.nbytes
    assert before >= 3 * (90 * 60 + 720 * 480) + segmented.nbytes + session.picture.nbytes
    session.ask([np.ones((60, 90), bool)], max_new_tokens=1)
    written = next(iter(session.picture._prefixes.values())).cache.layers
    assert picture.nbytes - before == sum(layer.keys.nbytes + layer.values.nbytes for layer in written) > 0
    for content, message in ((b"no picture", "the picture cannot be read"), (b"", "the picture cannot be read")):
        with pytest.raises(ValueError, match=f"^{message}") as error:
            cache.get_bytes(content)
        assert "/" not in str(error.value)
