"""Random models for benchmarks: the proportions of the real one, small enough for two cores."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from osprey_tp.describer import RegionDescriber

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
SIZES = ("medium", "tiny", "vicuna-7b", "vicuna-13b")
DTYPES = ("float32", "bfloat16", "float16")
WORDS = ("person", "dining table", "wine glass", "potted plant", "teddy bear", "traffic light", "dog", "bench")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `describer_of` reads."""
    parser.add_argument("--size", choices=SIZES, default="medium", help="of the random model (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (%(default)s)")


def describer_of(options: argparse.Namespace) -> RegionDescriber:
    """The random model that a command line asks for.

    Raises:
        ValueError: for a GPU where there is none.
    """
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}, but PyTorch sees no GPU here; leave it out for the processor")
    return random_describer(options.size, torch.device(options.device), getattr(torch, options.dtype))


def medium_describer(seed: int = 0, **choices: Any) -> RegionDescriber:
    """A model with a 24-layer tower at 336 pixels and an 8-layer language model, random weights, pooling as published.

    Weights are spread so that greedy answers depend on the region, and no answer ends before its limit.

    Args:
        seed: Of the weights.
        choices: Fields of `OspreyTPConfig`.
    """
    return random_describer("medium", seed=seed, **choices)


def random_describer(
    size: str, device: torch.device | None = None, dtype: torch.dtype | None = None, seed: int = 0, **choices: Any
) -> RegionDescriber:
    """As `medium_describer`, of any size, with weights made on the device in their own precision.

    Args:
        size: `medium`, or a size of `osprey_tp.training.estimation_start`.
        device: The processor by default.
        dtype: float32 by default.
        seed: Of the weights.
        choices: Fields of `OspreyTPConfig`.
    """
    import torch

    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.describer import RegionDescriber
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from osprey_tp.prompts import CATEGORY_QUESTION, OVERVIEW
    from osprey_tp.training.estimation_start import SIZES
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer([chat_template("vicuna_v1"), OVERVIEW, CATEGORY_QUESTION, *WORDS])
    token_ids = add_region_tokens(tokenizer)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    choices = {"region_pooling": "published"} | token_ids | choices
    if size == "medium":
        parts: dict[str, Any] = {"vision_config": MEDIUM_VISION, "text_config": MEDIUM_TEXT} | choices
        parts["text_config"] = {**parts["text_config"], "vocab_size": len(tokenizer)}
        config = OspreyTPConfig(**parts)
    else:
        words = {"vocab_size": len(tokenizer)} if size == "tiny" else {}
        config = SIZES[size](**words, **choices)
    for name, token in ends.items():
        setattr(config.text_config, name, token)
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype or torch.float32)
    try:
        with device or torch.device("cpu"):
            model = OspreyTPForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        model.lm_head.weight[len(tokenizer) :] = 0  # no word of the tokenizer
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return RegionDescriber(model, OspreyTPProcessor.from_config(config, tokenizer, "vicuna_v1"))
