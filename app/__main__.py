"""`python -m app`: point at anything in a picture, read what the model says about it."""

import argparse
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from app.memory import share_one_heap
from osprey_tp.loading_options import add_loading_options, loading_options

USERS_VARIABLE, KEY_VARIABLE = "OSPREY_TP_AUTH", "OSPREY_TP_API_KEY"
UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"


def build_parser() -> argparse.ArgumentParser:
    """The command line of the app."""
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Serve the app: point at anything in a picture, read the model's answer."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder, as training writes it")
    parser.add_argument(
        "--segmenter",
        default="grabcut",
        metavar="NAME[:PATH]",
        help="what turns a click into a mask: grabcut, or sam:PATH (a file or a folder) (default: %(default)s)",
    )
    parser.add_argument("--examples", type=Path, metavar="DIR", help="folder of pictures to pick from")
    add_loading_options(parser)

    serving = parser.add_argument_group("who can reach it")
    serving.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    serving.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    serving.add_argument("--share", action="store_true", help="make a public link through gradio.live")
    serving.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD|FILE",
        help="let in these users only; a file has one USER:PASSWORD a line; may be repeated "
        f"(environment: {USERS_VARIABLE}, separated by newlines)",
    )
    serving.add_argument(
        "--api-key",
        metavar="KEY",
        help="bearer token for /v1; without one, /v1 is closed where --auth is given, open otherwise "
        f"(environment: {KEY_VARIABLE}, which other users of this machine cannot see)",
    )

    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", type=int, default=32, metavar="N", help="requests that may wait (default: %(default)s)"
    )
    limits.add_argument(
        "--request-seconds",
        type=float,
        default=120,
        metavar="S",
        help="that one request may work (default: %(default)s)",
    )
    limits.add_argument(
        "--max-upload-mb", type=float, default=64, metavar="MB", help="of a picture's file (default: %(default)s)"
    )
    limits.add_argument(
        "--max-pixels", type=int, default=100_000_000, metavar="N", help="of a picture (default: %(default)s)"
    )
    limits.add_argument(
        "--max-pictures", type=int, default=16, metavar="N", help="kept open at a time (default: %(default)s)"
    )
    limits.add_argument(
        "--cache-mb", type=float, default=4096, metavar="MB", help="that open pictures may hold (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(options)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"app: {' '.join(str(error).split())}\n")
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Loads what the command line names and serves it until stopped. What is cheap to check is checked first."""
    if not (options.model / "config.json").is_file():
        raise FileNotFoundError(f"no model in {options.model}: expected a folder with a config.json; see --model")
    require_free_port(options.host, options.port)
    _require_sensible_limits(options)
    users = read_users([*options.auth, *os.environ.get(USERS_VARIABLE, "").splitlines()])
    api_key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    share_one_heap()
    with own_upload_folder():
        load_and_serve(options, users, api_key)


@contextmanager
def own_upload_folder() -> Iterator[None]:
    """A folder for what is uploaded to this app alone: Gradio's own is that of all apps on a machine, and the first of
    them that ends deletes the files that it has in common with others.
    """
    before = os.environ.get(UPLOADS_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="osprey_tp-app-") as folder:
        os.environ[UPLOADS_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[UPLOADS_VARIABLE]
            if before is not None:
                os.environ[UPLOADS_VARIABLE] = before


def load_and_serve(options: argparse.Namespace, users: Sequence[tuple[str, str]], api_key: str | None) -> None:
    """Loads what the command line names, now that everything cheap is checked, and serves it until stopped."""
    try:
        from app.interface import build_interface, find_examples
        from app.server import Access, serve, start
    except ImportError as error:
        raise ImportError(f"the app needs the package {error.name}: pip install 'osprey_tp[app]'") from error
    import torch

    from app.service import Limits, Service
    from osprey_tp import RegionDescriber
    from osprey_tp.segmenters import load_segmenter

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    examples = find_examples(options.examples) if options.examples else []
    segmenter = load_segmenter(options.segmenter, device=device)
    _say(f"loading {options.model} on {device} ...")
    describer = RegionDescriber.from_pretrained(options.model, **asdict(loading_options(options)))
    limits = Limits(
        waiting=options.queue,
        request_seconds=options.request_seconds,
        upload_bytes=int(options.max_upload_mb * 2**20),
        pixels=options.max_pixels,
        pictures=options.max_pictures,
        cache_bytes=int(options.cache_mb * 2**20),
    )
    service = Service(describer, segmenter, limits, name=_name(options.model), device=device)
    blocks = build_interface(service, examples)
    access = Access(tuple(users), api_key)
    address = start(blocks, service, access, host=options.host, port=options.port, share=options.share)
    _say(f"open {address} in a browser; stop with Ctrl-C")
    serve(blocks, service)
    _say("stopped")


def require_free_port(host: str, port: int) -> None:
    """Raises `OSError` naming the port and the remedy if nothing can listen there."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error


def read_users(entries: Sequence[str]) -> list[tuple[str, str]]:
    """(name, password) pairs out of USER:PASSWORD texts and names of files that have one a line.

    Raises `ValueError` without telling any password if one is malformed or a name is there twice.
    """
    lines: list[str] = []
    for entry in filter(None, map(str.strip, entries)):
        lines += entry_lines(entry)
    users = [(name, password) for name, _, password in (line.partition(":") for line in lines)]
    for number, (name, password) in enumerate(users, start=1):
        if not name or not password:
            raise ValueError(f"user {number} of --auth is not USER:PASSWORD, nor a file of such lines")
    names = [name for name, _ in users]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"--auth has the user {double} twice")
    return users


def entry_lines(entry: str) -> list[str]:
    """The lines of the file that an entry of --auth names, or the entry itself."""
    path = Path(entry)
    try:
        if not path.is_file():
            return [entry]
    except OSError:  # no name that a file can have
        return [entry]
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{path} names no user; give --auth a file with one USER:PASSWORD a line")
    return found


def _require_sensible_limits(options: argparse.Namespace) -> None:
    least = {"queue": 0, "max_pixels": 1, "max_pictures": 1}
    for name, number in least.items():
        if getattr(options, name) < number:
            raise ValueError(f"--{name.replace('_', '-')} must be {number} or more, got {getattr(options, name)}")
    for name in ("request_seconds", "max_upload_mb", "cache_mb"):
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(options, name):g}")


def _name(model: Path) -> str:
    """The last two parts of the model's path: the folder is often called just `model`."""
    return "/".join(model.resolve().parts[-2:]).lstrip("/")


def _say(text: str) -> None:
    sys.stdout.write(f"app: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
