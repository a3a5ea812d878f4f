"""Random models for benchmarks: the proportions of the real one, small enough for two cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osprey_tp.sessions import RegionDescriber

MEDIUM_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 192,
}
MEDIUM_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
WORDS = ("person", "dining table", "wine glass", "potted plant", "teddy bear", "traffic light", "dog", "bench")


def medium_describer(seed: int = 0, **choices: Any) -> RegionDescriber:
    """A model with a 24-layer tower at 336 pixels and an 8-layer language model, random weights, pooling as published.

    Weights are spread so that greedy answers depend on the region, and no answer ends before its limit.

    Args:
        seed: Of the weights.
        choices: Fields of `OspreyTPConfig`.
    """
    import torch

    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from osprey_tp.prompts import CATEGORY_QUESTION, OVERVIEW
    from osprey_tp.sessions import RegionDescriber
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer([chat_template("vicuna_v1"), OVERVIEW, CATEGORY_QUESTION, *WORDS])
    token_ids = add_region_tokens(tokenizer)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = {**choices.pop("text_config", MEDIUM_TEXT), "vocab_size": len(tokenizer), **ends}
    defaults = {"vision_config": MEDIUM_VISION, "region_pooling": "published"}
    config = OspreyTPConfig(text_config=text_config, **(defaults | token_ids | choices))
    torch.manual_seed(seed)
    model = OspreyTPForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return RegionDescriber(model, OspreyTPProcessor.from_config(config, tokenizer, "vicuna_v1"))
