"""Many continuations of one prompt prefix, decoded together against one copy of its keys and values.

```
SharedPrefix(model, prefix ids, visual tokens)        the language model reads the prefix once
  ├─ continue_greedily(suffixes, features)            one answer a suffix; a finished answer leaves the batch
  ├─ copies(count)                                    a cache for each of several prompts, for all of `generate`
  └─ cache                                            what has been read, for `osprey_tp.answer_tree`
```

An answer is the one that `generate` gives greedily from prefix and suffix alone; the tests compare them token by token.
The memory of one more suffix is that of its own tokens. The attention is that of `osprey_tp.shared_attention`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.shared_attention import SHARED_ATTENTION, SharedKeys


def use_shared_attention(model: OspreyTPForConditionalGeneration) -> bool:
    """Let the language model attend to shared keys, if it can; says whether it does.

    It can if all its layers see all tokens, and its attention is `sdpa`, to which the shared kind is equal otherwise.
    """
    decoder = model.model.language_model
    config = decoder.config
    if config._attn_implementation == SHARED_ATTENTION:
        return True
    sees_all = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    plain = getattr(config, "attn_logit_softcapping", None) is None and not getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or not (sees_all and plain):
        return False
    decoder.set_attn_implementation(SHARED_ATTENTION)
    return True


class SharedPrefix:
    """The keys and values of a prompt prefix.

    Args:
        model: Uses the shared attention (`use_shared_attention`).
        prefix: (N,), token ids.
        visual_tokens: What stands at the `<image>` placeholders of the prefix, one tensor a picture.
    """

    @torch.no_grad()
    def __init__(self, model: OspreyTPForConditionalGeneration, prefix: Tensor, visual_tokens: list[Tensor]) -> None:
        self._model = model
        self.ids = prefix
        self.length = len(prefix)
        self.cache = DynamicCache(config=model.config.text_config)
        embeddings = model.model.embed_prompt(
            prefix[None].to(model.device), OspreyTPFeatures(pooler_output=visual_tokens)
        )
        model.model.language_model(inputs_embeds=embeddings, past_key_values=self.cache, use_cache=True)
        self.keys = SharedKeys.of(self.cache, [self.length], [1])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.keys.layers)

    def copies(self, count: int) -> DynamicCache:
        """A cache of its own for so many prompts, to be written to."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(count)
        return cache

    @torch.no_grad()
    def continue_greedily(
        self, suffixes: Sequence[Tensor], features: OspreyTPFeatures, max_new_tokens: int, end_ids: Sequence[int]
    ) -> list[list[int]]:
        """The most likely next token again and again, for every suffix.

        Args:
            suffixes: (n_i,) token ids of each, at least one.
            features: Region tokens of all suffixes, in order.
            max_new_tokens: Longest answer.
            end_ids: An answer ends with any of these.

        Returns:
            The new ids of each suffix, the end id included.
        """
        answers: list[list[int]] = [[] for _ in suffixes]
        going = list(range(len(suffixes)))
        ends = torch.tensor(list(end_ids), device=self._model.device)
        cache = DynamicCache(config=self._model.config.text_config)
        embeddings, seen = self._embed(suffixes, features)
        lengths = seen.sum(dim=1)
        states = self._read(embeddings, seen, cache)
        last = states[torch.arange(len(suffixes)), lengths - 1]  # (B, D)
        for step in range(max_new_tokens):
            new = self._model.lm_head(last).argmax(dim=-1)  # (B,)
            for row, token in zip(going, new.tolist(), strict=True):
                answers[row].append(token)
            unfinished = (~torch.isin(new, ends)).nonzero().flatten()
            if not len(unfinished) or step == max_new_tokens - 1:
                break
            if len(unfinished) < len(going):
                going = [going[row] for row in unfinished.tolist()]
                cache.batch_select_indices(unfinished)
                new, seen, lengths = new[unfinished], seen[unfinished], lengths[unfinished]
            seen = torch.cat([seen, seen.new_ones(len(going), 1)], dim=1)
            embeddings = self._model.model.embed_generated(new[:, None])
            positions = (self.length + lengths)[:, None]
            last = self._decode(embeddings, positions, seen[:, None, None], cache)[:, 0]
            lengths = lengths + 1
        return answers

    def _embed(self, rows: Sequence[Tensor], features: OspreyTPFeatures) -> tuple[Tensor, Tensor]:
        """Embeddings (B, n, D) of rows of ids padded on the right, and (B, n) which are no padding."""
        ids = pad_sequence(list(rows), batch_first=True).to(self._model.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        seen = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return self._model.model.embed_prompt(ids, features), seen

    def _read(self, embeddings: Tensor, seen: Tensor, cache: DynamicCache) -> Tensor:
        """States (B, n, D) of rows that stand directly behind the prefix."""
        count = embeddings.shape[1]
        order = torch.arange(count, device=embeddings.device)
        mask = (order <= order[:, None]) & seen[:, None]  # (B, n, n)
        mask = mask | torch.eye(count, dtype=torch.bool, device=embeddings.device)
        return self._decode(embeddings, (self.length + order)[None], mask[:, None], cache)

    def _decode(self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        return self._model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            shared_keys=[self.keys.serving([len(embeddings)])],
        ).last_hidden_state
