"""Checkpoints in the published layout, written from the golden recipe at tiny widths; names are those of the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from .golden_recipe import GOLDEN, param

VOCABULARY = 560
"""Rows of the embedding: the tokenizer's pieces, without `<mask>`."""

Shapes = dict[str, tuple[int, ...]]

LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {"width": 64, "layers": 24, "intermediate": 32, "image": 96, "patch": 8}


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def language_shapes(sizes: dict[str, Any]) -> Shapes:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    attention = sizes.get("head_dim", hidden // sizes["num_attention_heads"]) * sizes["num_attention_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], hidden)}
    for layer in range(sizes["num_hidden_layers"]):
        of = f"model.layers.{layer}"
        for part in "qkv":
            shapes |= linear(f"{of}.self_attn.{part}_proj", attention, hidden, bias=False)
        shapes |= linear(f"{of}.self_attn.o_proj", hidden, attention, bias=False)
        shapes |= {f"{of}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes |= linear(f"{of}.mlp.down_proj", hidden, inner, bias=False)
        shapes |= {f"{of}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (sizes["vocab_size"], hidden)}


def tower_shapes(width: int, layers: int, intermediate: int, image: int, patch: int) -> Shapes:
    of = "model.vision_tower.vision_tower.vision_model"
    shapes: Shapes = {
        f"{of}.embeddings.class_embedding": (width,),
        f"{of}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{of}.embeddings.position_embedding.weight": ((image // patch) ** 2 + 1, width),
        **norm(f"{of}.pre_layrnorm", width),
    }
    for layer in range(layers):
        inner = f"{of}.encoder.layers.{layer}"
        for part in ("k", "v", "q", "out"):
            shapes |= linear(f"{inner}.self_attn.{part}_proj", width, width)
        shapes |= norm(f"{inner}.layer_norm1", width) | norm(f"{inner}.layer_norm2", width)
        shapes |= linear(f"{inner}.mlp.fc1", intermediate, width) | linear(f"{inner}.mlp.fc2", width, intermediate)
    return shapes | norm(f"{of}.post_layernorm", width)


def tokenpacker_shapes(hidden: int, width: int) -> Shapes:
    of = "model.mm_projector"
    shapes = linear(f"{of}.q_proj_1", width, width, bias=False)
    for part in "kv":
        shapes |= linear(f"{of}.{part}_proj_1.0", width, 4 * width) | linear(f"{of}.{part}_proj_1.2", width, width)
    for part in "qkv":
        shapes |= norm(f"{of}.ln_{part}_1", width)
    shapes |= {f"{of}.clip_attn.in_proj_weight": (3 * width, width), f"{of}.clip_attn.in_proj_bias": (3 * width,)}
    shapes |= linear(f"{of}.clip_attn.out_proj", width, width)
    return shapes | linear(f"{of}.mlp.0", hidden, width) | linear(f"{of}.mlp.2", hidden, hidden)


def mlp_shapes(hidden: int, width: int) -> Shapes:
    return linear("model.mm_projector.0", hidden, width) | linear("model.mm_projector.2", hidden, hidden)


def stf_shapes(hidden: int, width: int) -> Shapes:
    fusion = "model.mm_projector_crosslayer"
    fused = linear(f"{fusion}.0", 4 * width, 8 * width) | linear(f"{fusion}.2", width, 4 * width)
    merged = linear("model.mm_projector.0", 16 * width, 4 * width)
    return fused | merged | linear("model.mm_projector.2", hidden, 16 * width)


def extractor_shapes(hidden: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for level in range(4):
        shapes |= linear(f"mask_extractor.res_layers.{level}", width, width)
    return shapes | linear("mask_extractor.feat_linear", hidden, width)


def spatial_shapes(hidden: int, width: int, side: int = 112) -> Shapes:
    of = "mask_extractor.mask_linear.layers"
    first = linear(f"{of}.0", width, side * side) | linear(f"{of}.1", width, width)
    return first | linear(f"{of}.2", hidden, width)


PROJECTORS = {"tokenpacker": tokenpacker_shapes, "mlp": mlp_shapes, "stf": stf_shapes}


def published_config(projector: str, width: int = TOWER["width"], **changes: Any) -> dict[str, Any]:
    """The `config.json` that the published code writes."""
    hd = {"scale_factor": 2, "image_aspect_ratio": "slice"} if projector == "tokenpacker" else {}
    kind = "tokenpacker" if projector == "tokenpacker" else "mlp2x_gelu"
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **LANGUAGE,
        "rope_scaling": None,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": width,
        "mm_projector_type": kind,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "use_mm_proj": True,
    }
    return {name: value for name, value in (config | hd | changes).items() if value != "absent"}


def shapes_of(projector: str, regions: bool = True, tower: dict[str, int] | None = None, **sizes: Any) -> Shapes:
    """Names and shapes of a whole checkpoint."""
    tower, language = tower or TOWER, LANGUAGE | sizes
    shapes = language_shapes(language) | tower_shapes(**tower)
    shapes |= PROJECTORS[projector](language["hidden_size"], tower["width"])
    return shapes | (extractor_shapes(language["hidden_size"], tower["width"]) if regions else {})


def weights_of(shapes: Shapes, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights from their names, and the constants that older transformers saved with them."""
    made = {name: torch.from_numpy(np.asarray(param(name, shape))).to(dtype) for name, shape in shapes.items()}
    return {name: weight * scale if weight.ndim > 1 else weight for name, weight in made.items()}


def constants() -> dict[str, torch.Tensor]:
    """What older transformers saved beside weights."""
    return {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
    }


def write_weights(folder: Path, weights: dict[str, torch.Tensor], suffix: str = ".bin", shards: int = 1) -> None:
    """Files as transformers 4.31 writes them, with their index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    ends = np.cumsum([weight.nbytes for weight in weights.values()])
    of_shard = np.minimum(ends * shards // (ends[-1] + 1), shards - 1)  # about as many bytes in each
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}{suffix}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}{suffix}"
        held = {
            name: weight for (name, weight), shard in zip(weights.items(), of_shard, strict=True) if shard == number
        }
        places |= dict.fromkeys(held, file)
        if suffix == ".safetensors":
            save_file(held, folder / file, metadata={"format": "pt"})
        else:
            torch.save(held, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, kind: str = "tokenizer.json") -> None:
    """Llama's kind of tokenizer, in one of the two forms, with the settings that LLaVA saves."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(GOLDEN / f"i_tokenizer_small.{kind.partition('.')[2]}", folder / kind)
    token = {"__type": "AddedToken", "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    settings = {
        "bos_token": token | {"content": "<s>"},
        "eos_token": token | {"content": "</s>"},
        "unk_token": token | {"content": "<unk>"},
        "pad_token": None,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<unk>", "bos_token": "<s>"}))


def write_checkpoint(
    folder: Path,
    projector: str = "tokenpacker",
    regions: bool = True,
    *,
    suffix: str = ".bin",
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    tokenizer: str = "tokenizer.json",
    **changes: Any,
) -> Path:
    """A whole checkpoint in a folder; answers depend on the picture, since weights are spread."""
    weights = weights_of(shapes_of(projector, regions), dtype, scale=6.0) | constants()
    write_weights(folder, weights, suffix, shards)
    write_tokenizer(folder, tokenizer)
    (folder / "config.json").write_text(json.dumps(published_config(projector, **changes)))
    return folder
