"""What the README shows runs as it stands there, on a tiny random model."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from .tiny_models import save_tiny_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "runs" / "quickstart" / "model")
    Image.new("RGB", (192, 128), "white").save(tmp_path / "picture.png")
    mask = np.zeros((128, 192), np.uint8)
    mask[20:60, 30:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown: dict = {}
    exec(example, shown)
    assert shown["session"].region_names == ["region1"]


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"
