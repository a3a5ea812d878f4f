"""The projectors against published code's outputs or transformers' own, and against what their figures say."""

import numpy as np
import pytest
import torch
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.conversion import PUBLISHED_PROJECTOR_PREFIX, projector_from_published
from osprey_tp.projectors import PROJECTORS, build_projector

from .golden_recipe import GOLDEN, load_json, normal, param

CASES = load_json("c_tokenpacker.json")
OUTPUTS = np.load(GOLDEN / "c_tokenpacker.npz")
LEVELS = (12, 16, 22, 23)

STF = load_json("h_llava_stf.json")
STF_OUTPUTS = np.load(GOLDEN / "h_llava_stf.npz")
STF_PREFIXES = {"model.mm_projector_crosslayer.": "fusion.", "model.mm_projector.": "mlp."}

every_projector = pytest.mark.parametrize("name", list(PROJECTORS))


def published_projector(scale_factor: int, hidden_size: int) -> torch.nn.Module:
    config = OspreyTPConfig.vicuna_7b(scale_factor=scale_factor)
    config.text_config.hidden_size = hidden_size
    shapes = dict(CASES["state_dict_h4096"])
    for name, shape in (("mlp.0.weight", [hidden_size, 1024]), ("mlp.2.weight", [hidden_size, hidden_size])):
        shapes[PUBLISHED_PROJECTOR_PREFIX + name] = shape
    for name in ("mlp.0.bias", "mlp.2.bias"):
        shapes[PUBLISHED_PROJECTOR_PREFIX + name] = [hidden_size]
    weights = {
        name.removeprefix(PUBLISHED_PROJECTOR_PREFIX): torch.from_numpy(param(name, tuple(shape)))
        for name, shape in shapes.items()
    }
    projector = build_projector(config)
    projector.load_state_dict(projector_from_published(weights))
    return projector.eval()


@pytest.mark.parametrize("name", list(CASES["cases"]))
@torch.no_grad()
def test_equals_the_published_projector(name):
    hidden_size, scale_factor = (int(part[1:]) for part in name.split("_")[:2])
    projector = published_projector(scale_factor, hidden_size)
    features = torch.stack([torch.from_numpy(normal(f"c.feat.level{level}", (2, 576, 1024))) for level in LEVELS])
    if name.endswith("other_single"):
        single = torch.from_numpy(normal("c.feat.single_other", (2, 576, 1024)))
        output = project_with_other_query(projector, features, single)
    else:
        output = projector(features)
    case = CASES["cases"][name]
    assert list(output.shape) == case["out_shape"]
    np.testing.assert_allclose(output[:, ::7, :64].numpy(), OUTPUTS[f"{name}_out"], atol=2e-5, rtol=0)
    mean, deviation = case["stats_mean_std_sum_absmean_min_max"][:2]
    assert output.double().mean().item() == pytest.approx(mean, abs=2e-5)
    assert output.double().std(correction=0).item() == pytest.approx(deviation, abs=2e-5)


def project_with_other_query(projector: torch.nn.Module, features: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
    """The published forward takes the query's level apart from the others; only this golden case makes use of it."""
    keys, values = (
        branch(features.permute(1, 2, 0, 3).flatten(2)) for branch in (projector.fine_key, projector.fine_value)
    )
    queries = projector.query_norm(projector.coarse_query(projector._coarse_cells(single)))
    attended = projector.attention(
        queries.flatten(0, 1),
        projector._blocks(projector.key_norm(keys)),
        projector._blocks(projector.value_norm(values)),
    )
    return projector.mlp(attended).unflatten(0, (2, -1))


@torch.no_grad()
def test_a_query_sees_its_own_block_of_fine_cells_and_no_other():
    config = OspreyTPConfig.tiny(scale_factor=3)
    projector = build_projector(config).eval()
    side = config.tiling.cells_per_side
    features = torch.randn(3, 1, side * side, config.vision_config.hidden_size)
    changed = features.clone()
    changed[0, 0, 4 * side + 1] += 1  # cell (4, 1) of a level that is not the query's: block (1, 0) of 2 x 2
    difference = (projector(changed) - projector(features)).abs().sum(-1)[0]
    assert difference[2] > 0
    assert difference[[0, 1, 3]].max() == 0


@pytest.mark.parametrize(("name", "tolerance"), [("small", 2e-5), ("published", 1e-3)])
@torch.no_grad()
def test_equals_the_published_token_fusion(name, tolerance):
    case = STF["cases"][name]
    config = OspreyTPConfig.vicuna_7b(projector_type="stf")
    assert config.feature_layers == STF["level_order"]
    config.vision_config.hidden_size, config.text_config.hidden_size = case["mm_hidden_size"], case["hidden_size"]
    with torch.device("meta"):
        projector = build_projector(config)
    weights = {}
    for published, shape in case["state_dict"].items():
        prefix = max((prefix for prefix in STF_PREFIXES if published.startswith(prefix)), key=len)
        weights[published.replace(prefix, STF_PREFIXES[prefix])] = torch.from_numpy(param(published, tuple(shape)))
    projector.load_state_dict(weights, assign=True)
    shape = (case["batch"], 576, case["mm_hidden_size"])
    features = torch.stack(
        [torch.from_numpy(normal(f"h.{name}.feat.level{level}", shape)) for level in STF["level_order"]]
    )
    fused = projector.fusion(features.permute(1, 2, 0, 3).flatten(2))
    merged, output = projector._merge(fused), projector(features)
    assert list(output.shape) == case["out_shape"]
    for found, kind, step in ((fused, "fused", 29), (merged, "merged", 7), (output, "out", 7)):
        expected = STF_OUTPUTS[f"{name}_{kind}"]
        np.testing.assert_allclose(found[:, ::step, :64].numpy(), expected, atol=tolerance, rtol=0)
        mean, deviation = case[f"{kind}_stats"][:2]
        assert found.double().mean().item() == pytest.approx(mean, abs=tolerance)
        assert found.double().std(correction=0).item() == pytest.approx(deviation, abs=tolerance)


@torch.no_grad()
def test_equals_the_projector_of_llava_in_transformers():
    config = OspreyTPConfig.tiny(projector_type="mlp", projector_feature_layers=[2])
    reference = LlavaMultiModalProjector(
        LlavaConfig(vision_config=config.vision_config, text_config=config.text_config)
    )
    projector = build_projector(config)
    names = {"linear_1": "mlp.0", "linear_2": "mlp.2"}
    state = reference.state_dict()
    projector.load_state_dict(
        {name.replace(old, new): state[name] for name in state for old, new in names.items() if old in name}
    )
    features = torch.randn(3, 5, 36, 32)
    torch.testing.assert_close(projector(features), reference(features[1]))


@every_projector
@torch.no_grad()
def test_tiles_do_not_mix_and_tokens_are_those_of_the_tiling(name):
    config = OspreyTPConfig.tiny(projector_type=name, projector_feature_layers=[3])
    projector = build_projector(config).eval()
    features = torch.randn(3, 5, 36, 32)
    together = projector(features)
    assert together.shape == (5, config.tiling.tokens_per_tile, 64)
    alone = torch.cat([projector(features[:, [tile]]) for tile in range(5)])
    torch.testing.assert_close(together, alone)
    of_unread = features * torch.tensor([9, 9, 1])[:, None, None, None]
    torch.testing.assert_close(projector(of_unread), together)


@every_projector
def test_output_norm_starts_at_its_scale(name):
    config = OspreyTPConfig.tiny(projector_type=name, output_norm_scale=0.15)
    tokens = build_projector(config)(torch.randn(3, 2, 36, 32))
    assert tokens.square().mean().sqrt().item() == pytest.approx(0.15, rel=0.05)


def test_a_name_no_projector_has_is_refused():
    with pytest.raises(KeyError, match=r"mm_projector\.readout\.weight is not a weight"):
        projector_from_published({"readout.weight": torch.zeros(1)})
