"""Memory, open files and threads do not grow with requests or steps; `python -m tests.long_runs` looks at thousands."""

import pytest

from .long_runs import RUNS, Watch, measured, slopes_of

MOST_BYTES = {"app": 60_000, "train": 400_000}
"""That a unit may leave behind in so short a run, in which caches still fill up: one leaked picture, answer or batch of
activations is more."""


def test_what_grows_has_a_slope_and_what_only_begins_high_has_none() -> None:
    watch = Watch()
    for unit in range(100):
        watch.units.append(unit)
        watch.memory.append(10**9 + (5 * 10**7 if unit < 20 else 10**8))
        watch.files.append(10 + unit // 2)
        watch.threads.append(4)
    found = slopes_of(watch)
    assert found.bytes_a_unit == pytest.approx(0, abs=1e-3)
    assert found.files_a_unit == pytest.approx(0.5, abs=0.01)
    assert (found.threads_a_unit, found.threads, found.files) == (pytest.approx(0, abs=1e-9), 4, 59)


@pytest.mark.parametrize(("what", "units"), [("app", 120), ("train", 60)])
def test_nothing_grows_in_a_short_run(what, units) -> None:
    found = measured(RUNS[what], units)
    assert found.bytes_a_unit < MOST_BYTES[what], found
    assert abs(found.files_a_unit) < 0.05 and abs(found.threads_a_unit) < 0.05, found
