"""What `generate` has to know about pictures and regions: how they are repeated, and that they are never guessed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator

from osprey_tp.modeling_base import OspreyTPFeatures


class WithoutPlaceholders(CandidateGenerator):
    """Guesses of a candidate generator, each cut where it goes on with the placeholder of a picture or a region.

    A guess may be copied from the prompt; what stands at its placeholders could not be copied with it.
    """

    def __init__(self, guesses: CandidateGenerator, placeholders: Tensor) -> None:
        self._guesses = guesses
        self._placeholders = placeholders
        self.requires_model_outputs = guesses.requires_model_outputs

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Any, Any]:
        """Ids (1, N + guessed) and, where a model guessed, its logits (1, guessed, V)."""
        candidates, logits = self._guesses.get_candidates(input_ids, **kwargs)  # type: ignore[arg-type]
        guessed = candidates[0, input_ids.shape[1] :]
        stops = torch.isin(guessed, self._placeholders.to(guessed.device)).nonzero()
        kept = int(stops[0]) if len(stops) else len(guessed)
        return candidates[:, : input_ids.shape[1] + kept], None if logits is None else logits[:, :kept]

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Tell the generator how many of its guesses were right."""
        self._guesses.update_candidate_strategy(input_ids, scores, num_matches)  # type: ignore[arg-type]


class RegionGenerationMixin(GenerationMixin):
    """`generate` for prompts about pictures and regions."""

    config: Any

    def _expand_multimodal_outputs(  # type: ignore[override]
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, OspreyTPFeatures],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, OspreyTPFeatures]:
        """Repeat pictures and regions prompt by prompt, for beams and several returned sequences."""
        features = mm_encoder_output.get("image")
        if features is None:
            return mm_encoder_output
        pictures = list(features.pooler_output or [])  # empty where a session has read them into the cache
        repeated_pictures: list[Tensor] = []
        for placeholders in (input_ids == self.config.image_token_id).sum(dim=1).tolist():
            of_prompt: list[Tensor] = []
            while pictures and sum(map(len, of_prompt)) < placeholders:
                of_prompt.append(pictures.pop(0))
            repeated_pictures += of_prompt * expand_size
        region_tokens = features.region_tokens
        if region_tokens is not None:
            counts = (input_ids == self.config.region_token_id).sum(dim=1).tolist()
            groups = [group.repeat(expand_size, 1) for group in region_tokens.split(counts)]
            region_tokens = torch.cat(groups)
        repeated = OspreyTPFeatures(pooler_output=repeated_pictures, region_tokens=region_tokens)
        return {**mm_encoder_output, "image": repeated}

    def _get_candidate_generator(self, generation_config: Any, *args: Any, **kwargs: Any) -> CandidateGenerator:
        """Guesses for assisted generation and prompt lookup, without placeholders.

        Raises:
            ValueError: for an assistant that would need the pictures, which transformers does not hand on.
        """
        reads_pictures = isinstance(kwargs.get("assistant_model"), RegionGenerationMixin)
        if reads_pictures or generation_config.assistant_early_exit is not None:
            raise ValueError(
                "an assistant does not get the pictures; pass a language model alone as assistant_model, or "
                "prompt_lookup_num_tokens"
            )
        guesses = super()._get_candidate_generator(generation_config, *args, **kwargs)  # type: ignore[misc]
        placeholders = torch.tensor([self.config.image_token_id, self.config.region_token_id])
        return WithoutPlaceholders(guesses, placeholders)
