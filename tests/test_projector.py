"""The projector against the published code's outputs, and against what its figure says."""

import numpy as np
import pytest
import torch

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.conversion import PUBLISHED_PROJECTOR_PREFIX, projector_from_published
from osprey_tp.projector import build_projector

from .golden_recipe import GOLDEN, load_json, normal, param

CASES = load_json("c_tokenpacker.json")
OUTPUTS = np.load(GOLDEN / "c_tokenpacker.npz")
LEVELS = (12, 16, 22, 23)


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


@torch.no_grad()
def test_tiles_do_not_mix():
    projector = build_projector(OspreyTPConfig.tiny()).eval()
    features = torch.randn(3, 5, 36, 32)
    together = projector(features)
    alone = torch.cat([projector(features[:, [tile]]) for tile in range(5)])
    torch.testing.assert_close(together, alone)


def test_output_norm_starts_at_its_scale():
    config = OspreyTPConfig.tiny(output_norm_scale=0.15)
    tokens = build_projector(config)(torch.randn(3, 2, 36, 32))
    assert tokens.square().mean().sqrt().item() == pytest.approx(0.15, rel=0.05)


def test_a_name_no_projector_has_is_refused():
    with pytest.raises(KeyError, match=r"mm_projector\.readout\.weight is not a weight"):
        projector_from_published({"readout.weight": torch.zeros(1)})
