"""Estimates of memory and FLOPs, against real models, torch's own counters and DeepSpeed's own estimates."""

import math
from collections.abc import Iterator

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs, model_to_params
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration
from osprey_tp.training.adapters import AdapterSettings
from osprey_tp.training.estimation import (
    SHARDINGS,
    Distribution,
    ModelSize,
    SampleShape,
    largest_grid,
    longest_batch,
    optimizer_steps,
    plan_of_grid,
    state_memory,
    typical_batch,
)
from osprey_tp.training.estimation_rehearsal import Precision, Rehearsal, batch_inputs
from osprey_tp.training.stages import STAGES, apply_stage, keep_frozen_tower_in_evaluation_mode
from osprey_tp.training.trainer import checkpoint_activations
from scripts.benchmark.measuring import flop_counter

from .tiny_models import tiny_model

FLOAT32 = Precision.of_trainer("fp32")
BFLOAT16 = Precision.of_deepspeed("bf16")


def conversation(height: int, width: int, regions: int, answer: str) -> list[dict]:
    picture = {
        "type": "image",
        "image": Image.new("RGB", (width, height)),
        "regions": [{"box": [0, 0, 9, 9]}] * regions,
    }
    asked = {"type": "text", "text": "What are " + " and ".join(["<mask>"] * regions) + "?"}
    return [{"role": "user", "content": [picture, asked]}, {"role": "assistant", "content": answer}]


def real_batch(tower: str, language: str) -> tuple[OspreyTPForConditionalGeneration, dict, list[SampleShape]]:
    """A model, a batch that the processor made of two conversations, and what their shapes are."""
    model, processor = tiny_model(tower, language)
    conversations = [conversation(96, 144, 2, "a red house"), conversation(48, 48, 1, "a tree " * 20)]
    batch = dict(processor.prepare(conversations, return_labels=True))
    shapes = [
        SampleShape(tuple(grid), regions, tokens)
        for grid, regions, tokens in zip(
            batch["tile_grids"].tolist(), (2, 1), batch["attention_mask"].sum(1).tolist(), strict=True
        )
    ]
    return model, batch, shapes


def prepared(model: OspreyTPForConditionalGeneration, stage: int, checkpointing: bool) -> None:
    """As the trainer has it before a step."""
    apply_stage(model, STAGES[stage])
    if checkpointing:
        checkpoint_activations(model)
    model.train()
    keep_frozen_tower_in_evaluation_mode(model)


@pytest.mark.parametrize(
    ("tower", "language", "stage", "checkpointing"),
    [
        *(("clip", "llama", stage, checkpointing) for stage in (1, 2, 3) for checkpointing in (False, True)),
        ("siglip", "qwen3", 3, False),
    ],
)
def test_flops_are_those_that_torch_counts_in_a_real_step(
    tower: str, language: str, stage: int, checkpointing: bool
) -> None:
    model, batch, shapes = real_batch(tower, language)
    prepared(model, stage, checkpointing)
    with flop_counter() as counter:
        loss = model(**batch, use_cache=False).loss
        forward = counter.get_total_flops()
        loss.backward()
    cost = Rehearsal.of(model.config, STAGES[stage], FLOAT32).step(shapes, checkpointing=checkpointing)
    assert cost.forward_flops == pytest.approx(forward, rel=0.01)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_flops_of_7b_are_those_of_the_textbook() -> None:
    """2 FLOPs a weight and token forward, 4 backward where weights train, and 4·tokens²·width a layer of attention."""
    config = OspreyTPConfig.vicuna_7b()
    text, vision = config.text_config, config.vision_config
    tokens = 1280
    cost = Rehearsal.of(config, STAGES[3], BFLOAT16).step([SampleShape((2, 3), 4, tokens)], checkpointing=False)
    decoder = 6_738_415_616 - text.vocab_size * text.hidden_size  # without the table of words, which is looked up
    language = 2 * decoder * tokens + 4 * tokens**2 * text.hidden_size * text.num_hidden_layers
    cells, tiles = (vision.image_size // vision.patch_size) ** 2 + 1, 7
    tower = 2 * 303_507_456 * cells + 4 * cells**2 * vision.hidden_size * vision.num_hidden_layers
    assert cost.forward_flops == pytest.approx(language + tiles * tower, rel=0.02)
    assert cost.backward_flops == pytest.approx(2 * language, rel=0.03)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters_are_those_of_a_real_model(stage: int) -> None:
    model, _ = tiny_model()
    apply_stage(model, STAGES[stage])
    size = Rehearsal.of(model.config, STAGES[stage], BFLOAT16).size()
    total, largest = model_to_params(model)
    assert (size.parameters, size.largest_layer) == (total, largest)
    assert size.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_lora_adds_two_matrices_to_every_linear_layer_and_freezes_the_layers() -> None:
    config = OspreyTPConfig.tiny()
    whole = Rehearsal.of(config, STAGES[3], BFLOAT16)
    adapted = Rehearsal.of(config, STAGES[3], BFLOAT16, adapter=AdapterSettings("lora", rank=4)).size()
    text = config.text_config
    width, inner, heads = text.hidden_size, text.intermediate_size, 2 * text.hidden_size // 4
    layers = [(width, width), (width, heads), (width, heads), (width, width)]
    layers += [(width, inner), (width, inner), (inner, width)]
    adapters = text.num_hidden_layers * sum(4 * (a + b) for a, b in layers)
    parts = {part.part: part.parameters for part in whole.parts}
    assert adapted.parameters == whole.size().parameters + adapters
    assert adapted.trainable == parts["projector"] + parts["region_encoder"] + adapters
    of_queries = AdapterSettings("lora", rank=4, targets=("q_proj",))
    queries = Rehearsal.of(config, STAGES[3], BFLOAT16, adapter=of_queries).size()
    assert queries.parameters == whole.size().parameters + text.num_hidden_layers * 4 * 2 * width
    quantised = Rehearsal.of(config, STAGES[3], BFLOAT16, adapter=AdapterSettings("qlora")).size(quantised=True)
    assert quantised.quantised == text.num_hidden_layers * sum(a * b for a, b in layers)


@pytest.fixture(scope="module")
def wide() -> OspreyTPForConditionalGeneration:
    """Wide and deep enough that what scratch memory kernels of the CPU take does not matter."""
    config = OspreyTPConfig.tiny()
    config.text_config.num_hidden_layers = 6
    config.text_config.hidden_size, config.text_config.intermediate_size = 128, 384
    config.text_config.head_dim = 32
    torch.manual_seed(0)
    return OspreyTPForConditionalGeneration(config)


def allocations(run: profile) -> Iterator[int]:
    """Bytes that the CPU's allocator gave (positive) and took back (negative), in their order."""
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    return (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_peak_of_activations_is_what_the_allocator_sees(
    wide: OspreyTPForConditionalGeneration, stage: int, checkpointing: bool
) -> None:
    shapes = [SampleShape((2, 3), 2, 700), SampleShape((2, 3), 2, 690)]
    expected = Rehearsal.of(wide.config, STAGES[stage], FLOAT32).step(shapes, checkpointing=checkpointing)
    model = OspreyTPForConditionalGeneration(wide.config)
    prepared(model, stage, checkpointing)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = batch_inputs(model.config, shapes)
    batch["pixel_values"] = torch.rand(batch["pixel_values"].shape)
    inputs = sum(tensor.untyped_storage().nbytes() for tensor in batch.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        model(**batch, use_cache=False).loss.backward()
    current = peak = inputs
    for size in allocations(run):
        current += size
        peak = max(peak, current)
    assert expected.peak_bytes == pytest.approx(peak, rel=0.01)


def test_checkpointing_and_autocast_change_memory_as_they_do() -> None:
    config = OspreyTPConfig.tiny()
    config.text_config.num_hidden_layers = 4
    shapes = [SampleShape((3, 3), 2, 900)] * 2
    half = Rehearsal.of(config, STAGES[3], BFLOAT16)
    kept, checkpointed = half.step(shapes, checkpointing=False), half.step(shapes, checkpointing=True)
    assert checkpointed.peak_bytes < 0.6 * kept.peak_bytes
    assert checkpointed.flops > kept.flops
    assert half.step(shapes, checkpointing=False) == kept
    mixed = Rehearsal.of(config, STAGES[3], Precision.of_trainer("bf16")).step(shapes, checkpointing=False)
    assert kept.peak_bytes < mixed.peak_bytes
    assert mixed.flops == kept.flops


def test_a_frozen_tower_keeps_nothing_for_a_backward_pass() -> None:
    model, batch, _ = real_batch("clip", "llama")
    prepared(model, 3, checkpointing=True)
    assert not model.model.encode_tiles(batch["pixel_values"]).requires_grad
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(True)
    assert model.model.encode_tiles(batch["pixel_values"]).requires_grad


@pytest.mark.parametrize("processes", [1, 8, 64])
def test_memory_of_the_state_is_that_of_deepspeed(processes: int) -> None:
    """Full fine-tuning in bf16; at stage 3 DeepSpeed's function leaves out the 16-bit gradients."""
    total, largest = 6_738_415_616, 131_072_000
    size = ModelSize(parameters=total, trainable=total, largest_layer=largest)

    def ours(sharding: str):
        return state_memory(size, sharding, processes, compute_bytes=2, frozen_bytes=2)

    gpus = {"num_gpus_per_node": processes, "num_nodes": 1}
    _, stage2 = estimate_zero2_model_states_mem_needs(total, cpu_offload=False, **gpus)
    assert ours("2").total == pytest.approx(stage2, abs=8)
    _, stage3, _ = estimate_zero3_model_states_mem_needs(
        total, largest, cpu_offload=False, cpu_offload_params=False, **gpus
    )
    assert ours("3").total - 2 * total / processes == pytest.approx(stage3, abs=8)
    host, offloaded, _ = estimate_zero3_model_states_mem_needs(total, largest, additional_buffer_factor=1.0, **gpus)
    assert ours("3 offload").total == pytest.approx(offloaded, abs=8)
    assert ours("3 offload").host * processes == pytest.approx(host, abs=64)


def test_without_deepspeed_float32_is_kept_and_ddp_copies_gradients() -> None:
    size = ModelSize(parameters=100, trainable=30, largest_layer=10)
    alone = state_memory(size, "none", 1, compute_bytes=2, frozen_bytes=2)
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * 30 + 2 * 70, 4 * 30, 8 * 30)
    assert state_memory(size, "none", 2, compute_bytes=2, frozen_bytes=2).gradients == 2 * 4 * 30


def test_four_bit_weights_take_half_a_byte_and_their_scales() -> None:
    size = ModelSize(parameters=1064, trainable=20, largest_layer=10, quantised=1024)
    memory = state_memory(size, "2", 1, compute_bytes=2, frozen_bytes=2)
    assert memory.weights == pytest.approx(2 * 40 + 512 + 16 + 1024 * 4 / (64 * 256))
    with pytest.raises(ValueError, match="ZeRO-2"):
        state_memory(size, "3", 1, compute_bytes=2, frozen_bytes=2)


def test_every_way_of_sharing_out_takes_less_on_the_gpu_than_the_one_before() -> None:
    size = ModelSize(parameters=1000, trainable=900, largest_layer=10)
    totals = [state_memory(size, sharding, 8, compute_bytes=2, frozen_bytes=4).total for sharding in SHARDINGS]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(SHARDINGS)


def test_batches_stand_for_the_data() -> None:
    shapes = [SampleShape(None, 0, tokens) for tokens in range(1, 1001)]
    assert [shape.tokens for shape in typical_batch(shapes, 3)] == [251, 501, 751]
    assert [shape.tokens for shape in typical_batch(shapes, 2, grouped=True)] == [500, 500]
    assert [shape.tokens for shape in longest_batch(shapes, 3)] == [1000, 1000, 999]
    assert longest_batch(shapes, 1) == [shapes[-1]]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, 1001, (4000, 7), generator=generator).amax(1).float().mean().item()
    assert typical_batch(shapes, 7)[-1].tokens == pytest.approx(drawn, rel=0.02)


def test_distribution_of_numbers() -> None:
    assert Distribution.of([4, 1, 3, 2]) == Distribution(mean=2.5, median=3, p95=4, maximum=4)
    assert Distribution.of(range(100)) == Distribution(mean=49.5, median=50, p95=95, maximum=99)


def test_steps_are_those_of_the_sampler() -> None:
    assert optimizer_steps(100, 8, 1.0) == 13
    assert optimizer_steps(100, 8, 2.5) == math.ceil(32.5)
    assert optimizer_steps(100, 8, 1.0, max_steps=7) == 7


def test_largest_grid_makes_most_tokens() -> None:
    tiling = OspreyTPConfig.vicuna_7b(max_tiles=16).tiling
    most = max(plan_of_grid(tiling, grid).num_visual_tokens for grid in tiling.grids)
    assert plan_of_grid(tiling, largest_grid(tiling)).num_visual_tokens == most > 16 * 144


def test_a_sample_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="20 tokens cannot hold"):
        batch_inputs(OspreyTPConfig.tiny(), [SampleShape((2, 3), 2, 20)])
