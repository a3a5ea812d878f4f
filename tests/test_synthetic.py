"""Synthetic scenes: what is drawn, written and said agree; checked by pycocotools, scikit-image and a parser."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from skimage.draw import polygon2mask

from data_pipelines.synthetic.expressions import captions
from data_pipelines.synthetic.painting import PALETTE
from data_pipelines.synthetic.scenes import MIN_VISIBLE, Scene, draw_scene
from data_pipelines.synthetic.shapes import outline, rasterise
from data_pipelines.synthetic.vocabulary import (
    COLOURS,
    HELD_OUT_TRIPLES,
    SEEN_TRIPLES,
    SHAPES,
    SIZES,
    TEXTURES,
    TRIPLES,
    attributes_of,
    category_id,
    is_held_out,
    region_name,
)
from data_pipelines.synthetic.writer import scene_of, uncompressed_runs, write_scenes

COUNTS = {"train": 40, "val": 6, "test": 24}
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "out"
    written = write_scenes(out, COUNTS, seed=SEED, progress=False)
    assert {split: counts["images"] for split, counts in written.items()} == COUNTS
    return out


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: [scene_of(split, index, SEED)[0] for index in range(count)] for split, count in COUNTS.items()}


def annotations(folder: Path, kind: str, split: str) -> dict:
    return json.loads((folder / "annotations" / f"{kind}_{split}.json").read_text())


class TestVocabulary:
    def test_names_are_read_back(self):
        for triple in TRIPLES:
            assert attributes_of(region_name(*triple)) == triple
        assert len({category_id(*triple) for triple in TRIPLES}) == len(TRIPLES) == 144

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("It is a Dotted GREEN ring, left of a red star.", ("dotted", "green", "ring")),
            ("two red stars", (None, "red", "star")),
            ("A pinkish starfish", (None, None, None)),
            ("", (None, None, None)),
        ],
    )
    def test_free_text(self, text, expected):
        assert attributes_of(text) == expected

    def test_held_out_combinations_leave_every_pair_of_attributes_to_training(self):
        assert len(HELD_OUT_TRIPLES) == 18 and len(SEEN_TRIPLES) == 126
        for first, second, words in ((0, 1, (TEXTURES, COLOURS)), (1, 2, (COLOURS, SHAPES))):
            pairs = {(triple[first], triple[second]) for triple in SEEN_TRIPLES}
            assert len(pairs) == len(words[0]) * len(words[1])


class TestShapes:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_mask_agrees_with_another_rasteriser(self, shape):
        polygons = outline(shape, (100.3, 95.8), 70.0, 0.7)
        mask = rasterise(polygons, 190, 220)
        other = polygon2mask((190, 220), polygons[0][:, ::-1])
        for hole in polygons[1:]:
            other = other & ~polygon2mask((190, 220), hole[:, ::-1])
        assert (mask & other).sum() / (mask | other).sum() > 0.96

    def test_only_the_ring_has_a_hole(self):
        for shape in SHAPES:
            mask = rasterise(outline(shape, (40.0, 40.0), 20.0, 0.3), 80, 80)
            assert mask[40, 40] == (shape != "ring")

    @pytest.mark.parametrize("first", SHAPES)
    def test_small_shapes_differ(self, first):
        """At a radius of 12 pixels, whatever the rotation, no two shapes cover nearly the same pixels."""
        reference = rasterise(outline(first, (20.0, 20.0), 12.0, 0.0), 40, 40)
        for second in set(SHAPES) - {first}:
            for rotation in np.linspace(0, 2 * np.pi, 24, endpoint=False):
                other = rasterise(outline(second, (20.0, 20.0), 12.0, rotation), 40, 40)
                assert (reference & other).sum() / (reference | other).sum() < 0.9

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
    def test_uncompressed_runs_are_read_back_by_pycocotools(self, height, width, seed):
        mask = np.random.default_rng(seed).random((height, width)) < 0.5
        decoded = mask_utils.decode(mask_utils.frPyObjects(uncompressed_runs(mask), height, width))
        assert (decoded.astype(bool) == mask).all()


class TestScene:
    def test_equal_generators_draw_equal_scenes(self):
        first, second = (draw_scene(np.random.default_rng(5)) for _ in range(2))
        assert (first.picture == second.picture).all()
        assert [item.name for item in first.everything] == [item.name for item in second.everything]
        assert (first.picture != draw_scene(np.random.default_rng(6)).picture).any()

    def test_masks_are_disjoint_and_mostly_visible(self, scenes):
        occluded = 0
        for scene in (scene for of_split in scenes.values() for scene in of_split):
            assert 3 <= len(scene.objects) <= 6
            assert np.sum([item.mask for item in scene.everything], axis=0).max() == 1
            for item in scene.objects:
                assert item.mask.sum() >= MIN_VISIBLE * item.full_mask.sum()
                occluded += not item.is_whole
        assert occluded > 50

    def test_pixels_under_a_mask_have_the_colour_that_is_named(self, scenes):
        names, palette = list(PALETTE), np.array(list(PALETTE.values()), float)
        right = []
        for scene in (scene for of_split in scenes.values() for scene in of_split):
            for item in scene.objects:
                pixels = scene.picture[item.mask].astype(float)
                brightest = pixels[pixels.sum(axis=1) >= np.quantile(pixels.sum(axis=1), 0.6)].mean(axis=0)
                distances = np.linalg.norm(palette - brightest, axis=1)
                right.append(names[int(distances.argmin())] == item.colour)
        assert np.mean(right) > 0.97

    @pytest.mark.parametrize("size", [(64, 64), (300, 100), (256, 384)])
    def test_any_size(self, size):
        scene = draw_scene(np.random.default_rng(0), size)
        assert scene.picture.shape == (*size, 3)
        large = [item.radius for item in scene.objects if item.size == "large"]
        assert all(0.16 * min(size) < radius < 0.22 * min(size) for radius in large)

    def test_too_small_a_size_is_refused(self):
        with pytest.raises(ValueError, match="40x200 pixels is too small"):
            draw_scene(np.random.default_rng(0), (40, 200))

    def test_held_out_combinations_appear_in_the_test_split_only(self, scenes):
        unseen = {
            split: np.mean([is_held_out(*item.triple) for scene in of_split for item in scene.everything])
            for split, of_split in scenes.items()
        }
        assert unseen["train"] == unseen["val"] == 0
        assert 0.15 < unseen["test"] < 0.5


class TestFiles:
    def test_masks_areas_and_boxes_are_exact(self, folder, scenes):
        forms = Counter()
        for split, of_split in scenes.items():
            coco = COCO(folder / "annotations" / f"instances_{split}.json")
            for image, scene in zip(coco.loadImgs(sorted(coco.imgs)), of_split, strict=True):
                written = coco.loadAnns(coco.getAnnIds(image["id"], iscrowd=0))
                for annotation, item in zip(written, (*scene.objects, *scene.tiny), strict=True):
                    assert coco.cats[annotation["category_id"]]["name"] == item.name
                    assert (coco.annToMask(annotation).astype(bool) == item.mask).all()
                    rows, columns = np.nonzero(item.mask)
                    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                    assert annotation["bbox"] == box and annotation["area"] == len(rows)
                    segmentation = annotation["segmentation"]
                    forms["polygon" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__] += 1
        assert min(forms[form] for form in ("polygon", "str", "list")) > 10

    def test_crowds_and_tiny_regions_exist(self, folder, scenes):
        instances = annotations(folder, "instances", "train")["annotations"]
        crowds = [annotation for annotation in instances if annotation["iscrowd"]]
        assert crowds and all(isinstance(crowd["segmentation"]["counts"], list) for crowd in crowds)
        assert len(crowds) == sum(bool(scene.crowd) for scene in scenes["train"])
        assert any(annotation["area"] < 60 for annotation in instances if not annotation["iscrowd"])

    def test_ids_are_unique_over_splits(self, folder):
        for kind in ("instances", "captions", "refs"):
            for part in ("images", "annotations"):
                ids = [entry["id"] for split in COUNTS for entry in annotations(folder, kind, split)[part]]
                shared = kind == "captions" and part == "images"
                assert len(ids) == len(set(ids)) and (ids == sorted(ids) or shared)

    def test_pictures_are_what_was_drawn(self, folder, scenes):
        for entry, scene in zip(annotations(folder, "instances", "val")["images"], scenes["val"], strict=True):
            picture = np.asarray(Image.open(folder / "images" / "val" / entry["file_name"]))
            assert picture.shape == (entry["height"], entry["width"], 3)
            assert np.abs(picture.astype(int) - scene.picture).mean() < 4

    def test_expressions_have_one_image_record_and_one_annotation_each(self, folder):
        instances = annotations(folder, "instances", "train")
        refs = annotations(folder, "refs", "train")
        by_id = {annotation["id"]: annotation for annotation in instances["annotations"]}
        files = {image["id"]: image["file_name"] for image in instances["images"]}
        assert len(refs["images"]) == len(refs["annotations"]) > COUNTS["train"]
        for image, annotation in zip(refs["images"], refs["annotations"], strict=True):
            assert annotation["image_id"] == image["id"]
            assert image["file_name"] == files[image["original_id"]]
            original = by_id[annotation["original_id"]]
            assert original["image_id"] == image["original_id"]
            assert original["segmentation"] == annotation["segmentation"]

    def test_files_are_the_same_whatever_the_number_of_workers(self, tmp_path):
        counts = {"train": 5, "test": 3}
        for workers in (1, 2):
            write_scenes(tmp_path / str(workers), counts, seed=9, size=(96, 96), workers=workers, progress=False)
        files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
        assert len(files) == 8 + 6
        for file in files:
            assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


class TestExpressions:
    """Expressions are resolved by a parser of their grammar, over centres of the visible masks."""

    RELATIONS = ("left of", "right of", "above", "below")
    EXTREMES = ("leftmost", "rightmost", "topmost", "bottom")

    def fitting(self, scene: Scene, phrase: str) -> list:
        *adjectives, shape = phrase.removeprefix("the ").split()
        found = []
        for item in scene.everything:
            size = "small" if item.size == "tiny" else item.size
            if item.shape == shape and set(adjectives) <= {size, item.texture, item.colour}:
                found.append(item)
        return found

    def ahead(self, item, other, direction: str) -> float:
        (y, x), (other_y, other_x) = (np.argwhere(each.mask).mean(axis=0) for each in (item, other))
        return {"l": other_x - x, "r": x - other_x, "a": other_y - y, "t": other_y - y, "b": y - other_y}[direction[0]]

    def resolve(self, scene: Scene, expression: str) -> list:
        parts = re.split(f" ({'|'.join(self.RELATIONS)}) ", expression)
        words = parts[0].split()
        extreme = words.pop(1) if words[1] in self.EXTREMES else None
        found = self.fitting(scene, " ".join(words))
        if extreme:
            assert len(found) > 1
            return [a for a in found if all(self.ahead(a, b, extreme) > 0 for b in found if b is not a)]
        if len(parts) == 1:
            return found
        assert len(found) > 1
        (anchor,) = self.fitting(scene, parts[2])
        return [item for item in found if item is not anchor and self.ahead(item, anchor, parts[1]) > 0]

    def test_each_fits_its_object_only(self, folder, scenes):
        relational = total = 0
        for split, of_split in scenes.items():
            refs, instances = annotations(folder, "refs", split), annotations(folder, "instances", split)
            names = [image["file_name"] for image in instances["images"]]
            for image, annotation in zip(refs["images"], refs["annotations"], strict=True):
                scene = of_split[names.index(image["file_name"])]
                target = self.resolve(scene, image["caption"])
                assert len(target) == 1, image["caption"]
                runs = mask_utils.encode(np.asfortranarray(target[0].mask.astype(np.uint8)))
                assert mask_utils.toBbox(runs).tolist() == annotation["bbox"], image["caption"]
                relational += bool(re.search("|".join(self.RELATIONS + self.EXTREMES), image["caption"]))
                total += 1
        assert 0.25 < relational / total < 0.75

    def test_captions_name_what_is_there(self, scenes):
        for scene in scenes["train"]:
            listing, relation = captions(scene, np.random.default_rng(0))
            named = re.findall(r"a (large|small) (\w+ \w+ \w+)", listing.lower())
            assert Counter(named) == Counter((item.size, item.name) for item in scene.objects)
            assert relation.lower().split()[0] == ("three", "four", "five", "six")[len(scene.objects) - 3]
            first, word, second = re.findall(rf"a (\w+ \w+ \w+) ({'|'.join(self.RELATIONS)}) a (.+)\.", relation)[0]
            pairs = [(a, b) for a in scene.objects for b in scene.objects if (a.name, b.name) == (first, second)]
            assert any(self.ahead(a, b, word) > 0 for a, b in pairs)
            assert all(word in SIZES for word, _ in named)


class TestFailure:
    def test_a_folder_in_use_is_left_alone(self, tmp_path):
        (tmp_path / "keep.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="exists already"):
            write_scenes(tmp_path, {"train": 1}, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]

    @pytest.mark.parametrize(("counts", "named"), [({"dev": 3}, "'dev'"), ({"train": -1}, "-1 scenes")])
    def test_unknown_splits_and_negative_numbers(self, tmp_path, counts, named):
        with pytest.raises(ValueError, match=named):
            write_scenes(tmp_path / "out", counts, progress=False)
        assert not list(tmp_path.iterdir())

    def test_nothing_is_left_behind(self, tmp_path):
        with pytest.raises(ValueError, match="too small"):
            write_scenes(tmp_path / "out", {"train": 2}, size=(10, 10), progress=False)
        assert not list(tmp_path.iterdir())
