"""What a process that opens a model has imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .tiny_models import save_tiny_model

ROOT = Path(__file__).resolve().parents[1]
UNUSED = {
    *("gradio", "deepspeed", "sklearn", "matplotlib", "cv2", "datasets", "pandas", "peft", "segment_anything"),
    *("sentence_transformers", "tensorboard", "torchaudio", "tensorflow", "fastapi", "playwright", "pytest"),
}
"""Optional or heavy packages that opening a model and asking it does not need."""

LIST_MODULES = """
import sys

def tell(step):
    print("MODULES", step, *{name.split(".")[0] for name in sys.modules})

import osprey_tp
tell("import")
for name in osprey_tp.__all__:
    getattr(osprey_tp, name)
tell("names")
describer = osprey_tp.RegionDescriber.from_pretrained(sys.argv[1], device="cpu")
tell("open")
import numpy
session = describer.open(numpy.zeros((60, 80, 3), dtype=numpy.uint8))
session.ask([{"box": [5, 5, 40, 30]}], max_new_tokens=2)
tell("ask")
"""


def test_nothing_is_imported_that_is_not_used(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    command = [sys.executable, "-c", LIST_MODULES, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MODULES")]
    modules = {step: set(names) for step, *names in listed}
    assert list(modules) == ["import", "names", "open", "ask"]
    assert not {"torch", "transformers", "numpy", "PIL", "pycocotools"} & modules["import"]
    assert "torch" in modules["names"]
    for step, names in modules.items():
        assert not UNUSED & names, step
