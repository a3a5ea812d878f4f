"""Tiny random models of the Segment Anything family, made on the spot."""

import math
from functools import partial
from pathlib import Path

import torch
import transformers
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

CONFIDENCE = 0.95
"""What the models estimate of their masks, whatever they are, so that they pass where everything is asked for."""


def tiny_sam(seed: int = 0) -> Sam:
    """A model of the `segment_anything` package that reads squares of 256 pixels."""
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=256,
            patch_size=16,
            embed_dim=64,
            depth=3,
            num_heads=4,
            out_chans=32,
            use_rel_pos=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=7,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=8
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=48),
            iou_head_hidden_dim=24,
        ),
    ).eval()


def confident_sam(seed: int = 0) -> Sam:
    """`tiny_sam` with firm masks that it thinks well of."""
    model = tiny_sam(seed)
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(0.1)
        model.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(CONFIDENCE)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.mul_(3000)
    return model


def save_tiny_family(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder of transformers with a confident tiny model: `sam`, `sam_hq`, `sam2` or `sam3_tracker`."""
    torch.manual_seed(seed)
    model, processor = {"sam": _sam, "sam_hq": _sam_hq, "sam2": _sam2, "sam3_tracker": _sam3}[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            if "output_hypernetworks_mlps" in name and "proj_out.weight" in name:
                parameter.mul_(1000)
            if name == "mask_decoder.iou_prediction_head.proj_out.weight":
                parameter.mul_(0.01)
            if name == "mask_decoder.iou_prediction_head.proj_out.bias":
                parameter.fill_(CONFIDENCE if kind in ("sam", "sam_hq") else math.log(CONFIDENCE / (1 - CONFIDENCE)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_PROMPTS = {"hidden_size": 32, "mask_input_channels": 8}
_DECODER = {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 24}


_VISION = {
    "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64,
    "image_size": 128, "patch_size": 16, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16,
}  # fmt: skip
_SQUARE_PROMPTS = {**_PROMPTS, "image_size": 128, "patch_size": 16, "image_embedding_size": 8}


def _sam():
    config = transformers.SamConfig(
        vision_config=_VISION, prompt_encoder_config=_SQUARE_PROMPTS, mask_decoder_config=_DECODER
    )
    return transformers.SamModel(config), transformers.SamProcessor(_sam_pictures())


def _sam_hq():
    config = transformers.SamHQConfig(
        vision_config=_VISION,
        prompt_encoder_config=_SQUARE_PROMPTS,
        mask_decoder_config={**_DECODER, "vit_dim": 32},
    )
    return transformers.SamHQModel(config), transformers.SamHQProcessor(_sam_pictures())


def _sam_pictures():
    return transformers.SamImageProcessor(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128},
        mask_size={"longest_edge": 32}, mask_pad_size={"height": 32, "width": 32},
    )  # fmt: skip


def _sam2():
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 2, 4], "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 32,
    }  # fmt: skip
    prompts = {**_PROMPTS, "image_size": 128, "patch_size": 16}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_DECODER)
    pictures = transformers.Sam2ImageProcessor(size={"height": 128, "width": 128})
    return transformers.Sam2Model(config), transformers.Sam2Processor(pictures)


def _sam3():
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "window_size": 4,
        "global_attn_indexes": [1], "pretrain_image_size": 56,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }  # fmt: skip
    prompts = {**_PROMPTS, "image_size": 112, "patch_size": 14}
    config = transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_DECODER
    )
    pictures = transformers.Sam3ImageProcessor(size={"height": 112, "width": 112})
    return transformers.Sam3TrackerModel(config), transformers.Sam3TrackerProcessor(pictures)
