"""Importing this module registers the model's classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

import osprey_tp.tiny_tower  # noqa: F401 - registers itself
from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.image_processing import OspreyTPImageProcessor
from osprey_tp.modeling import OspreyTPForConditionalGeneration, OspreyTPModel
from osprey_tp.processing import OspreyTPProcessor

AutoConfig.register(OspreyTPConfig.model_type, OspreyTPConfig)
AutoModel.register(OspreyTPConfig, OspreyTPModel)
AutoModelForImageTextToText.register(OspreyTPConfig, OspreyTPForConditionalGeneration)
AutoImageProcessor.register(OspreyTPConfig, image_processor_classes={"torchvision": OspreyTPImageProcessor})
AutoProcessor.register(OspreyTPConfig, OspreyTPProcessor)
