"""Tiny random models of every family that the suite checks, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.processing import add_region_tokens

from .golden_recipe import GOLDEN

TOWERS = ("clip", "siglip")
LANGUAGES = ("llama", "qwen3")
TEMPLATES = {"llama": "vicuna_v1", "qwen3": "chatml"}


def llama_tokenizer() -> PreTrainedTokenizerBase:
    """Llama's kind: sentencepiece-style pieces with byte fallback; 560 pieces."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "i_tokenizer_small.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """Qwen's kind: bytes, no beginning-of-sequence token, chat marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_processor_and_config(
    tower: str = "clip", language: str = "llama", **choices: Any
) -> tuple[OspreyTPProcessor, OspreyTPConfig]:
    tokenizer = llama_tokenizer() if language == "llama" else qwen_tokenizer()
    token_ids = add_region_tokens(tokenizer, choices.get("preset", "recommended"))
    config = OspreyTPConfig.tiny(tower, language, vocab_size=len(tokenizer), **(token_ids | choices))
    config.text_config.bos_token_id = tokenizer.bos_token_id
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    return OspreyTPProcessor.from_config(config, tokenizer, TEMPLATES[language]), config


def tiny_model(
    tower: str = "clip", language: str = "llama", seed: int = 0, **choices: Any
) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """A random model and its processor; weights are spread so that greedy answers depend on pictures and regions."""
    processor, config = tiny_processor_and_config(tower, language, **choices)
    torch.manual_seed(seed)
    model = OspreyTPForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def tiny_describer(tower: str = "clip", language: str = "llama", seed: int = 0, **choices: Any) -> RegionDescriber:
    return RegionDescriber(*tiny_model(tower, language, seed, **choices))


def save_tiny_model(folder: Path, tower: str = "clip", language: str = "llama", **choices: Any) -> Path:
    """A model folder as training writes it."""
    model, processor = tiny_model(tower, language, **choices)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
