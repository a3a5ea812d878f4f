"""Liger's fused kernels for the language model, where they are asked for and installed."""

from __future__ import annotations

from importlib.util import find_spec

from osprey_tp.language_models import is_plain
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.training.arguments import RunSettings
from osprey_tp.training.trainer_arguments import uses_cpu


def require_liger(settings: RunSettings) -> None:
    """Refuse kernels that cannot run here; call it before the model is loaded.

    Raises:
        ValueError: naming what is missing.
    """
    if not settings.liger:
        return
    if uses_cpu(settings):
        raise ValueError("liger=true needs a GPU; leave liger out on a CPU")
    if find_spec("liger_kernel") is None:
        raise ValueError("liger=true needs the package liger-kernel; pip install 'osprey_tp[liger]', or leave it out")


def apply_liger(model: OspreyTPForConditionalGeneration) -> None:
    """Let the language model compute with Liger's kernels, and training its loss without the logits of all tokens.

    Raises:
        ValueError: for a language model that Liger has no kernels for.
    """
    from liger_kernel.transformers.model.loss_utils import LigerForCausalLMLoss
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    language_model = model.model.language_model
    family = language_model.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"Liger has no kernels for language models of the type {family}; leave liger out")
    _apply_liger_kernel_to_instance(language_model, cross_entropy=False, fused_linear_cross_entropy=False)
    model.fused_loss = LigerForCausalLMLoss if is_plain(model.lm_head) else None
