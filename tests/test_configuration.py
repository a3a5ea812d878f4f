"""The configuration: presets, published sizes, and what it refuses."""

import pytest

from osprey_tp import OspreyTPConfig, TilePlan


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("published", ("canvas", "published", "published", 0)),
        ("recommended", ("image", "antialiased", "area", 13)),
    ],
)
def test_presets_name_every_choice(preset, expected, tmp_path):
    config = OspreyTPConfig.vicuna_7b(preset=preset)
    config.save_pretrained(tmp_path)
    for of in (config, OspreyTPConfig.from_pretrained(tmp_path)):
        found = (of.thumbnail_source, of.resize_mode, of.region_pooling, of.row_separator_token_id)
        assert found == expected


def test_a_choice_wins_over_the_preset():
    assert OspreyTPConfig.vicuna_7b(preset="published", region_pooling="area").region_pooling == "area"


@pytest.mark.parametrize(
    ("grid", "tokens"), [((1, 1), 145), ((1, 2), 435), ((2, 2), 725), ((2, 3), 1015), ((3, 3), 1450)]
)
def test_visual_token_counts_are_the_published(grid, tokens):
    for config in (OspreyTPConfig.vicuna_7b(), OspreyTPConfig.vicuna_13b()):
        rows, cols = grid
        assert TilePlan(config.tiling, rows * 336, cols * 336, rows, cols).num_visual_tokens == tokens


@pytest.mark.parametrize("scale_factor", [2, 3, 4])
@pytest.mark.parametrize("max_tiles", [9, 16, 25])
def test_every_published_combination_is_valid(scale_factor, max_tiles):
    tiling = OspreyTPConfig.vicuna_7b(scale_factor=scale_factor, max_tiles=max_tiles).tiling
    assert (tiling.tokens_per_tile, tiling.max_tiles) == ((24 // scale_factor) ** 2, max_tiles)


@pytest.mark.parametrize(
    ("projector", "layers", "read", "tokens"),
    [
        ("tokenpacker", [12, 16, 22, 23], [0, 1, 2, 3], 144),
        ("stf", [23, 21, 18, 15, 12, 9, 6, 3], list(range(8)), 144),
        ("mlp", [12, 16, 22, 23], [3], 576),
    ],
)
def test_a_projector_brings_its_published_choices(projector, layers, read, tokens):
    config = OspreyTPConfig.vicuna_7b(projector_type=projector)
    assert (config.feature_layers, config.projector_levels) == (layers, read)
    assert config.region_levels == list(range(len(layers)))
    assert config.tiling.tokens_per_tile == tokens


def test_layers_may_be_counted_from_the_end():
    config = OspreyTPConfig.tiny(feature_layers=[0, -2, -1], projector_feature_layers=[-1], region_feature_layers=[3])
    assert config.feature_layers == [0, 3, 4]
    assert (config.projector_levels, config.region_levels) == ([2], [1])


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"scale_facter": 3}, TypeError, "no setting 'scale_facter'; did you mean 'scale_factor'"),
        ({"projector_type": "qformer"}, ValueError, "unknown projector 'qformer'; known: mlp, stf, tokenpacker"),
        ({"scale_factor": 5}, ValueError, "scale_factor 5 does not divide"),
        ({"max_tiles": 7}, ValueError, "max_tiles must be one of"),
        ({"feature_layers": [3, 99]}, ValueError, "must name hidden states 0 to 4"),
        ({"feature_layers": []}, ValueError, "must name hidden states 0 to 4"),
        ({"feature_layers": [-6]}, ValueError, "must name hidden states 0 to 4"),
        (
            {"projector_feature_layers": [4]},
            ValueError,
            r"projector_feature_layers \[4\] must be some of feature_layers",
        ),
        (
            {"projector_type": "mlp", "scale_factor": 2},
            ValueError,
            "the mlp projector can have scale_factor 1, not 2; s",
        ),
        (
            {"projector_type": "mlp", "projector_feature_layers": [1, 2]},
            ValueError,
            "the mlp projector reads one layer",
        ),
        ({"preset": "fancy"}, ValueError, "unknown preset 'fancy'"),
        ({"image_token_id": 7}, ValueError, "must not coincide"),
        ({"tile_separator_token_id": 9999}, ValueError, "is not a row of the embedding"),
        ({"projector_num_attention_heads": 5}, ValueError, "does not divide the vision tower's width"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(choices, error, message):
    with pytest.raises(error, match=message) as raised:
        OspreyTPConfig.tiny(**choices)
    assert "\n" not in str(raised.value)
