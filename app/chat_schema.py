"""What `POST /v1/chat/completions` takes: the form of OpenAI's, with one more kind of content, regions of the picture.

```json
{"model": "...", "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
    {"type": "regions", "regions": [{"box": [10, 20, 110, 90]}, {"points": [[300, 200]]}]},
    {"type": "text", "text": "What is region1 doing to region2?"}]}]}
```

A message that has regions either says `<mask>` once for each, in their order, or not at all; then they are introduced
by name, and counted on from message to message: region1, region2, ... The first message holds the picture.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api_schema import LONGEST_TEXT, Region, Strict
from app.generation import Sampling
from osprey_tp.outside import require_unicode
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN, region_introduction

MOST_REGIONS = 64  # of one conversation
MOST_NEW_TOKENS = 2048
DEFAULT_NEW_TOKENS = 512

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


class RequestError(ValueError):
    """A request that cannot be answered, as OpenAI's interface tells it."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code


class TextPart(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """The picture itself, in base64. `detail` changes nothing: the model reads every picture in full."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """The picture of the conversation."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RegionsPart(Strict):
    """Regions of the picture that a message speaks of."""

    type: Literal["regions"]
    regions: Annotated[list[Region], Field(min_length=1, max_length=MOST_REGIONS)]


Part = Annotated[TextPart | ImagePart | RegionsPart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn. What clients send along of earlier answers (`refusal`, `tool_calls`, ...) is of no matter if empty."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(Strict):
    """A conversation whose last message wants an answer. What cannot be honoured is refused."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=100)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=4)]
        | None
    ) = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None

    @property
    def sampling(self) -> Sampling:
        """Greedy unless a temperature is given."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_NEW_TOKENS,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            seed=self.seed,
            stop=stop,
        )


@dataclass(frozen=True)
class ChatAbout:
    """A conversation about a picture.

    Attributes:
        picture: Content of the picture's file.
        turns: (role, text) pairs, with a `<mask>` for every region.
        regions: Of all turns, in order.
    """

    picture: bytes
    turns: list[tuple[str, str]]
    regions: list[Region]


def read_conversation(request: ChatRequest, most_bytes: int) -> ChatAbout:
    """The conversation of a request.

    Args:
        request: Checked by its schema.
        most_bytes: That the picture's file may have.

    Raises:
        RequestError: saying which message cannot be used.
    """
    urls: list[str] = []
    regions: list[Region] = []
    turns: list[tuple[str, str]] = []
    for index, message in enumerate(request.messages):
        place = f"messages.{index}.content"
        parts: list[Any] = (
            message.content if isinstance(message.content, list) else [TextPart(type="text", text=message.content)]
        )
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
        try:
            require_unicode(text, "the text")
        except ValueError as error:
            raise RequestError(str(error), param=place) from None
        shown = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        new = [region for part in parts if isinstance(part, RegionsPart) for region in part.regions]
        if message.role == "assistant":
            if shown or new:
                raise RequestError("an answer of the assistant is text alone", param=place)
            # a model may have written what stands for pictures and regions elsewhere
            text = text.replace(REGION_TOKEN, "").replace(IMAGE_TOKEN, "")
        elif IMAGE_TOKEN in text:
            raise RequestError(f"{IMAGE_TOKEN} has no place in a text: the picture is a part of its own", param=place)
        if shown and index:
            raise RequestError("a conversation is about one picture, which its first message holds", param=place)
        urls += shown
        if new and REGION_TOKEN not in text:
            text = region_introduction(len(new), first=len(regions)) + text
        if message.role == "user" and text.count(REGION_TOKEN) != len(new):
            raise RequestError(
                f"{text.count(REGION_TOKEN)} {REGION_TOKEN} placeholders, {len(new)} regions in one message; write "
                f"{REGION_TOKEN} once for each region, or not at all",
                param=place,
            )
        regions += new
        turns.append((message.role, text))
    _require_sizes(turns, regions)
    if len(urls) != 1:
        raise RequestError(
            f"the first message holds {len(urls)} pictures; give 1, as an image_url part", param="messages.0.content"
        )
    return ChatAbout(_decode(urls[0], most_bytes), turns, regions)


def _require_sizes(turns: list[tuple[str, str]], regions: list[Region]) -> None:
    if len(regions) > MOST_REGIONS:
        raise RequestError(
            f"the conversation has {len(regions)} regions, the limit is {MOST_REGIONS}", param="messages"
        )
    characters = sum(len(text) for _, text in turns)
    if characters > LONGEST_TEXT:
        raise RequestError(
            f"the conversation has {characters} characters, the limit is {LONGEST_TEXT}",
            param="messages",
            code="context_length_exceeded",
        )


def _decode(url: str, most_bytes: int) -> bytes:
    param = "messages.0.content"
    match = _DATA_URL.match(url)
    if match is None:
        raise RequestError(
            "this server fetches no pictures: send the picture itself, as data:image/png;base64,...", param=param
        )
    if (len(url) - match.end()) * 3 // 4 > most_bytes + 2:
        raise RequestError(
            f"the picture's file is larger than the limit of {most_bytes} bytes",
            status=413,
            param=param,
            code="image_too_large",
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("the picture is not in base64", param=param, code="invalid_base64") from None
