"""Several processes, by every launcher and ZeRO stage, train as one process does, on samples of every kind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp import OspreyTPForConditionalGeneration

from . import preloaded
from .test_training_run import write_records
from .tiny_models import save_tiny_model, tiny_model

ROOT = Path(__file__).resolve().parents[1]
ZERO = "deepspeed=scripts/configs/deepspeed"
STEPS = 5
WAYS = {
    "one": ({"PROCESSES": "1"}, ["batch_size=4"]),
    "torchrun": ({"PROCESSES": "2"}, ["batch_size=1", "gradient_accumulation=2"]),
    "zero2": (
        {"PROCESSES": "2", "LAUNCHER": "deepspeed"},
        ["batch_size=1", "gradient_accumulation=2", f"{ZERO}/zero2.json"],
    ),
    "zero3": ({"PROCESSES": "2"}, ["batch_size=1", "gradient_accumulation=2", f"{ZERO}/zero3.json"]),
}


def write_without_regions(folder: Path, pictures: Path) -> tuple[Path, Path]:
    """A folder of captions and one of text alone."""
    with RecordWriter(folder / "captions", source="captions", image_root=pictures) as writer:
        for index in range(4):
            turns = (Turn("user", ""), Turn("assistant", f"{index} halves " * (index + 1)))
            writer.add(RegionRecord(f"captions:{index}", "captions", f"{index}.png", 48, 96, (), turns))
    with RecordWriter(folder / "texts", source="llava", image_root=folder) as writer:
        for index in range(8):
            turns = (Turn("user", f"Is {index} a number?"), Turn("assistant", "Yes. " * (index + 1)))
            writer.add(RegionRecord(f"llava:{index}", "llava", "", 0, 0, (), turns))
    return folder / "captions", folder / "texts"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start model and three folders of records: regions, pictures without regions, text alone."""
    place = tmp_path_factory.mktemp("distributed")
    save_tiny_model(place / "start", spatial_token=True, spatial_side=6)
    write_records(place, 8)
    write_without_regions(place, place / "images")
    return place


def folders(place: Path) -> list[str]:
    return [str(place / name) for name in ("records", "captions", "texts")]


def launch(place: Path, name: str, variables: dict[str, str], *settings: str) -> Path:
    """What `bash scripts/stage3.sh` writes with these variables and settings."""
    python = sys.executable if name == "one" else preloaded.python()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [
            *("bash", "scripts/stage3.sh", "--config", "scripts/configs/tiny/stage3.yaml"),
            *(f"model={place / 'start'}", f"data={json.dumps(folders(place))}", f"output={place / name}"),
            *("learning_rate=1e-3", f"max_steps={STEPS}", "log_every=1", "workers=0", *settings),
        ],
        cwd=ROOT,
        env={**os.environ, **variables, "PYTHON": python, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        | {"TORCH_EXTENSIONS_DIR": str(place / "extensions")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (place / "extensions").exists()  # nothing is compiled
    return place / name


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    return {name: launch(place, name, *_flat(way)) for name, way in WAYS.items()}


def _flat(way: tuple[dict[str, str], list[str]]) -> tuple:
    return way[0], *way[1]


def losses(folder: Path) -> torch.Tensor:
    log = json.loads((folder / "training_log.json").read_text())
    return torch.tensor([entry["loss"] for entry in log], dtype=torch.float64)


@pytest.mark.parametrize("name", ["torchrun", "zero2", "zero3"])
def test_losses_and_weights_are_those_of_one_process(runs: dict[str, Path], name: str) -> None:
    alone = losses(runs["one"])
    assert len(alone) == STEPS and alone[-1] < alone[0]
    torch.testing.assert_close(losses(runs[name]), alone, rtol=1e-4, atol=0)
    folders = (runs["one"].parent / "start", runs["one"], runs[name])
    start, one, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert set(found) == set(one) == set(start)
    for part in ("projector", "region_encoder.spatial", "region_encoder.output", "language_model"):
        names = [weight for weight in one if weight.startswith(f"model.{part}")]
        moved = sum(float((one[weight] - start[weight]).abs().sum()) for weight in names)
        apart = sum(float((one[weight] - found[weight]).abs().sum()) for weight in names)
        assert moved > 0
        assert apart < 0.01 * moved
    for weight in (weight for weight in one if weight.startswith("model.vision_tower")):
        assert torch.equal(found[weight], start[weight])


@pytest.mark.parametrize("name", list(WAYS))
def test_what_it_writes_loads_whole(runs: dict[str, Path], name: str) -> None:
    model, report = OspreyTPForConditionalGeneration.from_pretrained(runs[name], output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = load_file(runs[name] / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name in weights)


def test_in_some_steps_one_process_had_text_alone_and_the_other_regions(place: Path) -> None:
    order = ConversationDataset(dict.fromkeys(folders(place), 1.0)).order
    kinds = [order.at(0, sample)[0] for sample in range(4 * STEPS)]
    pairs = [set(kinds[first : first + 2]) for first in range(0, 4 * STEPS, 2)]  # batches of 1 go to the two in turn
    regions, captions, text = range(3)
    assert {regions, text} in pairs and {regions, captions} in pairs and {text} in pairs


@pytest.mark.parametrize("kind", ["text", "picture", "regions"])
def test_parts_that_a_batch_does_not_need_get_a_gradient_of_zero(kind: str) -> None:
    model, processor = tiny_model(spatial_token=True, spatial_side=6)
    mask = np.zeros((40, 60), bool)
    mask[5:20, 5:20] = True
    picture = {
        "type": "image",
        "image": np.zeros((40, 60, 3), np.uint8),
        "regions": [mask] if kind == "regions" else [],
    }
    text = {"type": "text", "text": "What is <mask>?" if kind == "regions" else "What?"}
    content = text["text"] if kind == "text" else [picture, text]
    conversation = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    batch = processor.prepare([conversation], return_labels=True)

    def gradients(runs_every_part: bool) -> tuple[float, dict[str, torch.Tensor | None]]:
        model.model.runs_every_part = runs_every_part
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), {name: p.grad for name, p in model.named_parameters()}

    (plain_loss, plain), (loss, completed) = gradients(False), gradients(True)
    assert loss == plain_loss
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(completed[name], gradient)
    idle = {"text": ("projector", "region_encoder"), "picture": ("region_encoder",), "regions": ()}[kind]
    for part in ("projector", "region_encoder"):
        of_part = [completed[name] for name in completed if name.startswith(f"model.{part}.")]
        assert all(gradient is not None for gradient in of_part)
        assert (sum(float(gradient.abs().sum()) for gradient in of_part if gradient is not None) == 0) == (part in idle)


def test_generation_is_not_slowed_by_parts_that_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model()
    model.model.runs_every_part = True
    calls = []
    encode = model.model.encode_tiles
    monkeypatch.setattr(model.model, "encode_tiles", lambda pixels: calls.append(1) or encode(pixels))
    batch = processor.prepare([[{"role": "user", "content": "What is red?"}]], add_generation_prompt=True)
    model.generate(**batch, max_new_tokens=5, do_sample=False)
    assert not calls
