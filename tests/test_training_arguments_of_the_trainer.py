"""What transformers' Trainer is given: number formats, optimiser, kernels; and what is refused before a model loads."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from osprey_tp.training import liger, trainer_arguments
from osprey_tp.training.arguments import RunSettings, load_settings
from osprey_tp.training.trainer import checkpoint_activations
from osprey_tp.training.trainer_arguments import (
    cast_frozen,
    optimizer_name,
    precision_arguments,
    require_attention,
    training_arguments,
)

from .test_ablations import conversation
from .test_sessions import random_picture
from .tiny_models import tiny_model

ZERO = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "deepspeed"


def settings(*more: str) -> RunSettings:
    return load_settings(None, ["stage=2", "model=m", "data=d", "output=o", "device=cpu", *more])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU that has bfloat16 and TF32."""
    monkeypatch.setattr(trainer_arguments, "uses_cpu", lambda settings: False)
    monkeypatch.setattr(liger, "uses_cpu", lambda settings: False)
    monkeypatch.setattr(trainer_arguments, "is_torch_tf32_available", lambda: True)


def test_settings_reach_the_trainer(tmp_path: Path) -> None:
    arguments = training_arguments(
        settings("precision=bf16", "max_gradient_norm=0.5", "torch_compile=true", "tf32=true", "batch_size=3"), tmp_path
    )
    assert (arguments.bf16, arguments.fp16, arguments.tf32) == (True, False, False)
    assert (arguments.max_grad_norm, arguments.torch_compile, arguments.train_batch_size) == (0.5, True, 3)
    assert arguments.optim == "adamw_torch"
    assert arguments.device == torch.device("cpu")
    assert not training_arguments(settings("precision=fp32"), tmp_path).bf16


@pytest.mark.parametrize(("precision", "formats"), [("bf16", (1, 0)), ("fp16", (0, 1)), ("fp32", (0, 0))])
def test_number_formats_agree(gpu: None, precision: str, formats: tuple[int, int]) -> None:
    found = precision_arguments(settings(f"precision={precision}", "tf32=true"))
    assert (found["bf16"], found["fp16"], found["tf32"], found["deepspeed"]) == (*map(bool, formats), True, None)
    assert precision_arguments(settings(f"precision={precision}"))["tf32"] is False


def test_the_optimiser_suits_the_place_of_its_state(gpu: None) -> None:
    names = {
        file.name: optimizer_name(settings(f"deepspeed={file}")) for file in ZERO.iterdir() if file.suffix == ".json"
    }
    assert names == {
        "zero2.json": "adamw_torch",
        "zero3.json": "adamw_torch",
        "zero3_offload.json": "adamw_torch_fused",
    }
    assert optimizer_name(settings()) == "adamw_torch_fused"


@pytest.mark.parametrize("file", sorted(ZERO.glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_files_leave_to_the_settings_what_those_say(file: Path) -> None:
    content = json.loads(file.read_text())
    said = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert all(content[name] == "auto" for name in said)
    assert content["bf16"]["enabled"] == content["fp16"]["enabled"] == "auto"
    assert content["zero_optimization"]["stage"] == int(file.stem[4])
    assert "optimizer" not in content and "scheduler" not in content


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("precision=fp16", "precision=fp16 needs a GPU; on a CPU take precision=bf16 or precision=fp32"),
        ("deepspeed=zero4.json", "there is no DeepSpeed file zero4.json; scripts/configs/deepspeed holds zero2.json"),
        (f"deepspeed={ZERO}/zero2.json", f"deepspeed={ZERO}/zero2.json needs a launcher: LAUNCHER=deepspeed PROCESSES"),
    ],
)
def test_what_cannot_run_is_one_line(more: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises((ValueError, OSError)) as caught:
        training_arguments(settings(more), tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_deepspeed_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"zero\.json (is no JSON|must hold a JSON object)"):
        precision_arguments(settings(f"deepspeed={file}"))


def test_attention_that_is_not_there_is_refused(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sdpa", "eager"):
        require_attention(settings(f"attention={name}"))
    monkeypatch.setattr(trainer_arguments, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs the package flash-attn; pip install 'osprey_tp\[flash\]', or take"):
        require_attention(settings("attention=flash_attention_2"))
    with pytest.raises(ValueError, match="needs a GPU and precision=bf16 or precision=fp16; take attention=sdpa"):
        require_attention(settings("attention=flash_attention_2", "precision=fp32"))
    monkeypatch.setattr(trainer_arguments, "is_flash_attn_2_available", lambda: True)
    require_attention(settings("attention=flash_attention_2"))


def taught_batch(processor) -> dict:
    image, masks = random_picture(0)
    return dict(processor.prepare([conversation(image, masks[:1], "A cat.")], return_labels=True))


def test_frozen_weights_in_bfloat16_train_the_rest_in_float32() -> None:
    model, processor = tiny_model()
    batch = taught_batch(processor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("region_encoder" in name)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).loss.item()
    cast_frozen(model, settings())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    cast_frozen(model, settings("frozen_precision=bf16"))
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} <= {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.02)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.model.region_encoder.parameters())
    with pytest.raises(ValueError, match="frozen_precision=bf16 goes with precision=bf16, not fp32"):
        settings("frozen_precision=bf16", "precision=fp32")


def test_recomputed_activations_give_gradients_below_frozen_embeddings() -> None:
    model, processor = tiny_model()
    batch = taught_batch(processor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("region_encoder" in name)
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    plain = gradients()
    checkpoint_activations(model)
    calls = []
    layer = model.model.language_model.layers[0]
    forward = type(layer.mlp).forward
    layer.mlp.forward = lambda states: calls.append(torch.is_grad_enabled()) or forward(layer.mlp, states)
    torch.testing.assert_close(gradients(), plain)
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert all(p.grad is None for p in model.model.language_model.parameters())


@pytest.fixture
def fake_liger(monkeypatch: pytest.MonkeyPatch) -> list:
    """Modules in the place of liger-kernel 0.8.5: the same names and signatures, computed by torch."""
    applied: list = []

    def loss(hidden_states, lm_head_weight, labels, hidden_size, num_items_in_batch=None, ignore_index=-100, **kwargs):
        labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:].reshape(-1)
        logits = hidden_states.reshape(-1, hidden_size) @ lm_head_weight.T
        total = torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels != ignore_index).sum())

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.model")
    modules = {name: ModuleType(name) for name in (*names, f"{names[2]}.loss_utils", f"{names[1]}.monkey_patch")}
    modules[f"{names[2]}.loss_utils"].LigerForCausalLMLoss = loss
    patch = modules[f"{names[1]}.monkey_patch"]
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    patch._apply_liger_kernel_to_instance = lambda model, **kwargs: applied.append((model, kwargs))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return applied


def test_fused_loss_equals_the_plain_one_and_makes_no_logits(fake_liger: list) -> None:
    model, processor = tiny_model()
    batch, items = taught_batch(processor), torch.tensor(31)
    model.train()
    plain = [model(**batch).loss, model(**batch, num_items_in_batch=items).loss]
    liger.apply_liger(model)
    ((patched, choices),) = fake_liger
    assert patched is model.model.language_model
    assert choices == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    fused = [model(**batch), model(**batch, num_items_in_batch=items)]
    torch.testing.assert_close([output.loss for output in fused], plain)
    assert all(output.logits is None for output in fused)
    assert model.eval()(**batch).logits is not None
    with pytest.raises(ValueError, match="Liger has no kernels for language models of the type qwen3; leave liger out"):
        liger.apply_liger(tiny_model(language="qwen3")[0])


def test_liger_that_is_not_there_is_refused(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    liger.require_liger(settings())
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package liger-kernel; pip install 'osprey_tp\[liger\]', or leave"):
        liger.require_liger(settings("liger=true"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="liger=true needs a GPU; leave liger out on a CPU"):
        liger.require_liger(settings("liger=true"))
