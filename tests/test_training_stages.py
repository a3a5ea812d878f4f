"""What trains, what is frozen, and that a frozen tower stays as it is."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from osprey_tp import OspreyTPForConditionalGeneration
from osprey_tp.tiny_tower import TinyTowerConfig, TinyTowerModel
from osprey_tp.training.stages import (
    PARTS,
    STAGES,
    apply_stage,
    format_table,
    keep_frozen_tower_in_evaluation_mode,
    parameters_of,
)

from .tiny_models import tiny_model

TRAINED = {1: {"projector"}, 2: {"region_encoder"}, 3: {"projector", "region_encoder", "language_model", "lm_head"}}


@pytest.mark.parametrize("number", sorted(TRAINED))
def test_a_stage_trains_its_parts_and_nothing_else(number: int) -> None:
    model, _ = tiny_model()
    table = apply_stage(model, STAGES[number])
    assert {row.part for row in table if row.trainable} == TRAINED[number]
    for name, parameter in model.named_parameters():
        part = "lm_head" if name == "lm_head.weight" else name.split(".")[1]
        assert parameter.requires_grad == (part in TRAINED[number]), name


def test_the_table_counts_every_parameter_once() -> None:
    model, _ = tiny_model()
    table = apply_stage(model, STAGES[3])
    assert [row.part for row in table] == [*PARTS, "lm_head"]
    assert sum(row.parameters for row in table) == sum(p.numel() for p in model.parameters())
    text = format_table(table)
    assert len(text.splitlines()) == 6
    assert "vision_tower" in text and "2e-05" in text and "float32" in text


def test_a_tied_head_counts_once() -> None:
    model, _ = tiny_model()
    model.lm_head.weight = model.get_input_embeddings().weight
    counted = sum(p.numel() for p in parameters_of(model, "language_model"))
    assert counted == sum(p.numel() for p in model.model.language_model.parameters())
    table = apply_stage(model, STAGES[3])
    assert sum(row.parameters for row in table) == sum(p.numel() for p in model.parameters())
    assert (table[-1].part, table[-1].parameters) == ("lm_head", 0)
    assert "lm_head                     tied" in format_table(table)


def test_a_part_that_no_stage_knows_is_refused() -> None:
    model, _ = tiny_model()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 parameters belong to none of the parts .*, among them extra.weight"):
        apply_stage(model, STAGES[1])


@pytest.mark.parametrize("frozen", [True, False])
def test_only_a_frozen_tower_leaves_training_mode(frozen: bool) -> None:
    language_model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    tower = TinyTowerModel(TinyTowerConfig(image_size=32, hidden_size=32, num_hidden_layers=2))
    model = OspreyTPForConditionalGeneration.from_parts(
        tower,
        language_model,
        feature_layers=[1, 2],
        tile_separator_token_id=5,
        row_separator_token_id=6,
        region_token_id=7,
        image_token_id=8,
    )
    apply_stage(model, STAGES[3])
    tower.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in tower.named_buffers()}
    model.train()
    keep_frozen_tower_in_evaluation_mode(model)
    model.model.encode_tiles(torch.randn(4, 3, 32, 32))
    unchanged = all(torch.equal(before[name], value) for name, value in tower.named_buffers())
    assert before
    assert unchanged == frozen
