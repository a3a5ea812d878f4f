"""The output folder of a run: written aside, renamed when complete; what an interrupted run left is found again."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from osprey_tp.files import LOCK_FILE, held, name_folder, write_json, write_text
from osprey_tp.outside import first_line
from osprey_tp.training.arguments import RunSettings

if TYPE_CHECKING:
    from transformers import TrainingArguments

SETTINGS_FILE = "run_settings.yaml"
DATA_FILE = "training_data.json"
LOG_FILE = "training_log.json"
TABLE_FILE = "trained_parts.json"
MANIFESTS_FILE = "data_manifests.json"
CONFIGURATION_FILE = "run_configuration.json"

_NO_MATTER_FOR_THE_RESULT = (
    *("resume", "workers", "save_every", "keep_checkpoints", "report_to", "output", "device"),
    *("on_missing_image", "max_skipped", "held_out", "held_out_samples", "evaluate_every", "spike_factor"),
    "gradient_checkpointing",
)
_IN_PIECES = ("batch_size", "gradient_accumulation")
"""Their product is what matters for the result."""
_PACKAGES = ("osprey_tp", "torch", "transformers", "accelerate", "deepspeed", "peft", "numpy", "pillow")


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
            self._empty_work()
        saved = self.work / DATA_FILE
        if saved.is_file() and _read_json(saved) != data:
            raise ValueError(
                f"{self.work} holds a run with other data: {saved} differs from what {', '.join(settings.data)} holds "
                "now; remove it, name another output, or set resume=never"
            )
        write_json(saved, data)
        write_settings(self.work, settings)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other runs out of the work folder; yields False where the file system knows no locks.

        Raises:
            ValueError: if another run is in it.
        """
        try:
            with held(self.work) as locked:
                yield locked
        except BlockingIOError:
            raise ValueError(f"another run works in {self.work}: wait for it, or name another output") from None

    @property
    def result(self) -> Path:
        """Where the finished model is written before `publish` renames it."""
        return self.work / "result"

    def publish(self) -> None:
        """Give the complete result its name and remove the work folder.

        Whenever the process ends in this, either the output is not there and the run goes on from its last checkpoint,
        or it is there, complete, and the next start removes what is left of the work folder.

        Raises:
            ValueError: if the weights are not in the result.
        """
        if not any(self.result.glob("*.safetensors")):
            raise ValueError(
                f"{self.result} holds no weights; under ZeRO-3 the DeepSpeed file must set "
                "zero_optimization.stage3_gather_16bit_weights_on_model_save: true"
            )
        name_folder(self.result, self.output)
        self.remove_work()

    def remove_work(self) -> None:
        """Remove the work folder of a run that is finished."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _empty_work(self) -> None:
        """Remove everything but the lock, first that which tells that there is a run to go on with."""
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / SETTINGS_FILE).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write the settings of a run into `folder`."""
    text = yaml.safe_dump(settings.as_dict(), sort_keys=False)
    write_text(folder / SETTINGS_FILE, text)


def run_configuration(settings: RunSettings, arguments: TrainingArguments) -> dict[str, Any]:
    """What a run computed with, in values that JSON can hold: settings, arguments, DeepSpeed's file, versions."""
    deepspeed = None if settings.deepspeed is None else _read_json(Path(settings.deepspeed))
    return {
        "settings": settings.as_dict(),
        "stage": {"number": settings.stage, "learning_rates": dict(settings.resolved_stage.learning_rates)},
        "processes": arguments.world_size,
        "training_arguments": json.loads(arguments.to_json_string()),
        "deepspeed": deepspeed,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _require_same(folder: Path, settings: RunSettings) -> None:
    """Raise ValueError, naming the first difference, unless `folder` holds a run with the same settings."""
    saved = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    asked = settings.as_dict()
    same_step = math.prod(saved.get(name, 0) for name in _IN_PIECES) == math.prod(asked[name] for name in _IN_PIECES)
    free = {*_NO_MATTER_FOR_THE_RESULT, *(_IN_PIECES if same_step else ())}
    for name, value in asked.items():
        if name not in free and saved.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with {name}: {saved.get(name)}, not {value}; remove it, name another output, "
                "or set resume=never"
            )


@contextmanager
def telling_what_cannot_be_written(folder: Path) -> Iterator[None]:
    """Turn every error but a ValueError into one that names the folder of the finished model; writers have their own.

    Raises:
        OSError: in its place.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise OSError(
            f"the model cannot be written to {folder}: {reason}; its last checkpoint is kept: mend this and give the "
            "same command again"
        ) from error
