"""The model that a run starts from: a model folder, or a language model and a vision tower put together.

What is missing is said before anything is trained, in one line that names the folder and the remedy. A part may begin
with random weights only where the stage says so (`Stage.may_begin_new`), or where `initial_parts` gives its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.integrations import deepspeed as deepspeed_integration

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.model_folder import naming, pixel_scale, quietly, require_merged
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.outside import OWN_FILES_ALONE, read_yaml
from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
from osprey_tp.projectors import build_projector
from osprey_tp.region_encoder import RegionEncoder
from osprey_tp.training.adapters import add_adapters, require_adapters_can_run
from osprey_tp.training.arguments import RunSettings
from osprey_tp.training.outputs import SETTINGS_FILE
from osprey_tp.training.parts import copy_weights, load_parts, parts_in
from osprey_tp.training.stages import PARTS, Stage

_BUILDERS = {"projector": build_projector, "region_encoder": RegionEncoder}

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_start(settings: RunSettings) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """The start model in float32, with adapters if the run has them, and its processor.

    Raises:
        ValueError: for a folder that is no model folder, that lacks weights or has others than its configuration asks
            for, whose tokenizer lacks a placeholder, or whose processor does not fit the model.
        OSError: if a file cannot be read.
    """
    stage = settings.resolved_stage
    for template in filter(None, (stage.template, settings.model_template)):
        chat_template(template)
    if settings.adapter is not None:
        require_adapters_can_run(settings.adapter)
    given = {part for path in settings.initial_parts for part in parts_in(Path(path))}
    if settings.model is not None:
        folder = Path(settings.model)
        _require_begun_by_an_earlier_stage(folder, stage, given)
        model, processor = _read_model(folder, settings, given.union(stage.may_begin_new))
    else:
        model, processor = _put_together(settings)
        _require_begun(settings, stage, given)
    for path in settings.initial_parts:
        load_parts(model, Path(path))
    if settings.adapter is not None:
        set_seed(settings.seed)  # new weights are the same on every process, however the rest was loaded
        add_adapters(model, settings.adapter, COMPUTE_DTYPES[settings.precision])
    return model, processor


def _read_model(
    folder: Path, settings: RunSettings, may_begin_new: set[str]
) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """Model and processor of a model folder; parts of `may_begin_new` may lack all of their weights."""
    require_merged(folder)
    _require_files(folder, ("config.json", "processor_config.json"), "name what a stage or scripts.convert wrote")
    with naming(folder / "config.json"):
        config = OspreyTPConfig.from_pretrained(folder)
    with naming(folder):
        processor = OspreyTPProcessor.from_pretrained(folder, **OWN_FILES_ALONE)
        processor.check_fits(config)
    model, missing = _load(OspreyTPForConditionalGeneration, folder, settings.attention)
    with naming(folder):
        new = _new_parts(model, missing, may_begin_new)
    set_seed(settings.seed)
    for part in new:
        _begin_new(model, part)
    return model, processor


def _put_together(settings: RunSettings) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """A new model of the settings' language model, vision tower and geometry; projector and region encoder are new."""
    language, vision = Path(settings.language_model or ""), Path(settings.vision_tower or "")
    for name, folder in (("language_model", language), ("vision_tower", vision)):
        _require_files(folder, ("config.json",), f"{name} is a model folder of transformers")
    geometry: dict[str, Any] = dict(settings.geometry)
    with naming(language):
        tokenizer = AutoTokenizer.from_pretrained(language, **OWN_FILES_ALONE)
    token_ids = add_region_tokens(tokenizer, geometry.get("preset", "recommended"))
    halves = []
    for loader, folder in ((AutoModelForCausalLM, language), (AutoModel, vision)):
        half, missing = _load(loader, folder, settings.attention)
        with naming(folder):
            _new_parts(half, missing, set())
        halves.append(half)
    language_model, tower = halves
    set_seed(settings.seed)
    with naming("geometry"), _undivided():
        model = OspreyTPForConditionalGeneration.from_parts(tower, language_model, **(token_ids | geometry))
    model.set_attn_implementation(settings.attention)
    model.generation_config = _greedy(language_model.generation_config, tokenizer)
    processor = OspreyTPProcessor.from_config(model.config, tokenizer, settings.model_template, **pixel_scale(vision))
    return model, processor


def _load(loader: Any, folder: Path, attention: str) -> tuple[Any, list[str]]:
    """`from_pretrained` in float32 that refuses surplus and ill-shaped weights, and names those that are missing."""
    with naming(folder), quietly():
        try:
            model, found = loader.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=attention,
                **OWN_FILES_ALONE,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except RuntimeError as error:  # ZeRO-3 does not list shapes that differ
            if "size mismatch" not in str(error):
                raise
            found_shapes = str(error).partition("You may consider")[0]
            raise ValueError(
                f"the weights do not fit config.json: {found_shapes}; restore the config.json that was saved with them"
            ) from error
        except ImportError as error:
            raise ValueError(
                f"attention={attention} needs a package that is missing ({error}); take attention=sdpa"
            ) from error
        if found["mismatched_keys"]:
            name, saved, needed = sorted(found["mismatched_keys"])[0]
            raise ValueError(
                f"{len(found['mismatched_keys'])} weights have other shapes than config.json asks for, among them "
                f"{name}: {tuple(saved)}, not {tuple(needed)}; restore the config.json that was saved with the weights"
            )
        if found["unexpected_keys"] and isinstance(model, OspreyTPForConditionalGeneration):
            surplus = sorted(found["unexpected_keys"])
            raise ValueError(
                f"{len(surplus)} weights belong to no module of config.json, among them {surplus[0]}; restore the "
                "config.json that was saved with the weights"
            )
    return model, sorted(found["missing_keys"])


def _new_parts(model: PreTrainedModel, missing: Sequence[str], may_begin_new: set[str]) -> list[str]:
    """The parts of which all weights are missing, and may be; ValueError for any other that is missing."""
    new = []
    for part in PARTS:
        prefix = f"model.{part}."
        of_part = [name for name in missing if name.startswith(prefix)]
        if not of_part:
            continue
        total = sum(name.startswith(prefix) for name, _ in model.named_parameters())
        missing = [name for name in missing if name not in of_part]
        if len(of_part) == total and part in may_begin_new:
            new.append(part)
            continue
        raise ValueError(
            f"the weights of the {part} are missing ({len(of_part)} of {total}, among them {of_part[0]}); start from "
            "the folder that the stage before wrote, or name a file of them in initial_parts"
        )
    if missing:
        raise ValueError(
            f"{len(missing)} weights are missing, among them {missing[0]}; copy the folder again, all of its files"
        )
    return new


def _begin_new(model: OspreyTPForConditionalGeneration, part: str) -> None:
    """Draw the weights of a part; under ZeRO-3 they are those that a single process would draw."""
    if part not in _BUILDERS:
        return  # initial_parts gives its weights
    fresh = _BUILDERS[part](model.config)
    fresh.apply(model._init_weights)
    copy_weights(getattr(model.model, part), fresh.state_dict())


def _require_begun_by_an_earlier_stage(folder: Path, stage: Stage, given: set[str]) -> None:
    """A region encoder that no stage has trained is no start for a stage that needs one."""
    file = folder / SETTINGS_FILE
    if not file.is_file() or "region_encoder" in given.union(stage.may_begin_new):
        return
    saved = read_yaml(file)
    rates, parts = saved.get("learning_rates") or {}, saved.get("initial_parts")
    if saved.get("stage") != 1 or rates.get("region_encoder") or parts or "region_encoder" not in stage.learning_rates:
        return
    raise ValueError(
        f"{folder} is what stage 1 wrote, so its region encoder has not been trained; start stage {stage.number} from "
        "what stage 2 wrote, name a region encoder in initial_parts, or set learning_rates.region_encoder=null if no "
        "region is taught"
    )


def _require_begun(settings: RunSettings, stage: Stage, given: set[str]) -> None:
    """A model that is put together has a new projector and region encoder; the stage may need trained ones."""
    new = [part for part in ("projector", "region_encoder") if part not in given.union(stage.may_begin_new)]
    if new:
        raise ValueError(
            f"{settings.language_model} and {settings.vision_tower} come without a {' and a '.join(new)}, which stage "
            f"{stage.number} needs trained; start from model=... that the stage before wrote, or name initial_parts"
        )


def _require_files(folder: Path, names: Sequence[str], remedy: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no model folder, it lacks {' and '.join(missing)}; {remedy}")


def _greedy(saved: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where answers end, without the language model's settings of sampling, some of which cannot be saved."""
    end = tokenizer.eos_token_id if saved.eos_token_id is None else saved.eos_token_id
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id)


@contextmanager
def _undivided() -> Iterator[None]:
    """Build modules whole under ZeRO-3 too; DeepSpeed divides the new ones when it takes the model."""
    reference = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = reference
