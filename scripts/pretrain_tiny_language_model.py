"""Give a tiny language model its meaning, and join it to a vision tower: the model folder that stage 1 starts from.

    python -m scripts.pretrain_tiny_language_model --tower DIR --names RECORDS --texts RECORDS RECORDS --out DIR

It stands in for a pretrained large language model. From the texts of record folders it learns words, questions and
answers, and to read tokens that are no words: region tokens and visual tokens are noisy sums of the words of what is
there (`scripts/word_features.py`). No pixel is seen. Three lessons follow each other: a region token and its name; then
conversations about regions, the pictures hidden; then the pictures are shown, and other texts join. Each is learned
within a few dozen steps because the one before it is; without the first two the third is not learned in minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, LlamaTokenizer, PreTrainedModel

    from data_pipelines.records import RecordFolder
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor

OUTPUT_NORM_SCALE = 0.15
"""Projector and region encoder end in a LayerNorm of this weight, which keeps their tokens near the norm of words."""

LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,
}


@dataclass(frozen=True)
class WarmUp:
    """How the language model is trained.

    Attributes:
        name_steps: Optimiser steps on region tokens that are followed by their names.
        hidden_steps: Optimiser steps on conversations with all pictures hidden.
        shown_steps: Optimiser steps after that, most pictures shown.
        hidden_share: Share of the samples whose picture stays hidden even then.
        batch_size: Conversations a step.
        learning_rate: Peak learning rate.
        noise: Most noise of region tokens and visual tokens, relative to their words, at the first and the last step.
            Little at first, so that reading begins; much at last, so that what is unclear is read as unclear.
        seed: Of everything random.
    """

    name_steps: int = 40
    hidden_steps: int = 70
    shown_steps: int = 130
    hidden_share: float = 0.2
    batch_size: int = 16
    learning_rate: float = 2e-3
    noise: tuple[float, float] = (0.5, 2.0)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps altogether."""
        return self.name_steps + self.hidden_steps + self.shown_steps

    def noise_at(self, step: int) -> float:
        """Linear from the first to the last step."""
        first, last = self.noise
        return first + (last - first) * step / self.steps

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over 30 steps, then a cosine down to a tenth."""
        from math import cos, pi

        return self.learning_rate * min(1.0, (step + 1) / 30) * (0.55 + 0.45 * cos(pi * step / self.steps))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    steps = {f"{lesson}_steps": getattr(options, f"{lesson}_steps") for lesson in ("name", "hidden", "shown")}
    warm_up = WarmUp(**steps, seed=options.seed)
    try:
        make_start_model(options.tower, options.names, options.texts, options.out, warm_up, options.scale_factor)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def make_start_model(
    tower: Path, names: Path, texts: Sequence[Path], out: Path, warm_up: WarmUp, scale_factor: int
) -> None:
    """Train tokenizer and language model, join them to the tower, write the folder `out`.

    Args:
        tower: Folder of the vision tower.
        names: Records whose regions are named; these names are what region tokens and visual tokens say.
        texts: Further records on the same pictures.
        out: Folder to write.
        warm_up: How the language model is trained.
        scale_factor: Of the model.

    Raises:
        ValueError: if `out` exists, or a folder is not what it should be.
    """
    import torch
    from transformers import AutoModel

    import osprey_tp.auto  # noqa: F401 - makes the tiny tower known to AutoModel
    from data_pipelines.records import RecordFolder
    from scripts.word_features import hand_over

    if out.exists():
        raise ValueError(f"{out} exists; remove it, or name another folder")
    torch.manual_seed(warm_up.seed)
    folders = [RecordFolder.open(folder) for folder in (names, *texts)]
    vision_tower = AutoModel.from_pretrained(tower, dtype=torch.float32, local_files_only=True)
    tokenizer, token_ids = make_tokenizer(folders)
    language_model = make_language_model(len(tokenizer))
    joined = {"scale_factor": scale_factor, **token_ids}
    reader = join(vision_tower, language_model, joined)
    processor = make_processor(tower, reader, tokenizer)
    log = teach_to_read(reader, processor, folders, warm_up)
    model = join(vision_tower, language_model, joined)
    hand_over(model)
    save(model, processor, log, warm_up, out)


def make_tokenizer(folders: Sequence[RecordFolder]) -> tuple[LlamaTokenizer, dict[str, int]]:
    """A tokenizer trained on every text of the folders and of the chat template, and its ids for a configuration."""
    from osprey_tp.processing import add_region_tokens
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer(_texts(folders))
    return tokenizer, add_region_tokens(tokenizer)


def make_language_model(vocabulary_size: int) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary_size, pad_token_id=0, **LANGUAGE_MODEL))


def join(
    tower: PreTrainedModel, language_model: LlamaForCausalLM, choices: dict[str, Any]
) -> OspreyTPForConditionalGeneration:
    """The whole model; projector and region encoder are new."""
    from osprey_tp.modeling import OspreyTPForConditionalGeneration

    layers = tower.config.num_hidden_layers
    return OspreyTPForConditionalGeneration.from_parts(
        tower,
        language_model,
        feature_layers=list(range(max(0, layers - 3), layers + 1)),
        projector_num_attention_heads=tower.config.num_attention_heads,
        output_norm_scale=OUTPUT_NORM_SCALE,
        **choices,
    )


def make_processor(
    tower: Path, model: OspreyTPForConditionalGeneration, tokenizer: LlamaTokenizer
) -> OspreyTPProcessor:
    """The processor that fits the model, with the mean and deviation of pixels that the tower was trained with."""
    import json

    from osprey_tp.processing import OspreyTPProcessor

    file = tower / "preprocessor_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    choices = {name: saved[name] for name in ("image_mean", "image_std") if name in saved}
    return OspreyTPProcessor.from_config(model.config, tokenizer, **choices)


def teach_to_read(
    model: OspreyTPForConditionalGeneration,
    processor: OspreyTPProcessor,
    folders: Sequence[RecordFolder],
    warm_up: WarmUp,
) -> list[dict[str, float]]:
    """Train the language model on features made of words.

    Returns:
        One entry every 10 steps: step, loss, learning_rate, accuracy (share of the answers' tokens).
    """
    import torch
    from tqdm import tqdm

    from scripts.word_features import WordFeatures

    features = WordFeatures(model)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=warm_up.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    log = []
    progress = tqdm(batches(processor, folders, warm_up), total=warm_up.steps, desc="learning to read", unit="step")
    for step, batch in enumerate(progress):
        features.set_noise(warm_up.noise_at(step))
        rate = warm_up.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        hidden = 1.0 if step < warm_up.name_steps + warm_up.hidden_steps else warm_up.hidden_share
        loss, accuracy = answer_loss(model, features, hide_pictures(batch, model.config.image_token_id, hidden))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            log.append({"step": step + 1, "loss": loss.item(), "learning_rate": rate, "accuracy": accuracy})
            progress.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy:.3f}")
    return log


def batches(
    processor: OspreyTPProcessor, folders: Sequence[RecordFolder], warm_up: WarmUp
) -> Iterator[dict[str, Tensor]]:
    """As many batches as there are steps: names, then the first folder, then half of it and half of the others."""
    from random import Random

    import torch

    from data_pipelines.dataset import ConversationDataset
    from scripts.word_features import NamedRegions, WordCollator, WordSamples, name_batch

    names = NamedRegions.collect(folders[:1])
    chooser = Random(warm_up.seed)
    for _ in range(warm_up.name_steps):
        yield name_batch(chooser.choices(names.all(), k=4 * warm_up.batch_size), processor)
    named, texts = [(folders[0], 1.0)], [(folder, len(folders[0]) / len(folder)) for folder in folders[1:]]
    mixed = named + [(folder, weight / len(texts)) for folder, weight in texts]
    for mixture, steps in ((named, warm_up.hidden_steps), (mixed, warm_up.shown_steps)):
        samples = WordSamples(ConversationDataset(mixture, seed=warm_up.seed), names)
        sampler = torch.utils.data.RandomSampler(samples, replacement=True, num_samples=steps * warm_up.batch_size)
        yield from torch.utils.data.DataLoader(
            samples, warm_up.batch_size, sampler=sampler, num_workers=1, collate_fn=WordCollator(processor)
        )


def hide_pictures(batch: dict[str, Tensor], image_token_id: int, share: float) -> dict[str, Tensor]:
    """The batch with visual tokens masked out of the attention in about that share of the samples."""
    import torch

    hidden = torch.rand(len(batch["input_ids"]), 1) < share
    seen = batch["attention_mask"].masked_fill(hidden & (batch["input_ids"] == image_token_id), 0)
    return batch | {"attention_mask": seen}


def answer_loss(
    model: OspreyTPForConditionalGeneration, features: Any, batch: dict[str, Tensor]
) -> tuple[Tensor, float]:
    """Loss over the answers, and the share of their tokens that are predicted."""
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        mm_encoder_outputs={"image": features(batch)},
    )
    taught = batch["labels"][:, 1:]
    right = (output.logits[:, :-1].argmax(-1) == taught)[taught != -100]
    return output.loss, right.float().mean().item()


def save(
    model: OspreyTPForConditionalGeneration,
    processor: OspreyTPProcessor,
    log: list[dict[str, float]],
    warm_up: WarmUp,
    out: Path,
) -> None:
    """Write model, processor and log aside, then rename."""
    from osprey_tp.files import folder_aside, write_json
    from osprey_tp.training.outputs import LOG_FILE

    with folder_aside(out) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        write_json(aside / LOG_FILE, log)
        write_json(aside / "warm_up.json", asdict(warm_up))


def _texts(folders: Sequence[RecordFolder]) -> Iterator[str]:
    """Questions, answers and names of all records, and the system prompt."""
    from data_pipelines.conversations import conversation_of
    from osprey_tp.processing import chat_template

    for folder in folders:
        for record in folder:
            yield from (region.name for region in record.regions)
            for message in conversation_of(record, image=None):
                content = message["content"]
                yield content if isinstance(content, str) else " ".join(item.get("text", "") for item in content)
    yield from [chat_template("vicuna_v1")] * 10


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrain_tiny_language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = WarmUp()
    parser.add_argument("--tower", type=Path, required=True, metavar="DIR", help="folder of the vision tower")
    parser.add_argument("--names", type=Path, required=True, metavar="RECORDS", help="prepared folder of named regions")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], metavar="RECORDS", help="further prepared folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--scale-factor", type=int, default=4, help="cells a side of a visual token (%(default)s)")
    for lesson, what in (("name", "on names"), ("hidden", "with pictures hidden"), ("shown", "with pictures shown")):
        steps = getattr(default, f"{lesson}_steps")
        parser.add_argument(f"--{lesson}-steps", type=int, default=steps, metavar="N", help=f"{what} (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything random (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
