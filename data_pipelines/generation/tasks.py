"""What the language model is asked to write: one task a kind of instruction data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.generation import parsing
from data_pipelines.generation.parsing import Reading
from data_pipelines.generation.replies import ChatRequest
from data_pipelines.generation.scenes import Level, Scene

LEAST_TURNS, MOST_TURNS = 3, 8
"""Questions of one conversation."""

QUESTIONS_A_REGION = 3
"""Most short questions for each region."""

MOST_WORDS = 8
"""Longest short answer."""

_ROLE = """\
You write training data for a model that looks at a picture and talks about marked regions of it. You do not see the \
picture. You get its size, a name and a box [left, top, right, bottom] in pixels for each region, and often sentences \
that people wrote about the picture. Picture it from these, then write as somebody who looks at it.

Rules:
- Say only what the material supports: what things are, what they do, how large they look, how they stand to each \
other, in front, behind, left, right, near, alone. Do not make up colours, brands, numbers or writing that nobody \
mentions. If a sentence clearly is about a certain region, use it.
- Turn boxes into words such as "on the left" or "close to the lower edge". Never write a coordinate, a number of \
pixels, or the words "box", "caption" or "annotation".
- If names and sentences contradict each other, trust the names and leave the rest unsaid.
"""

_JSON = "Reply with one JSON object and nothing else, in exactly this form:\n"

_WHAT_A_REGION_IS: Mapping[Level, str] = {
    "object": "Each region is one object.",
    "part": (
        "Each region is a part of a larger object. Write about the part itself: its place on the object, its shape "
        "and what it is for, what state it is in, how it relates to the parts beside it. Name the object it belongs to."
    ),
}

_DESCRIPTIONS = """\
Task: describe every region, each in three to six sentences of its own that can be read without the others. Begin \
with what it is. Go on with what it does or how it is placed, and with what surrounds it. Speak of other things by \
their names; never write "region" with a number inside a description.

"""
_DESCRIPTIONS_FORM = """\
{"descriptions": [{"region": "<region1>", "description": "A dog that stands close to ..."}]}
with one item for every region of the list."""

_CONVERSATION = f"""\
Task: write a conversation between a curious person and an assistant who both look at the picture, of {LEAST_TURNS} to \
{MOST_TURNS} questions with answers. Refer to regions as <region1>, <region2> and so on, exactly so, in questions and, \
where it helps, in answers. The person does not know what the regions show, so no question may give it away. Begin \
with what can be seen (kind, action, place), go on to how regions relate, and end with one or two questions that need \
thought (why, what next, what for). Answers are whole sentences and certain; ask nothing that the material leaves open.

"""
_CONVERSATION_FORM = """\
{"turns": [{"question": "What is <region1> doing?", "answer": "It waits next to ..."}]}"""

_SHORT = f"""\
Task: write short questions about the regions, one to {QUESTIONS_A_REGION} for each, that have a single correct answer \
of a word or a short phrase. Refer to regions as <region1>, <region2> and so on, exactly so; every question refers to \
at least one. Vary what you ask: what it is, what kind, what it is made of or used for, what it does, what it is next \
to, which side it is on, yes or no. A question may not hold its own answer. Answers have no more than {MOST_WORDS} \
words and are in words, without a full stop.

"""
_SHORT_FORM = """\
{"questions": [{"question": "Which animal is <region1>?", "answer": "dog"}]}"""


@dataclass(frozen=True)
class Task:
    """A kind of instruction data.

    Attributes:
        sources: The source name of the records, for each level.
        instruction: What to write.
        form: The JSON form of the reply, with an example.
        tokens_a_region: Roughly how long replies are.
        read: From a reply's text and the number of regions to turns. Raises `Unfit`.
    """

    sources: Mapping[Level, str]
    instruction: str
    form: str
    tokens_a_region: int
    read: Callable[[str, int], Reading]

    def system_prompt(self, level: Level) -> str:
        """What the model is told before it gets a scene."""
        return f"{_ROLE}\n{_WHAT_A_REGION_IS[level]}\n\n{self.instruction}{_JSON}{self.form}"

    def estimated_reply_tokens(self, scene: Scene) -> int:
        """Roughly how many tokens the reply will have."""
        return 50 + self.tokens_a_region * len(scene.regions)


TASKS: Mapping[str, Task] = {
    "detailed-description": Task(
        sources={"object": "osprey-detailed-description", "part": "osprey-detailed-description"},
        instruction=_DESCRIPTIONS,
        form=_DESCRIPTIONS_FORM,
        tokens_a_region=120,
        read=parsing.read_descriptions,
    ),
    "conversation": Task(
        sources={"object": "osprey-conversation", "part": "osprey-conversation"},
        instruction=_CONVERSATION,
        form=_CONVERSATION_FORM,
        tokens_a_region=100,
        read=lambda text, regions: parsing.read_conversation(text, regions, LEAST_TURNS, MOST_TURNS),
    ),
    "short-form": Task(
        sources={"object": "osprey-short-form", "part": "osprey-part-level"},
        instruction=_SHORT,
        form=_SHORT_FORM,
        tokens_a_region=80,
        read=lambda text, regions: parsing.read_short_answers(
            text, regions, most=QUESTIONS_A_REGION * regions, most_words=MOST_WORDS
        ),
    ),
}
"""The tasks that need a language model, by their names on the command line."""


@dataclass(frozen=True)
class Sampling:
    """How the language model is asked.

    Attributes:
        model: Its name at the endpoint.
        temperature: Of the sampling; None leaves it to the endpoint.
        seed: Sent to the endpoint if given; also seeds which regions of a crowded picture are asked about.
        max_tokens: Longest reply.
        json_mode: Ask the endpoint to allow nothing but JSON.
        parameters: Further members of every request's body; None takes one out.
    """

    model: str
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int = 4096
    json_mode: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)


def request_of(scene: Scene, task: Task, level: Level, sampling: Sampling) -> ChatRequest:
    """The request that asks for `task` on a scene."""
    body: dict[str, Any] = {
        "model": sampling.model,
        "messages": [
            {"role": "system", "content": task.system_prompt(level)},
            {"role": "user", "content": str(scene)},
        ],
        "max_tokens": sampling.max_tokens,
    }
    if sampling.temperature is not None:
        body["temperature"] = sampling.temperature
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.json_mode:
        body["response_format"] = {"type": "json_object"}
    body.update(sampling.parameters)
    body = {name: value for name, value in body.items() if value is not None}
    return ChatRequest(scene.record.id, body)
