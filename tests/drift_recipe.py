"""The run whose losses are stored, so that no change of the project moves them unseen.

python -m tests.drift_recipe    makes tests/data/training_trajectory.json anew, after a change that is meant
"""

import json
import tempfile
from pathlib import Path

STORED = Path(__file__).parent / "data" / "training_trajectory.json"
STEPS = 50
TOLERANCE = 3e-5
"""Largest relative difference of a loss. Other attention code, vector widths, numbers of threads and start weights that
are off by 2e-7 moved no loss by more than 6e-7."""


def run_losses(folder: Path) -> list[float]:
    """Losses of 50 steps of stage 3 on records of every kind, in `folder`, which is empty."""
    from scripts import train

    from .mixed_records import write_mixed_records
    from .tiny_models import save_tiny_model

    records = ", ".join(map(str, write_mixed_records(folder / "data")))
    model = save_tiny_model(folder / "start")
    output = folder / "out"
    settings = [f"model={model}", f"data=[{records}]", f"output={output}", "stage=3", f"max_steps={STEPS}"]
    fixed = ["batch_size=4", "learning_rate=2e-4", "precision=fp32", "device=cpu", "workers=0", "log_every=1", "seed=3"]
    if train.main([*settings, *fixed]):
        raise RuntimeError("the run of the drift guard failed")
    return [entry["loss"] for entry in json.loads((output / "training_log.json").read_text())]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        STORED.write_text(json.dumps(run_losses(Path(made))) + "\n")
