"""Tokenizers of published checkpoints: the ids that the published code gives, whichever file is there.

`tokenizer.json` is read as it is. From `tokenizer.model` the fast tokenizer is built that transformers 4.31 built, with
a blank before every piece of text that follows an added token; today's transformers reads that file otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from osprey_tp.outside import read_json

_FILES = ("tokenizer.json", "tokenizer.model")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_BLANK = "\u2581"
_NO_LIMIT = 1 << 30


def load_tokenizer(folder: Path, rows: int) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a checkpoint's folder.

    Args:
        folder: Holds `tokenizer.json` or `tokenizer.model`, and often `tokenizer_config.json`.
        rows: Of the embedding that the ids have to be rows of.

    Raises:
        ValueError: if there is no tokenizer, it cannot be read, or it is another model's.
        OSError: if a file cannot be read.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{folder} holds no tokenizer ({' or '.join(_FILES)}); copy those of the language "
            "model that it was trained from into it"
        )
    backend = _read_json(file) if file.suffix == ".json" else from_sentencepiece(file)
    pieces = backend.get_vocab_size(with_added_tokens=False)
    if pieces > rows:
        raise ValueError(f"{file} has {pieces} pieces, the embedding {rows} rows; give the tokenizer of this model")
    settings = _settings(folder)
    special = {name: text for name in _SPECIAL if (text := _text(settings.get(name))) is not None}
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known = backend.get_vocab()
    options: dict[str, Any] = {name: text for name, text in (defaults | special).items() if text in known}
    longest = settings.get("model_max_length")
    if isinstance(longest, int) and 0 < longest < _NO_LIMIT:
        options["model_max_length"] = longest
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **options)


def _read_json(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is no tokenizer ({error}); copy it again") from error


def _settings(folder: Path) -> dict[str, Any]:
    """What the folder says of special tokens and the longest text."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            try:
                found |= read_json(file)
            except TypeError as error:
                raise ValueError(f"{file} is no JSON object; copy it again") from error
    return found


def _text(token: Any) -> str | None:
    """A token's text, which is stored alone or with its settings."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def from_sentencepiece(file: Path) -> Tokenizer:
    """The fast tokenizer that transformers 4.31 built of Llama's `tokenizer.model`.

    Raises:
        ValueError: if the file is no sentencepiece model of Llama's kind, or a package is missing that reads it.
    """
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    try:
        extractor = SentencePieceExtractor(str(file))
    except ImportError as error:
        raise ValueError(
            f"reading {file} needs sentencepiece and protobuf; install osprey_tp[convert], or give tokenizer.json"
        ) from error
    except Exception as error:  # protobuf's errors have no common class that can be imported
        raise ValueError(f"{file} is no sentencepiece model ({error}); copy it again") from error
    proto = extractor.proto
    pieces = [piece.piece for piece in proto.pieces]
    if proto.trainer_spec.model_type != 2 or pieces[:3] != ["<unk>", "<s>", "</s>"]:  # 2 is BPE
        raise ValueError(f"{file} is not of Llama's kind (BPE, beginning <unk>, <s>, </s>); give tokenizer.json")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces[:3]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together of two others, pieces in the order of their ids."""
    merges = []
    for piece in vocabulary:
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        possible = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(possible, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def write_published_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write `tokenizer.json` and its settings as older versions of transformers and tokenizers read them."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = content["model"].get("merges")
    if merges and not isinstance(merges[0], str):
        content["model"]["merges"] = [" ".join(pair) for pair in merges]  # pairs are newer than published code
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    special = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "padding_side": "right", **special}
    if tokenizer.model_max_length < _NO_LIMIT:
        settings["model_max_length"] = tokenizer.model_max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
