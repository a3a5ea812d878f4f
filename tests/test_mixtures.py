"""Mixtures: the YAML and its errors, what an epoch holds, and its order."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import dataset as dataset_module
from data_pipelines.dataset import ConversationDataset
from data_pipelines.mixtures import EpochOrder, Mixture, MixtureFolder, is_mixture_file, read_mixture
from data_pipelines.records import Region, RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp import run_lengths

from .annotation_files import HEIGHT, WIDTH, box_mask, compressed, write_picture
from .tiny_models import tiny_processor_and_config


def write_folder(folder: Path, source: str = "coco", count: int = 4, regions: int = 2, **options) -> Path:
    """Records of rectangles on one picture."""
    write_picture(folder / "images", "a.png")
    boxes = [box_mask(n % WIDTH, 2, n % WIDTH + 1, 9) for n in range(regions)]
    made = tuple(Region(compressed(mask), f"thing {n}") for n, mask in enumerate(boxes))
    with RecordWriter(folder / "records", source=source, image_root=folder / "images", **options) as writer:
        for number in range(count):
            writer.add(RegionRecord(f"{source}:{number}", source, "a.png", HEIGHT, WIDTH, made, ()))
    return folder / "records"


def write_mixture(file: Path, **content) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def texts(sample: dict) -> list[str]:
    contents = [message["content"] for message in sample["conversation"]]
    return [text if isinstance(text, str) else "".join(item.get("text", "") for item in text) for text in contents]


def test_a_file_says_everything_about_its_folders(tmp_path):
    coco, refcoco = write_folder(tmp_path / "coco", regions=6), write_folder(tmp_path / "refcoco", "refcoco", 5)
    (tmp_path / "mixtures").mkdir()
    moved = tmp_path / "elsewhere"
    (tmp_path / "coco" / "images").rename(moved)
    file = write_mixture(
        tmp_path / "mixtures" / "mixture.yaml",
        seed=7,
        folders=[
            {
                "path": "../coco/records",
                "weight": 2,
                "max_regions": 3,
                "prompt_style": "published",
                "images": f"{moved}",
            },
            {"path": "../refcoco/records", "weight": "1e0", "limit": 2},
        ],
    )
    mixture = read_mixture(file)
    assert mixture.seed == 7
    samples = ConversationDataset(mixture, seed=1)
    assert (len(samples), samples.order.seed) == (4 * 2 + 2, 7)
    seen = Counter(samples[place]["id"].split(":")[0] for place in range(len(samples)))
    assert seen == {"coco": 8, "refcoco": 2}
    for place in range(len(samples)):
        sample = samples[place]
        if sample["id"].startswith("coco"):
            assert len(texts(sample)) == 2 * 3
            assert texts(sample)[0].startswith("In the conversation below, you simply answer the category name")
        else:
            assert not texts(sample)[0].startswith("I will provide you")
    assert ConversationDataset(Mixture.of([coco, refcoco]), seed=1).order.seed == 1
    limited = ConversationDataset(mixture, max_regions=1)
    assert all(len(texts(limited[place])) == 2 for place in range(len(limited)))


def test_a_limit_draws_other_records_in_every_epoch(tmp_path):
    entry = MixtureFolder(write_folder(tmp_path, count=9), limit=3)
    samples = ConversationDataset(Mixture((entry,)))
    assert len(samples) == 3
    assert len({samples.record((epoch, place))[1].id for epoch in range(12) for place in range(3)}) == 9
    assert entry.samples(2) == 2
    assert MixtureFolder("f", weight=0.01).samples(2) == 1


GOOD = {"path": "records"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no mixture; it must hold `folders:`"),
        ({"folders": []}, ": folders must be a list of at least one folder, not []"),
        ({"folders": {"records": 1}}, ": folders must be a list of at least one folder"),
        ({"folders": ["records"]}, ": folders[0] must hold `path:` and more if wanted, not 'records'"),
        ({"folder": [GOOD]}, ": unknown key 'folder'; the nearest known one is 'folders'"),
        ({"folders": [GOOD], "seed": -1}, ": seed must be a whole number from 0 on, not -1"),
        ({"folders": [GOOD], "seed": True}, ": seed must be a whole number from 0 on, not True"),
        ({"folders": [GOOD, {"weight": 1}]}, ": folders[1] lacks path"),
        ({"folders": [{"path": 3}]}, ": folders[0].path must be a path, not 3"),
        ({"folders": [GOOD | {"wieght": 1}]}, ": folders[0]: unknown key 'wieght'; the nearest known one is 'weight'"),
        ({"folders": [GOOD | {"weight": 0}]}, ": folders[0].weight must be a positive number, not 0"),
        ({"folders": [GOOD | {"weight": "two"}]}, ": folders[0].weight must be a positive number, not 'two'"),
        ({"folders": [GOOD | {"weight": float("nan")}]}, ": folders[0].weight must be a positive number, not nan"),
        ({"folders": [GOOD | {"weight": True}]}, ": folders[0].weight must be a positive number, not True"),
        ({"folders": [GOOD | {"limit": 1.5}]}, ": folders[0].limit must be a positive whole number, not 1.5"),
        ({"folders": [GOOD | {"limit": None}]}, ": folders[0].limit must be a positive whole number, not None"),
        ({"folders": [GOOD | {"max_regions": 0}]}, ": folders[0].max_regions must be a positive whole number, not 0"),
        (
            {"folders": [GOOD | {"prompt_style": "old"}]},
            ": folders[0].prompt_style must be clean or published, not 'old'",
        ),
        ({"folders": [GOOD | {"images": ""}]}, ": folders[0].images must be a path, not ''"),
        ({"folders": [GOOD, {"path": "x/../records"}]}, ": folders[1].path: "),
    ],
)
def test_what_is_no_mixture_is_named_by_file_and_key(tmp_path, content, message):
    file = write_mixture(tmp_path / "mixture.yaml")
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as caught:
        read_mixture(file)
    assert str(caught.value).startswith(f"{file}")
    assert str(caught.value).removeprefix(f"{file}").strip().startswith(message.strip())
    assert "\n" not in str(caught.value)


def test_mixtures_of_the_project_are_read():
    files = sorted((Path(__file__).resolve().parents[1] / "scripts" / "configs").rglob("mixture*.yaml"))
    assert files
    for file in files:
        assert all(folder.where.startswith(str(file)) for folder in read_mixture(file).folders)


def test_what_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "mixture.yaml"
    file.write_text("folders: [")
    with pytest.raises(ValueError, match=r"mixture.yaml is not valid YAML: [^\n]+$"):
        read_mixture(file)
    with pytest.raises(OSError, match=r"absent\.yaml"):
        read_mixture(tmp_path / "absent.yaml")
    assert is_mixture_file("a.yml") and is_mixture_file(file) and not is_mixture_file(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "absent"}, r"folders\[0\]\.path: .*absent is not a folder of records"),
        ({"path": "evaluation/records"}, r"folders\[0\]\.path: .* is prepared for evaluation"),
        ({"path": "good/records", "images": "absent"}, r"folders\[0\]\.images: there is no folder .*absent"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_named_by_file_and_key(tmp_path, entry, message):
    write_folder(tmp_path / "good")
    write_folder(tmp_path / "evaluation", purpose="evaluation")
    file = write_mixture(tmp_path / "mixture.yaml", folders=[entry])
    with pytest.raises(ValueError, match=rf"mixture\.yaml: {message}"):
        ConversationDataset(read_mixture(file))


def test_evaluation_folders_are_refused_without_a_file_too(tmp_path):
    folder = write_folder(tmp_path, purpose="evaluation")
    with pytest.raises(ValueError, match=f"^{folder} is prepared for evaluation"):
        ConversationDataset([folder])


shares = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(shares, st.integers(0, 99), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_whole_passes_and_a_subset(shares, seed, epoch, shuffle):
    records, samples = zip(*shares, strict=True)
    order = EpochOrder(records, samples, seed, shuffle)
    slots = [order.at(epoch, place) for place in range(len(order))]
    assert len(slots) == len(set(slots)) == sum(samples)
    for folder, (count, wanted) in enumerate(shares):
        passes = -(-wanted // count)
        of_folder = [(record, seen - epoch * passes) for at, record, seen in slots if at == folder]
        assert len(of_folder) == wanted
        for number in range(passes):
            once = [record for record, seen in of_folder if seen == number]
            assert len(set(once)) == len(once) == min(count, wanted - number * count)
            assert set(once) <= set(range(count))
    if not shuffle:
        assert [folder for folder, _, _ in slots] == sorted(folder for folder, _, _ in slots)
    copy = pickle.loads(pickle.dumps(EpochOrder(records, samples, seed, shuffle)))
    assert [copy.at(epoch, place) for place in reversed(range(len(order)))] == slots[::-1]


def test_epochs_may_be_visited_in_any_order():
    order, other = (EpochOrder([50, 7], [30, 21], 3, True) for _ in range(2))
    wanted = {epoch: [order.at(epoch, place) for place in range(51)] for epoch in range(4)}
    assert len({tuple(at[:2] for at in slots) for slots in wanted.values()}) == 4
    for place in range(51):
        for epoch in (3, 0, 2, 1):
            assert other.at(epoch, place) == wanted[epoch][place]


def test_large_orders_cost_four_bytes_a_sample():
    order = EpochOrder([1_000_000, 300_000], [2_000_000, 100_000], 0, True)
    order.at(0, 5), order.at(1, 5), order.at(2, 5)
    kept = [array for draw in order._drawn.values() for array in (draw.permutation, *draw.subsets)]
    assert sum(array.nbytes for array in kept) == 2 * 4 * (2_100_000 + 100_000)
    assert len(pickle.dumps(order)) < 1000


def test_records_without_a_picture_pass_through(tmp_path):
    write_picture(tmp_path / "images", "a.png")
    turns = (Turn("user", "How many sides has a square?"), Turn("assistant", "Four."))
    with RecordWriter(tmp_path / "records", source="llava", image_root=tmp_path / "images") as writer:
        writer.add(RegionRecord("llava:text", "llava", "", 0, 0, (), turns))
        writer.add(RegionRecord("llava:picture", "llava", "a.png", HEIGHT, WIDTH, (), turns))
    samples = ConversationDataset([tmp_path / "records"], shuffle=False)
    without, with_picture = samples[0], samples[1]
    assert (without["id"], with_picture["id"]) == ("llava:text", "llava:picture")
    assert pictures(without) == []
    assert [isinstance(item, Image.Image) for item in pictures(with_picture)] == [True]
    assert "How many sides has a square?" in texts(without)[0]
    processor, _ = tiny_processor_and_config()
    batch = processor.prepare([without["conversation"], with_picture["conversation"]], return_labels=True)
    assert (batch["input_ids"] == processor.image_token_id).any(dim=1).tolist() == [False, True]
    assert (batch["labels"] != -100).any(dim=1).all()
    alone = processor.prepare([without["conversation"]], return_labels=True)
    assert "pixel_values" not in alone


def pictures(sample: dict) -> list:
    contents = [message["content"] for message in sample["conversation"]]
    return [item["image"] for content in contents if isinstance(content, list) for item in content if "image" in item]


def test_only_the_regions_that_are_used_are_decoded(tmp_path, monkeypatch):
    processor, _ = tiny_processor_and_config()
    folder = write_folder(tmp_path, count=2, regions=200)
    decoded, opened = [], []
    real_decode, real_load = run_lengths.checked_runs, dataset_module.load_image
    monkeypatch.setattr(run_lengths, "checked_runs", lambda *given: decoded.append(given) or real_decode(*given))
    monkeypatch.setattr(dataset_module, "load_image", lambda path: opened.append(path) or real_load(path))
    samples = ConversationDataset([folder], max_regions=3)
    sample = samples[0]
    assert (len(decoded), len(opened)) == (0, 1)
    batch = processor.prepare([sample["conversation"]], return_labels=True)
    assert len(batch["region_coverage"]) == len(decoded) == 3
    assert np.isfinite(batch["region_coverage"]).all()
