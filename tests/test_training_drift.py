"""The losses of a fixed run are those that were stored (`tests/drift_recipe.py` says how to store them anew)."""

import json
from pathlib import Path

import numpy as np

from .drift_recipe import STEPS, STORED, TOLERANCE, run_losses


def test_a_fixed_run_takes_the_stored_course(tmp_path: Path) -> None:
    stored, found = json.loads(STORED.read_text()), run_losses(tmp_path)
    assert len(stored) == len(found) == STEPS
    assert stored[-1] < 0.7 * stored[0]
    np.testing.assert_allclose(found, stored, rtol=TOLERANCE)
