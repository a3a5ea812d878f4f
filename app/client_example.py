"""`python -m app.client_example PICTURE`: everything that a served app does for programs, step by step.

Needs gradio_client and openai, nothing of this project: copy what is useful.
"""

import argparse
import base64
import mimetypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m app.client_example", description="Use a served app by programs.")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="file of a picture")
    parser.add_argument(
        "--address", default="http://127.0.0.1:7860", help="where the app is served (default: %(default)s)"
    )
    parser.add_argument("--point", default="", metavar="X,Y", help="in source pixels (default: the middle)")
    parser.add_argument("--user", default="", metavar="USER:PASSWORD", help="if the app was started with --auth")
    parser.add_argument("--api-key", default="none", metavar="KEY", help="if the app was started with one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        region = by_gradio_client(options.picture, options.address, options.point, options.user)
        by_openai(options.picture, options.address, region, options.api_key)
    except Exception as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def by_gradio_client(picture: Path, address: str, point: str, user: str) -> dict[str, Any]:
    """The endpoints that gradio_client calls; returns the region that was found at the point."""
    from gradio_client import Client, handle_file

    name, _, password = user.partition(":")
    client = Client(address, auth=(name, password) if user else None, verbose=False)
    image = handle_file(str(picture))
    everything = client.predict(image=image, most=8, question="", api_name="/everything")
    x, y = map(float, point.split(",")) if point else (everything["width"] / 2, everything["height"] / 2)
    say(f"{len(everything['regions'])} regions in {everything['height']} x {everything['width']} pixels")

    found = client.predict(image=image, points=[[x, y]], api_name="/segment")["candidates"]
    say(f"{len(found)} masks at ({x:g}, {y:g}), best score {found[0]['score']:.2f}")
    region = {"segmentation": found[0]["segmentation"]}

    half = [0, 0, everything["width"] // 2, everything["height"]]
    told = client.predict(image=image, regions=[region, {"box": half}], max_new_tokens=32, api_name="/describe")
    for answer in told["answers"]:
        say(f"described: {answer}")

    ranked = client.predict(image=image, expression="a red disc", regions=[region, {"box": half}], api_name="/find")
    for match in ranked["matches"]:
        say(f"region {match['index'] + 1} fits 'a red disc' with a share of {match['share']:.2f}")
    client.close()
    return region


def by_openai(picture: Path, address: str, region: dict[str, Any], api_key: str) -> None:
    """A conversation through the interface of OpenAI's; regions are one more kind of content."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{address.rstrip('/')}/v1", api_key=api_key)
    model = client.models.list().data[0].id
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    messages: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "regions", "regions": [region]},
                {"type": "text", "text": "What is region1?"},
            ],
        }
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=32)
    say(f"{model}: {answer.choices[0].message.content} ({answer.usage.total_tokens if answer.usage else 0} tokens)")

    messages += [
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "Tell me more about region1."},
    ]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=32, temperature=0.7, seed=1, stream=True
    )
    say("streamed: " + "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))


def say(text: str) -> None:
    """Prints a line."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
