"""A describer and a segmenter that write down what they were asked, and a user who sees the page's updates."""

import itertools

import numpy as np

from app.chat import Chat
from app.controller import KEEP, Answer, Asking, Controller, View
from app.pictures import OpenPicture, PictureCache
from app.questions import CATEGORY
from app.state import Kept, Selection
from osprey_tp.segmenters import Candidate


class FakeSession:
    def __init__(self, image, pieces):
        self.image, self.pieces, self.asked, self.closed = image, pieces, [], 0

    def stream(self, regions, question, **options):
        return self._answer(regions, question, options)

    def converse(self, turns, regions=(), **options):
        return self._answer(regions, turns, options)

    def _answer(self, regions, question, options):
        self.asked.append((regions, question, options))
        try:
            yield from self.pieces
        finally:
            self.closed += 1


class FakeDescriber:
    def __init__(self, pieces=("a red", " triangle")):
        self.pieces, self.opened = pieces, []

    def open(self, image):
        self.opened.append(FakeSession(image, self.pieces))
        return self.opened[-1]


class FakeSegmenter:
    """Finds a square of 11 pixels, and one of 21, around the last point on the object or the box's centre."""

    description = "Squares"

    def __init__(self):
        self.opened, self.prompts, self.error = [], [], None

    def open(self, image):
        self.opened.append(image)
        self.size = image.size
        return self

    def segment(self, points, labels, box=None):
        if self.error:
            raise self.error
        self.prompts.append((list(points), list(labels), box))
        positive = [point for point, label in zip(points, labels, strict=True) if label]
        x, y = positive[-1] if positive else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        masks = []
        for reach in (5, 10):
            mask = np.zeros(self.size[::-1], bool)
            mask[max(0, int(y) - reach) : int(y) + reach + 1, max(0, int(x) - reach) : int(x) + reach + 1] = True
            masks.append(Candidate(mask, 1 / reach))
        return masks


class User:
    """Sees what the page shows, and acts on it."""

    def __init__(self, describer=None, segmenter=None, controller=None, name="ann"):
        self.describer, self.segmenter = describer or FakeDescriber(), segmenter or FakeSegmenter()
        pictures = PictureCache(lambda path: OpenPicture.read(path, self.describer, self.segmenter), capacity=3)
        self.published = []
        self.controller = controller or Controller(pictures, self.publish)
        self.name, self.asking, self.serials = name, Asking(CATEGORY), itertools.count(1)
        self.view, self.status, self.answer, self.chat = View(Selection(), Kept()), None, Answer(), Chat()
        self.seen = []

    def publish(self, picture):
        self.published.append(picture)
        return f"shown{len(self.published)}.jpg"

    def show(self, updates):
        for update in updates:
            self.seen.append(update)
            for name in ("view", "status", "answer", "chat"):
                if getattr(update, name) is not KEEP:
                    setattr(self, name, getattr(update, name))
        return self

    @property
    def selection(self):
        return self.view.selection

    @property
    def kept(self):
        return self.view.kept

    @property
    def session(self):
        return self.describer.opened[-1]

    def open(self, path):
        return self.show(self.controller.open(self.name, str(path), "scene.png", next(self.serials)))

    def point(self, *points, labels=None, **others):
        pointed = {"points": list(points), "labels": labels or [True] * len(points)} | others
        serial = next(self.serials)
        return self.show(self.controller.select(self.name, self.selection, self.kept, pointed, serial, self.asking))

    def keep(self):
        return self.show(self.controller.keep(self.selection, self.kept))

    def send(self, message):
        return self.show(self.controller.send(self.name, self.selection, self.kept, self.chat, message, self.asking))

    def regenerate(self):
        return self.show(self.controller.regenerate(self.name, self.selection, self.chat, self.asking))
