"""Clicks become masks: GrabCut against drawn shapes, Segment Anything through the checkpoint that a user would name."""

import math
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from osprey_tp.sam import build_sam
from osprey_tp.segmenters import load_segmenter


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def drawn(kind: str, size=(300, 200)) -> tuple[Image.Image, np.ndarray, tuple[float, float]]:
    """A noisy picture with one shape among distractors, the shape's mask, and a point on it."""
    outline = Image.new("L", size)
    draw = ImageDraw.Draw(outline)
    if kind == "ring":
        draw.ellipse((40, 40, 140, 140), fill=255)
        draw.ellipse((65, 65, 115, 115), fill=0)
        point = (52.0, 90.0)
    elif kind == "triangle":
        draw.polygon([(40, 150), (150, 150), (95, 40)], fill=255)
        point = (95.0, 110.0)
    else:
        draw.polygon([(95 + r * math.cos(a), 95 + r * math.sin(a)) for r, a in _star()], fill=255)
        point = (95.0, 95.0)
    mask = np.array(outline) > 0
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 3))
    pixels = np.full((size[1], size[0], 3), (120.0, 125.0, 110.0)) + np.linspace(-15, 15, size[0])[None, :, None]
    pixels[20:70, 200:280] = (50, 80, 210)
    pixels[120:180, 190:240] = (220, 60, 50)
    pixels[mask] = (220, 60, 50)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)), mask, point


def _star():
    return [(55 if corner % 2 == 0 else 24, corner * math.pi / 5) for corner in range(10)]


def striped(size=(300, 200)) -> tuple[Image.Image, np.ndarray, tuple[float, float]]:
    image, mask, point = drawn("triangle", size)
    pixels = np.array(image)
    stripes = (np.add.outer(np.arange(size[1]), np.arange(size[0])) // 5) % 2 == 0
    pixels[mask & stripes] = (245, 190, 180)
    return Image.fromarray(pixels), mask, point


@pytest.fixture(scope="module")
def grabcut():
    return load_segmenter("grabcut")


@pytest.mark.parametrize("kind", ["ring", "triangle", "star"])
def test_grabcut_finds_a_plain_shape_from_one_click(grabcut, kind):
    image, mask, point = drawn(kind)
    best = grabcut.open(image).segment([point], [True])[0]
    assert best.mask.shape == mask.shape and best.mask.dtype == bool
    assert iou(best.mask, mask) > 0.95
    assert 0 < best.score <= 1


def test_grabcut_finds_a_striped_shape_whole(grabcut):
    image, mask, point = striped()
    assert iou(grabcut.open(image).segment([point], [True])[0].mask, mask) > 0.9


def test_grabcut_finds_a_small_object_in_a_large_picture(grabcut):
    pixels = np.random.default_rng(1).normal((90, 140, 90), 5, (1200, 1600, 3))
    mask = np.zeros((1200, 1600), bool)
    mask[700:724, 1300:1330] = True
    pixels[mask] = (230, 200, 40)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    assert iou(grabcut.open(image).segment([(1315.0, 712.0)], [True])[0].mask, mask) > 0.85


def test_grabcut_is_deterministic_and_candidates_differ(grabcut):
    image, _, point = striped()
    first, second = (grabcut.open(image).segment([point], [True]) for _ in range(2))
    assert [candidate.score for candidate in first] == [candidate.score for candidate in second]
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(first, second, strict=True))
    assert [candidate.score for candidate in first] == sorted((c.score for c in first), reverse=True)
    assert all(candidate.mask.any() for candidate in first)


def test_grabcut_uses_every_point_and_keeps_off_negative_ones(grabcut):
    image, _, _ = drawn("star")
    opened = grabcut.open(image)
    both = opened.segment([(95.0, 95.0), (215.0, 150.0)], [True, True])[0].mask
    assert both[95, 95] and both[150, 215]
    without = opened.segment([(215.0, 150.0), (95.0, 95.0)], [True, False])[0].mask
    assert without[150, 215] and not without[95, 95]


def test_grabcut_cuts_the_object_out_of_a_box(grabcut):
    image, mask, _ = drawn("star")
    best = grabcut.open(image).segment([], [], box=(30, 30, 160, 160))[0].mask
    assert iou(best, mask) > 0.95
    assert not best[:, 162:].any()


@pytest.mark.parametrize("colour", [0, 128])
def test_grabcut_answers_on_a_picture_without_any_edge(grabcut, colour):
    opened = grabcut.open(Image.new("RGB", (64, 48), (colour,) * 3))
    assert all(candidate.mask[24, 32] for candidate in opened.segment([(32.0, 24.0)], [True]))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3)])
def test_grabcut_answers_on_the_smallest_pictures(grabcut, size):
    opened = grabcut.open(Image.new("RGB", size, (10, 20, 30)))
    assert opened.segment([(0.0, 0.0)], [True])[0].mask.shape == (size[1], size[0])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (([(300.0, 5.0)], [True], None), r"point \(300, 5\) lies outside the picture of 300x200"),
        (([(5.0, 5.0)], [False], None), "no point on the object"),
        (([], [], None), "no point on the object"),
        (([(5.0, 5.0)], [], None), "1 points, 0 labels"),
        (([], [], (10, 10, 10, 50)), "box .* does not fit"),
    ],
)
def test_unusable_prompts_are_named(grabcut, prompts, message):
    with pytest.raises(ValueError, match=message):
        grabcut.open(drawn("star")[0]).segment(*prompts)


def tiny_sam(seed=0) -> Sam:
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=256,
            patch_size=16,
            embed_dim=64,
            depth=3,
            num_heads=4,
            out_chans=32,
            use_rel_pos=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=7,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=8
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=48),
            iou_head_hidden_dim=24,
        ),
    ).eval()


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
    from segment_anything import SamPredictor

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
    with pytest.raises(ValueError, match="needs a checkpoint"):
        load_segmenter("sam")
    with pytest.raises(ValueError, match="takes no checkpoint"):
        load_segmenter("grabcut:x")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of Segment Anything at .*none\.pth"):
        load_segmenter(f"sam:{tmp_path}/none.pth")
