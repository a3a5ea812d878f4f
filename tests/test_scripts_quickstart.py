"""The quickstart's steps hang together, and a trial of all of them leaves a model, a report and working hints."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from osprey_tp.training.arguments import load_settings
from scripts.quickstart import DEFAULT_OUT, HELD_OUT_SAMPLES, Plan, main, steps_of
from scripts.steps import keys_of

from . import preloaded

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("from_scratch", [False, True])
def test_steps_come_after_what_they_read(from_scratch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = steps_of(Plan(tmp_path, scenes=100, seed=0, from_scratch=from_scratch))
    assert len(keys_of(steps)) == len(steps)
    assert ("tower" in keys_of(steps)) == from_scratch
    made = {str(step.output): step.name for step in steps}
    for step in steps:
        named = set(re.findall(r"[^\s=,:\[\]{}\"]+", " ".join(step.command)))
        read = {made[path] for path in named & set(made)} - {step.name}
        assert read <= set(step.after)
        assert str(tmp_path) in str(step)


def test_stages_are_those_of_the_configuration_files_unless_they_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    at_home = steps_of(Plan(DEFAULT_OUT, scenes=100, seed=0, from_scratch=False))
    elsewhere = steps_of(Plan(tmp_path, scenes=100, seed=0, from_scratch=False))
    for home, other in zip(at_home, elsewhere, strict=True):
        assert (home.name, home.after) == (other.name, other.after)
        if home.command[0] == "scripts.train":
            scored = (f"held_out={DEFAULT_OUT}/records/objects_test", f"held_out_samples={HELD_OUT_SAMPLES}")
            assert home.command[3:] == ("seed=0", *(() if home.name == "stage1" else scored))
            settings, moved = (load_settings(Path(step.command[2]), step.command[3:]) for step in (home, other))
            assert moved.as_dict() == json.loads(
                json.dumps(settings.as_dict()).replace(str(DEFAULT_OUT), str(tmp_path))
            )


def test_seed_and_size_decide_what_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first, second, larger = (
        keys_of(steps_of(Plan(tmp_path, scenes=scenes, seed=seed, from_scratch=False)))
        for scenes, seed in ((100, 0), (100, 1), (200, 0))
    )
    assert not set(first.values()) & set(second.values())
    assert not set(first.values()) & set(larger.values())


@pytest.mark.parametrize("arguments", [["--scenes", "0"], ["--seed", "-1"], ["--scenes", "many"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_trial_runs_every_command_once_and_leaves_a_model_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    python = preloaded.python(cold=["scripts.pretrain_tiny_language_model"])
    command = [python, "-m", "scripts.quickstart", "--trial", "--scenes", "16", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text("utf-8")
    for heading in ("Held-out scenes", "Scores", "Relations", "Captions", "Loss", "Held-out loss"):
        assert f">{heading}</h2>" in page
    assert "http://" not in re.sub(r"data:[^\"]+", "", page) and "https://" not in re.sub(r"data:[^\"]+", "", page)
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["classification"]["counts"]["regions"] == report["classification"]["metrics"]["colour"]["regions"]
    assert {"texture", "colour", "shape", "all_attributes"} <= set(report["classification"]["control"]["metrics"])
    held_out = {title: [entry["step"] for entry in scores] for title, scores in report["held_out"].items()}
    assert len(held_out) == 2 and all(steps == [2] for steps in held_out.values())
    for stage in ("stage2", "model"):
        assert (out / stage / "held_out.html").is_file() and list((out / stage / "tensorboard").iterdir())
    assert report["captions"]["captions"] == 4 and report["expressions"]["truth"]["answers"] > 0
    assert len(report["steps"]) == 12 and (out / "model" / "config.json").is_file()

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("done before") == 13

    ask = next(line for line in again.stdout.splitlines() if "osprey-tp describe" in line)
    arguments = shlex.split(ask[ask.index("describe") :])
    asked = subprocess.run([python, "-m", "osprey_tp", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    snippet = again.stdout[again.stdout.index("    from osprey_tp") :].replace("\n    ", "\n").strip()
    shown = subprocess.run([python, "-c", snippet], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith("["), shown.stderr
