"""Nothing asks the network: neither imports, nor a description, nor an evaluation, nor the app."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from data_pipelines.synthetic.writer import write_scenes

from .tiny_models import save_tiny_model

ROOT = Path(__file__).resolve().parents[1]
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")

# Imports every module, describes a region, evaluates, builds and serves the page. Prints what was asked of the network
# as JSON; an audit hook sees every socket of Python, and what it refuses fails.
TRY_EVERYTHING = """
import importlib, json, pkgutil, sys, threading
from pathlib import Path

asked = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "127.0.0.1"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0", b"127.0.0.1", b"localhost"):
        asked.append(f"{event} {host!r} in {threading.current_thread().name}")
        raise OSError("no network")

sys.addaudithook(watch)
root = Path(sys.argv[1])
for part in ("osprey_tp", "data_pipelines", "scripts", "eval", "app"):
    package = importlib.import_module(part)
    for module in pkgutil.walk_packages(package.__path__, f"{part}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from osprey_tp.cli import main as describe
picture = str(next((root / "scenes" / "images" / "test").glob("*")))
assert describe(["describe", picture, "--model", str(root / "model"), "--box", "1,1,30,30", "--device", "cpu"]) == 0

from eval.__main__ import main as evaluate
options = ["--model", str(root / "model"), "--data", str(root / "records"), "--out", str(root / "out")]
assert evaluate(["referring-classification", *options, "--max-new-tokens", "2"]) == 0

from app.interface import build_interface
from app.server import Access, start
from app.service import Limits, Service
from osprey_tp import RegionDescriber
from osprey_tp.segmenters import load_segmenter
service = Service(RegionDescriber.from_pretrained(root / "model"), load_segmenter("grabcut"), Limits(), name="m")
blocks = build_interface(service)
start(blocks, service, Access((), None), host="127.0.0.1", port=0 or int(sys.argv[2]))
blocks.close()
print("\\n" + json.dumps(asked))
"""


def test_nothing_asks_the_network(tmp_path: Path) -> None:
    from .serving import free_port

    save_tiny_model(tmp_path / "model")
    write_scenes(tmp_path / "scenes", {"test": 1}, progress=False)
    images = tmp_path / "scenes" / "images" / "test"
    prepare("synthetic", tmp_path / "scenes" / "annotations" / "instances_test.json", images, tmp_path / "records")
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    done = subprocess.run(
        [sys.executable, "-c", TRY_EVERYTHING, str(tmp_path), str(free_port())],
        cwd=ROOT,
        env=environment | {"HF_HOME": str(tmp_path / "home"), "GRADIO_ANALYTICS_ENABLED": "False"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_code_in_a_model_folder_is_never_executed(tmp_path: Path) -> None:
    from osprey_tp import RegionDescriber

    folder = save_tiny_model(tmp_path / "model")
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit\n")
    planted = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"), "planted.Planted")
    for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text("utf-8")) | {"auto_map": planted}
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model: OspreyTPConfig has no setting 'auto_map'"):
        RegionDescriber.from_pretrained(folder)
    own = json.loads((folder / "config.json").read_text("utf-8"))
    del own["auto_map"]
    (folder / "config.json").write_text(json.dumps(own))
    assert RegionDescriber.from_pretrained(folder).processor
    assert not (tmp_path / "executed").exists()
