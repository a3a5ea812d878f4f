"""A language model as judge of answers, behind any OpenAI-compatible endpoint.

```
inquiries ─► data_pipelines.generation.endpoint.ask: several at once, again after failures, temperature 0
    ─► judge.replies.jsonl, keyed by the exact request ─► strict parsing ─► verdicts; what does not parse is counted
```

A reply that is not of the agreed form gives no score: it is left out of every mean, counted and named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from data_pipelines.generation.endpoint import Endpoint, EndpointError, ask
from data_pipelines.generation.replies import ChatRequest, ReplyLog

if TYPE_CHECKING:
    from eval.metrics import Scoring

REPLIES_FILE = "judge.replies.jsonl"
TEMPERATURE = 0

Verdict = TypeVar("Verdict")


@dataclass(frozen=True)
class Judge:
    """Who judges, and where the replies are kept.

    Attributes:
        endpoint: where the judge is served.
        model: its name there.
        replies: file of its replies; what stands there is not asked again.
        progress: show progress on stderr.
    """

    endpoint: Endpoint
    model: str
    replies: Path
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("the judge has no name; give --judge-model NAME, as the endpoint knows it")


def required(judge: Judge | None) -> Judge:
    """The judge.

    Raises:
        ValueError: there is none.
    """
    if judge is None:
        raise ValueError("these answers are scored by a judge; give --judge URL and --judge-model NAME")
    return judge


@dataclass(frozen=True)
class Inquiry(Generic[Verdict]):
    """One thing to ask a judge.

    Attributes:
        id: what it is about; names the reply where it cannot be parsed.
        prompt: the user's message.
        parse: the reply's text to a verdict; None if the reply is not of the agreed form.
        system: the system's message; "" for none.
    """

    id: str
    prompt: str
    parse: Callable[[str], Verdict | None]
    system: str = ""

    def request(self, judge: Judge, max_tokens: int) -> ChatRequest:
        """What is sent."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.prompt})
        body = {"model": judge.model, "messages": messages, "temperature": TEMPERATURE, "max_tokens": max_tokens}
        return ChatRequest(self.id, body)


@dataclass
class Verdicts(Generic[Verdict]):
    """What came of the inquiries, by their ids.

    Attributes:
        given: verdicts of replies that could be parsed.
        unparsable: ids whose reply is not of the agreed form.
        refused: ids that the endpoint refused as such (too long, filtered) -> what it said.
    """

    given: dict[str, Verdict] = field(default_factory=dict)
    unparsable: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def ask_judge(judge: Judge, inquiries: Sequence[Inquiry[Verdict]], max_tokens: int) -> Verdicts[Verdict]:
    """Ask everything that has no reply yet, and parse every reply.

    Args:
        judge: whom to ask.
        inquiries: what, with different ids.
        max_tokens: longest reply.

    Raises:
        EndpointError: the judge did not answer everything; what it answered is kept in `judge.replies`.
        ValueError: the environment variable of the key is not set, or the file of replies is broken or in use.
    """
    from tqdm import tqdm

    requests = [inquiry.request(judge, max_tokens) for inquiry in inquiries]
    verdicts: Verdicts[Verdict] = Verdicts()
    with ReplyLog(judge.replies) as replies:
        different = {request.key: request for request in requests}.values()
        with tqdm(total=len(different), unit="reply", desc="judging", disable=not judge.progress) as bar:
            outcome = ask(different, judge.endpoint, replies, progress=bar.update)
        try:
            outcome.require_all()
        except EndpointError as error:
            raise EndpointError(f"the judge {judge.model} did not answer everything: {error}") from None
        for inquiry, request in zip(inquiries, requests, strict=True):
            reply = replies.get(request)
            verdict = None if reply is None else inquiry.parse(reply.text)
            if reply is None:
                verdicts.refused[inquiry.id] = outcome.refused[request.key]
            elif verdict is None:
                verdicts.unparsable.append(inquiry.id)
            else:
                verdicts.given[inquiry.id] = verdict
    return verdicts


def note_judge(
    scoring: Scoring, judge: Judge, verdicts: Verdicts[Any], prompts: Iterable[str], max_tokens: int
) -> None:
    """Write down who judged, how it was asked, and what it did not answer in the agreed form.

    Args:
        scoring: where to.
        judge: who judged; of its address only the scheme is told.
        verdicts: what came of it.
        prompts: the texts that all its prompts are made of.
        max_tokens: longest reply.
    """
    counts = {"unparsable": len(verdicts.unparsable), "refused": len(verdicts.refused)}
    scheme = urlsplit(judge.endpoint.base_url).scheme
    scoring.details["judge"] = {
        "model": judge.model,
        "endpoint": f"OpenAI-compatible chat completions over {scheme}",
        "temperature": TEMPERATURE,
        "max_tokens": max_tokens,
        "prompt_checksum": hashlib.sha256("\n".join(prompts).encode("utf-8")).hexdigest(),
        "replies": len(verdicts.given) + len(verdicts.unparsable),
        **counts,
    }
    if verdicts.unparsable:
        scoring.notes["unparsable replies of the judge, left out"] = ", ".join(verdicts.unparsable)
    if verdicts.refused:
        told = "; ".join(f"{inquiry_id}: {why}" for inquiry_id, why in verdicts.refused.items())
        scoring.notes["requests that the judge refused, left out"] = told


def unusable(verdicts: Verdicts[Any]) -> str:
    """Why a score could not be measured although a judge was asked."""
    return (
        f"no reply of the judge gives one ({len(verdicts.unparsable)} unparsable, {len(verdicts.refused)} refused; "
        f"see {REPLIES_FILE})"
    )
