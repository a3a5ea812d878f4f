"""What the model asks of a language model: any causal decoder of transformers that reads embedded prompts.

The model runs the decoder (`model.language_model`) on prompts that it embeds itself, and the head (`lm_head`) on what
comes out. Most families do nothing else; what some do beside it is known here:

| family                       | beside decoder and head                                        |
|------------------------------|----------------------------------------------------------------|
| Gemma 2, VaultGemma, ...     | logits end in a soft cap, `final_logit_softcapping`            |
| Cohere, Granite              | logits are scaled, `logit_scale` and `logits_scaling`          |
| Phi, GPT-J, CodeGen, PhiMoE  | the head has a bias                                            |
| GPT-2, GPT-NeoX, OPT, ...    | the word embeddings, to which a head may be tied, have a name of their own |

`OspreyTPForConditionalGeneration.from_parts` compares the logits of a few words with the family's own and refuses what
differs, so that nothing is missed in silence.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

FIT = "choose a decoder with attention in all layers, such as llama, mistral, qwen3, gemma3_text, phi3 or gpt_neox"

_HEADS_WITH_BIAS = {"codegen", "ctrl", "gptj", "phi"}
"""Families whose head has a bias without saying so in their configuration."""

_FULL_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class LogitRule:
    """What a family does to its logits.

    Attributes:
        factor: They are multiplied by it.
        divisor: They are divided by it.
        cap: They become cap·tanh(logits / cap); None for no cap.
    """

    factor: float = 1.0
    divisor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> LogitRule:
        """The rule of a language model's configuration."""
        scales = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling"))
        factor, divisor = (1.0 if scale is None else scale for scale in scales)
        return cls(factor, divisor, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply it to logits (..., V)."""
        if self.factor != 1:
            logits = logits * self.factor
        if self.divisor != 1:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class RuledHead(nn.Linear):
    """A head whose logits follow a rule; its weights have the names of a plain head's."""

    rule = LogitRule()

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D)."""
        return self.rule(super().forward(states))


def build_head(config: PreTrainedConfig) -> nn.Linear:
    """A new head for a language model's configuration."""
    bias = config.model_type in _HEADS_WITH_BIAS or bool(getattr(config, "lm_head_bias", False))
    return with_rule(nn.Linear(config.hidden_size, config.vocab_size, bias=bias), config)


def with_rule(head: nn.Linear, config: PreTrainedConfig) -> nn.Linear:
    """The same weights behind the rule of the family, if it has one."""
    rule = LogitRule.of(config)
    if rule == LogitRule():
        return head
    with torch.device("meta"):
        ruled = RuledHead(head.in_features, head.out_features, bias=head.bias is not None)
    ruled.weight, ruled.bias, ruled.rule = head.weight, head.bias, rule
    return ruled.train(head.training)


def head_of(language_model: PreTrainedModel, expected: nn.Linear) -> nn.Linear:
    """The head of a causal language model.

    Args:
        language_model: Of transformers.
        expected: The head that would be built for it (`build_head`).

    Raises:
        ValueError: if it is no such head.
    """
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or (head.bias is None) != (expected.bias is None):
        raise ValueError(
            f"language models of the type {language_model.config.model_type} have a head that is not known here "
            f"({head}); {FIT}"
        )
    return head


def is_plain(head: nn.Module) -> bool:
    """Whether logits are states times weights and nothing else, as fused losses compute them."""
    return type(head) is nn.Linear and head.bias is None


def decoder_of(language_model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The decoder that a causal language model, or one with pictures of its own, runs.

    Args:
        language_model: Of transformers.
        config: That of its text part.

    Raises:
        ValueError: if there is none to be found.
    """
    if type(config) in AutoModel._model_mapping:
        kind: Any = AutoModel._model_mapping[type(config)]
        base: Any = language_model.base_model
        for found in (base, getattr(base, "language_model", None), getattr(language_model, "model", None)):
            if isinstance(found, kind):
                return found
    raise ValueError(
        f"a {type(language_model).__name__} has no decoder apart from its head, so prompts cannot be embedded for it; "
        f"{FIT}"
    )


def require_fit(decoder: PreTrainedModel) -> None:
    """Raise ValueError for a decoder that cannot read embedded prompts, or keeps more than keys and values."""
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ()) - _FULL_ATTENTION
    embeddings: Any = decoder.get_input_embeddings()
    width = getattr(embeddings, "embedding_dim", config.hidden_size)
    reason = None
    if getattr(config, "is_encoder_decoder", False):
        reason = "have an encoder of their own"
    elif getattr(decoder, "_is_stateful", False) or kinds:
        reason = "keep a running state in some layers, which questions about one picture cannot share"
    elif not {"inputs_embeds", "past_key_values"} <= inspect.signature(decoder.forward).parameters.keys():
        reason = "do not read embedded prompts, or keep no keys and values"
    elif width != config.hidden_size:
        reason = f"embed words in {width} channels and compute in {config.hidden_size}"
    if reason is not None:
        raise ValueError(f"language models of the type {config.model_type} {reason}; {FIT}")


def tied_weights(decoder: PreTrainedModel, prefix: str) -> dict[str, str]:
    """Which weight of the head is which of the decoder where they are tied, as transformers wants it told."""
    embeddings = decoder.get_input_embeddings()
    name = next(name for name, module in decoder.named_modules() if module is embeddings)
    return {"lm_head.weight": f"{prefix}{name}.weight"}
