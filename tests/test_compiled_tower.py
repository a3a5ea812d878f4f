"""A compiled tower: the same answers, from any thread; what cannot be compiled is refused in one line."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch._inductor import config as inductor

from osprey_tp import RegionDescriber
from osprey_tp.cli import main
from osprey_tp.compiled_tower import tower_layers

from .tiny_models import save_tiny_model

TEXTS = ["a", "a red ring", "the picture"]
BOX = {"box": [20, 10, 90, 70]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def compiles_anew(tmp_path, monkeypatch):
    """Nothing that was compiled before is taken again."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def picture_of(height, width):
    rng = np.random.default_rng(height)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_without_a_compiler_it_is_refused_in_one_line(folder, tmp_path, compiles_anew, capsys):
    picture_of(90, 150).save(tmp_path / "picture.png")
    command = ["describe", str(tmp_path / "picture.png"), "--model", str(folder), "--box", "20,10,90,70", "--compile"]
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "no compiler"))}):
        assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("osprey-tp: the vision tower cannot be compiled here (InvalidCxxCompiler: ")
    assert error.endswith("install a C++ compiler (g++), for a GPU Triton too, or leave compile out\n")
    assert error.count("\n") == 1


def test_a_compiled_tower_says_the_same_about_any_number_of_tiles_from_any_thread(folder, compiles_anew):
    plain, compiled = RegionDescriber.from_pretrained(folder), RegionDescriber.from_pretrained(folder, compile=True)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    pictures = [picture_of(height, 150) for height in (20, 90, 150, 300)]
    with ThreadPoolExecutor(4) as threads:
        sessions = list(threads.map(compiled.open, pictures))
    for session, picture in zip(sessions, pictures, strict=True):
        expected = plain.open(picture)
        np.testing.assert_allclose(session.score(TEXTS, [BOX]), expected.score(TEXTS, [BOX]), rtol=1e-5)
        assert session.ask([BOX]) == expected.ask([BOX])
    assert len({session.picture.plan.num_tiles for session in sessions}) > 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made > 0, "it was compiled while it was used"
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


def test_a_tower_without_one_list_of_layers_is_compiled_as_a_whole(folder):
    tower = RegionDescriber.from_pretrained(folder).model.model.vision_tower
    assert tower_layers(tower) == list(tower.encoder.layers)
    tower.config.num_hidden_layers += 1
    assert tower_layers(tower) == [tower]
