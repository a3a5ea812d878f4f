"""Masks from clicks by Segment Anything, through the checkpoint file or the folder that a user would name.

The models are tiny and random; what a straightforward call of their own packages gives is the reference.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, Sam

from osprey_tp.prompted_masks import CLICKS_A_SIDE, LEAST_STABILITY, stability
from osprey_tp.sam import SamSegmenter, build_sam
from osprey_tp.sam_transformers import FAMILIES as FAMILY_TABLE
from osprey_tp.sam_transformers import TransformersSegmenter
from osprey_tp.segmenters import load_segmenter

from .app_fakes import User
from .drawn_shapes import drawn, iou
from .tiny_segmenters import confident_sam, save_tiny_family, tiny_sam


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(tiny_sam().state_dict(), path)
    return path


def attributes(model: Sam) -> list[tuple]:
    """What the shapes of weights show indirectly or not at all."""
    blocks = [(block.window_size, block.attn.num_heads) for block in model.image_encoder.blocks]
    layers = [(layer.self_attn.num_heads, layer.skip_first_layer_pe) for layer in model.mask_decoder.transformer.layers]
    return blocks + layers


@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes_are_recognised_from_shapes_alone(size):
    with torch.device("meta"):
        published = sam_model_registry[size]()
        rebuilt = build_sam(published.state_dict())
    assert {name: weight.shape for name, weight in rebuilt.state_dict().items()} == {
        name: weight.shape for name, weight in published.state_dict().items()
    }
    assert attributes(rebuilt) == attributes(published)


def test_sam_equals_the_package_on_its_own_model(checkpoint):
    image, _, point = drawn("star")
    candidates = load_segmenter(f"sam:{checkpoint}").open(image).segment([point], [True])
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(np.array(image))
    masks, scores, _ = predictor.predict(np.array([point]), np.array([1]))
    expected = [masks[index] for index in np.argsort(-scores, kind="stable") if masks[index].any()]
    assert candidates[0].mask.shape == (200, 300)
    assert all(np.array_equal(one.mask, other) for one, other in zip(candidates, expected, strict=True))


def test_sam_embeds_a_picture_once(checkpoint, monkeypatch):
    runs = []
    encode = ImageEncoderViT.forward
    monkeypatch.setattr(ImageEncoderViT, "forward", lambda self, x: runs.append(1) or encode(self, x))
    opened = load_segmenter(f"sam:{checkpoint}").open(drawn("star")[0])
    for x in (20.0, 90.0, 200.0):
        opened.segment([(x, 90.0)], [True])
    assert len(opened.segment([(90.0, 90.0), (20.0, 20.0)], [True, False])) == 1
    assert len(opened.segment([], [], box=(10, 10, 90, 90))) == 1
    assert runs == [1]


class _Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps(_Payload()), "other model"])
def test_a_bad_checkpoint_is_one_line_and_runs_nothing(tmp_path, capsys, content):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"bad\.pth is not a checkpoint of Segment Anything") as caught:
        load_segmenter(f"sam:{path}")
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_names_are_parsed(tmp_path):
    with pytest.raises(ValueError, match="unknown segmenter 'magic'; choose from grabcut"):
        load_segmenter("magic")
    with pytest.raises(ValueError, match="needs a checkpoint file or a model folder"):
        load_segmenter("sam")
    with pytest.raises(ValueError, match="takes no checkpoint"):
        load_segmenter("grabcut:x")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of Segment Anything at .*none\.pth"):
        load_segmenter(f"sam:{tmp_path}/none.pth")


@pytest.fixture(scope="module")
def confident(tmp_path_factory) -> SamSegmenter:
    path = tmp_path_factory.mktemp("sam") / "confident.pth"
    torch.save(confident_sam().state_dict(), path)
    return load_segmenter(f"sam:{path}")


def test_everything_is_what_the_package_finds_at_a_grid_of_clicks(confident, monkeypatch):
    runs = []
    encode = ImageEncoderViT.forward
    monkeypatch.setattr(ImageEncoderViT, "forward", lambda self, x: runs.append(1) or encode(self, x))
    image = drawn("star")[0]
    opened = confident.open(image)
    found, few = opened.everything(), opened.everything(most=3)
    assert runs == [1]
    predictor = SamPredictor(confident_sam())
    predictor.set_image(np.array(image))
    shares = (np.arange(CLICKS_A_SIDE["cpu"]) + 0.5) / CLICKS_A_SIDE["cpu"]
    clicks = np.array([(x * image.width, y * image.height) for y in shares for x in shares])
    expected = set()
    for batch in np.split(clicks, 4):
        positions = torch.as_tensor(predictor.transform.apply_coords(batch, predictor.original_size)).float()[:, None]
        masks, scores, _ = predictor.predict_torch(positions, torch.ones(len(batch), 1))
        expected |= {mask.numpy().tobytes() for mask in masks[scores >= 0.88]}
    assert len(found) > 8 and 1 < len(few) <= 3
    assert all(candidate.mask.tobytes() in expected for candidate in found)
    for place, candidate in enumerate(found):
        assert 0.88 <= candidate.score <= 1 and candidate.mask.any()
        assert all(iou(candidate.mask, other.mask) < 0.8 for other in found[:place])
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(few, found, strict=False))


def test_what_the_model_thinks_little_of_is_left_out(checkpoint):
    assert load_segmenter(f"sam:{checkpoint}").open(drawn("star")[0]).everything() == []


def test_stability_is_the_iou_of_the_masks_at_two_thresholds():
    logits = torch.randn(4, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 0] = -5
    expected = [[iou(mask > 1, mask > -1) if (mask > -1).any() else 0 for mask in row] for row in logits.numpy()]
    np.testing.assert_allclose(stability(logits).numpy(), expected, rtol=1e-6)
    assert LEAST_STABILITY <= 1


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 90), (1, 1)])
def test_the_slimmest_pictures_are_segmented(confident, size):
    opened = confident.open(Image.effect_noise(size, 50).convert("RGB"))
    assert all(candidate.mask.shape == size[::-1] for candidate in opened.everything())
    try:
        assert opened.segment([(0.0, 0.0)], [True])[0].mask.shape == size[::-1]
    except ValueError as error:
        assert "found no object here" in str(error)


FAMILIES = ("sam", "sam_hq", "sam2", "sam3_tracker")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: save_tiny_family(root / kind, kind) for kind in FAMILIES}


def straightforward(folder: Path, image: Image.Image, several: bool, **prompts) -> tuple[np.ndarray, np.ndarray]:
    """Masks and scores as the documentation of transformers tells to get them, best first."""
    name = type(transformers.AutoConfig.from_pretrained(folder)).__name__.removesuffix("Config")
    processor = getattr(transformers, f"{name}Processor").from_pretrained(folder)
    model = getattr(transformers, f"{name}Model").from_pretrained(folder).eval()
    inputs = processor(images=image, return_tensors="pt", **prompts)
    if "input_boxes" in inputs:
        inputs["input_boxes"] = inputs["input_boxes"].float()
    if "input_points" in inputs:
        inputs["input_points"] = inputs["input_points"].float()
    with torch.no_grad():
        outputs = model(**{key: inputs[key] for key in inputs if "sizes" not in key}, multimask_output=several)
    sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    masks = processor.post_process_masks(outputs.pred_masks, *sizes)[0][0].numpy()
    scores = outputs.iou_scores[0, 0].numpy()
    order = np.argsort(-scores, kind="stable")
    return masks[order], scores[order]


PROMPTS = {
    "click": (([(200.5, 60.0)], [True], None), {"input_points": [[[[200.5, 60.0]]]], "input_labels": [[[1]]]}),
    "clicks": (
        ([(200.5, 60.0), (20.0, 150.0)], [True, False], None),
        {"input_points": [[[[200.5, 60.0], [20.0, 150.0]]]], "input_labels": [[[1, 0]]]},
    ),
    "box": (([], [], (150.0, 20.0, 290.0, 110.0)), {"input_boxes": [[[150.0, 20.0, 290.0, 110.0]]]}),
    "click in a box": (
        ([(200.5, 60.0)], [True], (150.0, 20.0, 290.0, 110.0)),
        {
            "input_points": [[[[200.5, 60.0]]]],
            "input_labels": [[[1]]],
            "input_boxes": [[[150.0, 20.0, 290.0, 110.0]]],
        },
    ),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_answers_as_transformers_called_straightforwardly(folders, kind):
    image = drawn("star")[0]
    opened = load_segmenter(f"sam:{folders[kind]}").open(image)
    for name, (ours, theirs) in PROMPTS.items():
        several = name == "click"
        masks, scores = straightforward(folders[kind], image, several, **theirs)
        candidates = opened.segment(*ours)
        assert len(candidates) == (3 if several else 1) and candidates[0].mask.shape == (200, 300)
        for candidate, mask, score in zip(candidates, masks, scores, strict=True):
            assert iou(candidate.mask, mask) > 0.999, name
            assert candidate.score == pytest.approx(min(score, 1), abs=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_embeds_once_and_finds_everything(folders, kind):
    segmenter = load_segmenter(f"sam:{folders[kind]}")
    name = {"sam": "Segment Anything", "sam_hq": "SAM-HQ", "sam2": "SAM 2", "sam3_tracker": "SAM 3"}[kind]
    assert segmenter.description == f"{name}, 0.1M parameters"
    runs = []
    segmenter._model.vision_encoder.register_forward_hook(lambda *_: runs.append(1))
    image = drawn("star")[0]
    opened = segmenter.open(image)
    found = opened.everything(most=12)
    opened.segment([(5.0, 5.0)], [True])
    assert runs == [1]
    assert 3 < len(found) <= 12
    masks = [candidate.mask for candidate in found]
    assert all(mask.shape == (200, 300) and mask.any() for mask in masks)
    assert all(iou(mask, other) < 0.8 for place, mask in enumerate(masks) for other in masks[:place])


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_slimmest_pictures_are_segmented_by_folders_too(folders, kind):
    opened = load_segmenter(f"sam:{folders[kind]}").open(Image.effect_noise((1, 400), 50).convert("RGB"))
    assert all(candidate.mask.shape == (400, 1) for candidate in opened.everything())


def test_published_sizes_are_named(folders, tmp_path):
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_dim": 4096}
    large = transformers.Sam2HieraDetConfig(
        hidden_size=144, blocks_per_stage=[2, 6, 36, 4], embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16], window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
    )  # fmt: skip
    sam2 = transformers.Sam2Config(
        vision_config={"backbone_config": large.to_dict(), "backbone_channel_list": [1152, 576, 288, 144]}
    )
    with torch.device("meta"):
        models = {
            "ViT-L": transformers.SamModel(transformers.SamConfig(vision_config=vision)),
            "Hiera-T": transformers.Sam2Model(transformers.Sam2Config()),
            "Hiera-L": transformers.Sam2Model(sam2),
        }
    for size, model in models.items():
        family = FAMILY_TABLE["sam" if size == "ViT-L" else "sam2"]
        assert f" {size}, " in TransformersSegmenter(model, None, family).description


def broken_folder(whole: Path, folder: Path, how: str) -> Path:
    """A copy of a folder, spoilt."""
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "another model":
        config.write_text('{"model_type": "llama"}')
    elif how == "half its weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif how == "no weights":
        weights.unlink()
    elif how == "weights of another model":
        save_file({"weight": torch.zeros(2)}, weights, metadata={"format": "pt"})
    elif how == "a program for weights":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload()))
    elif how == "no processor":
        (folder / "processor_config.json").unlink()
    else:
        config.write_text({"no json": "{", "a list": "[]", "no type": "{}", "nested": "[" * 100_000}[how])
    return folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("another model", "holds a model of the type 'llama'; expected one of sam, sam_hq, sam2"),
        ("half its weights", "is not a whole folder of SAM 2: "),
        ("no weights", "is not a whole folder of SAM 2: "),
        ("weights of another model", r"is not a whole folder of SAM 2: it lacks \d+ weights"),
        ("a program for weights", "is not a whole folder of SAM 2: "),
        ("no processor", "is not a whole folder of SAM 2: "),
        ("no json", "is no model folder: its config.json names no model_type"),
        ("a list", "names no model_type"),
        ("no type", "names no model_type"),
        ("nested", "names no model_type"),
    ],
)
def test_a_bad_folder_is_one_line_and_runs_nothing(folders, tmp_path, capsys, how, message):
    folder = broken_folder(folders["sam2"], tmp_path / "bad", how)
    with pytest.raises(ValueError, match=f"bad .*{message}") as caught:
        load_segmenter(f"sam:{folder}")
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_half_a_checkpoint_is_one_line(checkpoint, tmp_path):
    half, fewer = tmp_path / "half.pth", tmp_path / "fewer.pth"
    half.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({name: weights[name] for name in list(weights)[:-20]}, fewer)
    for path in (half, fewer):
        with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint of Segment Anything: .*\w") as caught:
            load_segmenter(f"sam:{path}")
        assert "\n" not in str(caught.value)


def test_a_click_on_the_page_takes_the_way_through_segment_anything(confident, tmp_path):
    image = drawn("star")[0]
    image.save(tmp_path / "scene.png")
    user = User(segmenter=confident).open(tmp_path / "scene.png").point((95, 95), (20, 20), labels=[True, False])
    [expected] = confident.open(image).segment([(95.0, 95.0), (20.0, 20.0)], [True, False])
    assert np.array_equal(user.selection.shape.mask, expected.mask)
    assert user.answer.text == "a red triangle" and user.status.kind == "done"
    candidates = confident.open(image).segment([(95.0, 95.0)], [True])
    assert len(user.point((95, 95)).selection.candidates) == len(candidates) > 1
