"""Tiny random towers and language models of many families of transformers, and whole models made of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.configuration import TINY_TEXT, TINY_VISION
from osprey_tp.processing import add_region_tokens

from .tiny_models import llama_tokenizer

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
}
_DINO = _TOWER | {"mlp_ratio": 2}

TOWERS: dict[str, dict[str, Any]] = {
    "clip": TINY_VISION["clip"],
    "siglip": TINY_VISION["siglip"],
    "siglip whose patches leave a rest": TINY_VISION["siglip"] | {"image_size": 54},
    "siglip of small patches": TINY_VISION["siglip"] | {"image_size": 32, "patch_size": 4},
    "dinov2": {"model_type": "dinov2"} | _DINO,
    "dinov2 with registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 4} | _DINO,
    "dinov3": {"model_type": "dinov3_vit", "num_register_tokens": 4} | _TOWER,
    "vit": {"model_type": "vit"} | _TOWER,
    "aimv2": {"model_type": "aimv2_vision_model"} | _TOWER,
}

_DECODER = {
    "vocab_size": 560,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NARROW = {"head_dim": 16} | _DECODER

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": TINY_TEXT["llama"] | _DECODER,
    "qwen3, tied": TINY_TEXT["qwen3"] | _NARROW | {"tie_word_embeddings": True},
    "mistral, sliding window": {"model_type": "mistral", "sliding_window": 64} | _NARROW,
    "gemma2": {"model_type": "gemma2", "final_logit_softcapping": 2.0, "sliding_window": 64} | _NARROW,
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 64, "num_hidden_layers": 6} | _NARROW,
    "phi3": {"model_type": "phi3"} | _DECODER,
    "phi": {"model_type": "phi"} | _DECODER,
    "gpt_neox, tied": {"model_type": "gpt_neox", "tie_word_embeddings": True} | _DECODER,
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    | {name: _DECODER[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "embedding_multiplier": 2.0} | _DECODER,
    "cohere": {"model_type": "cohere"} | _DECODER,
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64} | _DECODER,
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None} | _DECODER,
}


def make(loader: Any, settings: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A random model; weights are spread so that what comes out depends on what goes in."""
    torch.manual_seed(seed)
    model = loader.from_config(AutoConfig.for_model(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def join(tower: PreTrainedModel, language_model: PreTrainedModel, **choices: Any) -> RegionDescriber:
    """The whole model as `from_parts` makes it, with a tokenizer that has more words than the language model."""
    tokenizer = llama_tokenizer()
    tokens = add_region_tokens(tokenizer, choices.get("preset", "recommended"))
    torch.manual_seed(1)
    model = OspreyTPForConditionalGeneration.from_parts(
        tower, language_model, **({"feature_layers": [1, 2, 3]} | tokens | choices)
    ).eval()
    with torch.no_grad():
        for parameter in (*model.model.projector.parameters(), *model.model.region_encoder.parameters()):
            if parameter.ndim > 1:
                parameter.mul_(16)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return RegionDescriber(model, OspreyTPProcessor.from_config(model.config, tokenizer))


def tower(name: str) -> PreTrainedModel:
    return make(AutoModel, TOWERS[name])


def language_model(name: str) -> PreTrainedModel:
    return make(AutoModelForCausalLM, LANGUAGE_MODELS[name])
