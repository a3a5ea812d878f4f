"""`python -m app`: click an object in a picture, read what the model says about it."""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The command line of the app."""
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Serve the click-to-segment app: click an object, read the model's answer."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder, as training writes it")
    parser.add_argument(
        "--segmenter",
        default="grabcut",
        metavar="NAME[:PATH]",
        help="what turns a click into a mask: grabcut, or sam:CHECKPOINT (default: %(default)s)",
    )
    parser.add_argument("--examples", type=Path, metavar="DIR", help="folder of pictures to pick from")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve(options)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"app: {' '.join(str(error).split())}\n")
        return 1
    return 0


def serve(options: argparse.Namespace) -> None:
    """Loads what the command line names and serves it until interrupted. What is cheap to check is checked first."""
    if not (options.model / "config.json").is_file():
        raise FileNotFoundError(f"no model in {options.model}: expected a folder with a config.json; see --model")
    require_free_port(options.host, options.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from app.interface import build_interface, find_examples, launch
    except ImportError as error:
        raise ImportError(f"the app needs the package {error.name}: pip install 'osprey_tp[app]'") from error
    import torch

    from osprey_tp import RegionDescriber
    from osprey_tp.segmenters import load_segmenter

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    examples = find_examples(options.examples) if options.examples else []
    segmenter = load_segmenter(options.segmenter, device=device)
    _say(f"loading {options.model} on {device} ...")
    describer = RegionDescriber.from_pretrained(options.model, device=device)
    blocks = build_interface(describer, segmenter, examples, model_name=_name(options.model), device=device)
    _say(f"open http://{options.host}:{options.port} in a browser; stop with Ctrl-C")
    launch(blocks, options.host, options.port)


def require_free_port(host: str, port: int) -> None:
    """Raises `OSError` naming the port and the remedy if nothing can listen there."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error


def _name(model: Path) -> str:
    """The last two parts of the model's path: the folder is often called just `model`."""
    return "/".join(model.resolve().parts[-2:]).lstrip("/")


def _say(text: str) -> None:
    sys.stdout.write(f"app: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
