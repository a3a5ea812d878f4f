"""The output folder of a run: written aside, renamed when complete; what an interrupted run left is found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from osprey_tp.training.arguments import RunSettings

SETTINGS_FILE = "run_settings.yaml"
DATA_FILE = "training_data.json"
LOG_FILE = "training_log.json"
TABLE_FILE = "trained_parts.json"

_NO_MATTER_FOR_THE_RESULT = (
    *("resume", "workers", "save_every", "keep_checkpoints", "report_to", "output", "device"),
    *("held_out", "held_out_samples", "evaluate_every", "spike_factor"),
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        output: The finished folder: model, processor, settings, loss log.
        work: Beside it, while the run goes on: settings, data, checkpoints, and at last the folder to rename.
    """

    output: Path
    work: Path

    @classmethod
    def of(cls, settings: RunSettings) -> RunFolder:
        """The folders of the run that `settings` describes."""
        output = Path(settings.output)
        return cls(output=output, work=output.with_name(f"{output.name}.unfinished"))

    def is_finished(self, settings: RunSettings) -> bool:
        """Whether there is nothing left to do.

        Raises:
            ValueError: if a folder holds a run with other settings, or anything else.
        """
        if self.output.exists():
            if settings.resume == "auto" and (self.output / SETTINGS_FILE).is_file():
                _require_same(self.output, settings)
                return True
            raise ValueError(f"{self.output} exists; remove it, or name another output")
        if settings.resume == "auto" and (self.work / SETTINGS_FILE).is_file():
            _require_same(self.work, settings)
        return False

    def begin(self, settings: RunSettings, data: Mapping[str, Any]) -> None:
        """Make the work folder, or keep that of an interrupted run; write down settings and data.

        Args:
            settings: The run.
            data: What decides its samples and their order, in values that JSON can hold.

        Raises:
            ValueError: if the interrupted run saw other data.
        """
        if settings.resume == "never" or not (self.work / SETTINGS_FILE).is_file():
            shutil.rmtree(self.work, ignore_errors=True)
        saved = self.work / DATA_FILE
        if saved.is_file() and json.loads(saved.read_text(encoding="utf-8")) != data:
            raise ValueError(
                f"{self.work} holds a run with other data: {saved} differs from what {', '.join(settings.data)} holds "
                "now; remove it, name another output, or set resume=never"
            )
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(saved, data)
        write_settings(self.work, settings)

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint in the work folder."""
        complete = [path.parent for path in self.work.glob("checkpoint-*/trainer_state.json")]
        return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    @property
    def result(self) -> Path:
        """Where the finished model is written before `publish` renames it."""
        return self.work / "result"

    def publish(self) -> None:
        """Rename the complete result to the output folder and remove the work folder."""
        self.result.rename(self.output)
        shutil.rmtree(self.work)


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write the settings of a run into `folder`."""
    text = yaml.safe_dump(settings.as_dict(), sort_keys=False)
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _require_same(folder: Path, settings: RunSettings) -> None:
    """Raise ValueError, naming the first difference, unless `folder` holds a run with the same settings."""
    saved = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    for name, value in settings.as_dict().items():
        if name not in _NO_MATTER_FOR_THE_RESULT and saved.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with {name}: {saved.get(name)}, not {value}; remove it, name another output, "
                "or set resume=never"
            )
