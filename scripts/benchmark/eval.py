"""Regions/s of the evaluation's runner against the published procedure, with the same weights and the same answers.

The published procedure opens and encodes the picture for every region and lets the language model read the whole prompt
again, one region at a time. The floor is what no procedure can leave out: bare forward passes that encode each picture
once, read its part of the prompt once, and write the answers in batches; no files, masks or words. The random model's
answers are all of full length.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.measuring import timed

if TYPE_CHECKING:
    from eval.asking import Asking
    from eval.questions import Question
    from osprey_tp.describer import RegionDescriber

TASK = "referring-classification"
LEAST_SECONDS = 1e-9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder; a random one of small size by default")
    parser.add_argument("--hidden-size", type=int, default=256, metavar="N", help="of the random one (%(default)s)")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="of the random one (%(default)s)")
    parser.add_argument("--pictures", type=int, default=2, metavar="N", help="of 480 x 640 pixels (%(default)s)")
    parser.add_argument("--regions", type=int, default=16, metavar="N", help="a picture, 20 at most (%(default)s)")
    parser.add_argument("--tokens", type=int, default=10, metavar="N", help="of every answer (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="of the runner (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the runner (%(default)s)")
    parser.add_argument("--device", help="where the model runs, such as cuda or cpu")
    parser.add_argument("--dtype", help="precision of the model, such as bfloat16")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and regions/s of the procedures, and their ratios.

    Raises:
        ValueError: a number is less than 1, there are more regions than can be drawn, or the answers differ.
    """
    from eval.asking import Asking
    from eval.questions import collect_questions
    from eval.tasks import TASKS

    for name in ("pictures", "regions", "tokens", "batch_size", "hidden_size", "layers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    with tempfile.TemporaryDirectory(prefix="benchmark-eval-") as name:
        folder = Path(name)
        questions = collect_questions(TASKS[TASK], _records(folder, options.pictures, options.regions))
        describer = _describer(options)
        asking = Asking(options.batch_size, options.tokens, describer.processor.image_processor.tiling)
        sizes = _sizes(describer, questions[0], asking)
        _publish(describer, questions[:1], asking)  # warms up
        device, answered = describer.model.device, dict[str, dict[str, str]]()

        def publish() -> None:
            answered["published"] = _publish(describer, questions, asking)

        def run() -> None:
            answered["runner"] = _run(describer, questions, asking, folder / "out", options.workers)

        published, runner = timed(publish, device), timed(run, device)
        answers, own = answered["published"], answered["runner"]
        if own != answers:
            differing = sum(own[key] != answers[key] for key in answers)
            raise ValueError(f"{differing} of {len(answers)} answers of the two procedures differ; nothing is compared")
        floor = timed(lambda: _floor(describer, questions, asking, sizes), device)
    count = len(questions)
    return {
        "model": options.model.name
        if options.model
        else f"random, width {options.hidden_size}, {options.layers} layers",
        "device": str(describer.model.device),
        "pictures": options.pictures,
        "regions": count,
        "prefix_tokens": sizes.prefix,
        "question_tokens": sizes.question,
        "answer_tokens": options.tokens,
        "batch_size": options.batch_size,
        "published": _row(published, count),
        "runner": _row(runner, count),
        "floor": _row(floor, count),
        "speedup": published[0] / runner[0],
        "processor_speedup": published[1] / runner[1],
        "of_floor": runner[0] / floor[0],
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures, for people."""
    lines = [
        f"{result['regions']} regions in {result['pictures']} pictures; {result['model']} on {result['device']}; "
        f"tokens: {result['prefix_tokens']} of the picture, {result['question_tokens']} of a question, "
        f"{result['answer_tokens']} of an answer; same answers",
        f"{'procedure':<44}{'seconds':>9}{'regions/s':>11}{'ratio':>8}{'of processor time':>19}",
    ]
    names = {
        "published": "published: encode for every region",
        "runner": f"runner: encode once, batches of {result['batch_size']}",
        "floor": "floor: bare forward passes",
    }
    for key, name in names.items():
        row = result[key]
        ratio = result["published"]["seconds"] / row["seconds"]
        processor = result["published"]["processor_seconds"] / row["processor_seconds"]
        lines.append(
            f"{name:<44}{row['seconds']:>9.2f}{row['regions_per_second']:>11.2f}{ratio:>7.1f}x{processor:>18.1f}x"
        )
    lines.append(f"the runner takes {result['of_floor']:.2f} times the floor")
    return "\n".join(lines)


def _row(times: tuple[float, float], regions: int) -> dict[str, float]:
    """Of seconds by the wall's clock and of the processor."""
    seconds, processor_seconds = times
    rate = regions / max(seconds, LEAST_SECONDS)
    return {"seconds": seconds, "processor_seconds": processor_seconds, "regions_per_second": rate}


def _publish(describer: RegionDescriber, questions: list[Question], asking: Asking) -> dict[str, str]:
    """Every region as if it were the only one of its picture."""
    return {
        question.id: describer.open(question.image_path).ask_groups(
            [question.regions], [question.text], batch_size=1, max_new_tokens=asking.max_new_tokens, **asking.decoding
        )[0]
        for question in questions
    }


def _run(
    describer: RegionDescriber, questions: list[Question], asking: Asking, out: Path, workers: int
) -> dict[str, str]:
    from eval.predictions import read_predictions
    from eval.runner import PREDICTIONS_FILE, ask_all
    from eval.tasks import TASKS

    ask_all(TASKS[TASK], questions, describer, out, asking, progress=False, workers=workers)
    return {item.id: item.prediction for item in read_predictions(out / PREDICTIONS_FILE)}


@dataclass(frozen=True)
class _Sizes:
    """Tokens of the part of the prompt that the regions of a picture share, and of a question after it."""

    prefix: int
    question: int


def _sizes(describer: RegionDescriber, question: Question, asking: Asking) -> _Sizes:
    from osprey_tp.prompts import OVERVIEW

    processor = describer.processor
    plan = processor.image_processor.tiling.plan(question.height, question.width)
    picture = {"type": "image", "image": plan, "regions": list(question.regions)}
    message = {"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + question.text}]}
    ids = processor.prepare([[message]], add_generation_prompt=True)["input_ids"][0]
    prefix = int((ids == describer.model.config.image_token_id).nonzero()[-1]) + 1
    return _Sizes(prefix, len(ids) - prefix)


def _floor(describer: RegionDescriber, questions: list[Question], asking: Asking, sizes: _Sizes) -> None:
    """The forward passes alone, on numbers of the right shapes; questions and answers do not attend to the picture."""
    import torch
    from transformers import DynamicCache

    model, images = describer.model, describer.processor.image_processor
    language, width = model.model.language_model, model.config.text_config.hidden_size
    pictures = dict.fromkeys(question.image_path for question in questions)

    def read(batch: int, tokens: int, cache: DynamicCache) -> Any:
        embeddings = torch.zeros(batch, tokens, width, dtype=model.dtype, device=model.device)
        states = language(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
        return model.lm_head(states[:, -1])

    with torch.inference_mode():
        for path in pictures:
            prepared = _prepared(images, path)
            cells = model.model.encode_tiles(prepared["pixel_values"].to(model.device))
            model.model.visual_tokens(cells, prepared["tile_grids"])
            read(1, sizes.prefix, DynamicCache(config=model.config.text_config))
        for start in range(0, len(questions), asking.batch_size):
            batch = min(asking.batch_size, len(questions) - start)
            cache = DynamicCache(config=model.config.text_config)
            read(batch, sizes.question, cache)
            for _ in range(asking.max_new_tokens - 1):
                read(batch, 1, cache)


def _prepared(images: Any, path: Path) -> Any:
    from osprey_tp.images import load_image

    return images.preprocess([load_image(path)], return_tensors="pt")


def _records(folder: Path, pictures: int, regions: int) -> Any:
    """A folder of pictures with wavy blobs as regions."""
    from data_pipelines.records import Region, RegionRecord
    from data_pipelines.writing import RecordWriter
    from eval.loading import open_records
    from osprey_tp.masks import to_rle
    from scripts.benchmark.coco_like import HEIGHT, NAMES, WIDTH, blobs, write_picture

    masks = blobs()
    if regions > len(masks):
        raise ValueError(f"--regions must be at most {len(masks)}, not {regions}")
    chosen = tuple(
        Region(to_rle(mask, HEIGHT, WIDTH), NAMES[number % len(NAMES)]) for number, mask in enumerate(masks[:regions])
    )
    with RecordWriter(folder / "records", source="coco", image_root=folder) as writer:
        for number in range(pictures):
            write_picture(folder / f"{number}.jpg", seed=number)
            writer.add(RegionRecord(f"coco:{number}", "coco", f"{number}.jpg", HEIGHT, WIDTH, chosen))
    return open_records(folder / "records")


def _describer(options: argparse.Namespace) -> RegionDescriber:
    from eval.loading import load_describer

    if options.model is not None:
        return load_describer(options.model, options.device, options.dtype)
    import torch

    from eval.tasks import TASKS
    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.describer import RegionDescriber
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer([chat_template("vicuna_v1"), *(task.question for task in TASKS.values())])
    token_ids = add_region_tokens(tokenizer)
    width, layers = options.hidden_size, options.layers
    heads = max(1, width // 64)
    blocks = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "intermediate_size": 4 * width}
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "intermediate_size": 3 * width}
    choices: dict[str, Any] = {"feature_layers": sorted({max(1, layers // 2), max(1, layers - 1)}), **token_ids}
    config = OspreyTPConfig(
        vision_config=vision | blocks, text_config=text | blocks | {"max_position_embeddings": 4096}, **choices
    )
    torch.manual_seed(0)
    model = OspreyTPForConditionalGeneration(config)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # so that no answer ends before its limit
    model.to(device=device, dtype=getattr(torch, options.dtype) if options.dtype else None)  # type: ignore[call-arg]
    return RegionDescriber(model, OspreyTPProcessor.from_config(config, tokenizer, "vicuna_v1"))
