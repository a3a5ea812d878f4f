"""Training runs that are forked from one warm process and killed with -9: `python -m tests.killable_training`.

It reads one run a line from stdin, with the keyword arguments of `WarmTraining.run`, and answers with a line `{"codes",
"moments"}`. Moments are counted in the first process of a run: each training step, each file or folder below the output
that is opened, made, renamed or removed, and each file of tensors when half of it is on the disk. At the moment `kill`
all processes of the run are killed. `terminate` is [rank, batch]: that process gets SIGTERM when it begins that batch.
`fault` is [moment, errno]: from that moment on nothing can be written below the output, with that error.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from . import preloaded

ROOT = Path(__file__).resolve().parents[1]
OF_A_RUN = (
    *("data_pipelines.preflight", "osprey_tp.training.held_out", "osprey_tp.training.self_check"),
    *("osprey_tp.training.start", "osprey_tp.training.trainer", "osprey_tp.training.trainer_arguments"),
    *("scripts.held_out_page", "scripts.train"),
)
WRITES = {"os.rename", "os.mkdir"}
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}


class Moments:
    """Counts the moments of a process, and ends it at one of them."""

    def __init__(self, folder: Path, kill: int | None, terminate: int | None, fault: tuple[int, int] | None) -> None:
        self.folder, self.kill, self.terminate, self.fault = str(folder), kill, terminate, fault
        self.count = self.batches = 0

    def pass_by(self, torn: Path | None = None) -> None:
        self.count += 1
        if self.count == self.kill:
            if torn is not None:
                os.truncate(torn, torn.stat().st_size // 2)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def fail_if_due(self, error: type[Exception], path: object) -> None:
        """Libraries that write tensors themselves raise errors of their own, with the words of the system in them."""
        if self.fault is not None and self.count >= self.fault[0]:
            number = self.fault[1]
            if error is OSError:
                raise OSError(number, os.strerror(number), str(path))
            raise error(f"I/O error: {os.strerror(number)} (os error {number})")

    def watch(self) -> None:
        import torch
        import transformers.modeling_utils as modeling

        from osprey_tp.training.trainer import StageTrainer

        def audit(event: str, arguments: tuple) -> None:
            if event in EVENTS and str(arguments[0]).startswith(self.folder):
                self.pass_by()
                if event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                    self.fail_if_due(OSError, arguments[0])

        def tearing(save, place):
            def saved(*arguments, **options):
                if isinstance(arguments[place], (str, Path)):
                    self.fail_if_due(RuntimeError, arguments[place])
                save(*arguments, **options)
                if isinstance(arguments[place], (str, Path)):
                    self.pass_by(Path(arguments[place]))

            return saved

        step = StageTrainer.training_step

        def counted(trainer, *arguments):
            self.pass_by()
            self.batches += 1
            if self.batches == self.terminate:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer, *arguments)

        StageTrainer.training_step = counted
        torch.save = tearing(torch.save, 1)
        modeling.safe_save_file = tearing(modeling.safe_save_file, 1)
        sys.addaudithook(audit)


def child(run: dict, rank: int, port: int, log: Path) -> None:
    """Never returns."""
    code = 3
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        if run["processes"] > 1:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run["processes"], "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
            os.environ["LOCAL_WORLD_SIZE"] = str(run["processes"])
        ended, batch = run["terminate"]
        kill, batch = run["kill"] if rank == 0 else None, batch if rank == ended else None
        moments = Moments(Path(run["output"]), kill, batch, run["fault"])
        moments.watch()
        from scripts import train

        code = train.main(run["arguments"])
        if rank == 0:
            log.with_suffix(".moments").write_text(str(moments.count))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def train_in_children(run: dict) -> dict:
    log = Path(run["log"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(run["processes"]):
        process = os.fork()
        if not process:
            os.setpgid(0, children[0] if children else 0)
            child(run, rank, port, log)
        children.append(process)
        os.setpgid(process, children[0])
    codes = {}
    while len(codes) < len(children):
        process, status = os.wait()
        codes[process] = os.waitstatus_to_exitcode(status)
    moments = log.with_suffix(".moments")
    return {
        "codes": [codes[process] for process in children],
        "moments": int(moments.read_text()) if moments.exists() else None,
    }


class WarmTraining:
    """The warm process, seen from a test; use it as a context manager."""

    def __init__(self, logs: Path, *modules: str, **environment: str) -> None:
        self.logs, self.modules = logs, modules
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
        self.runs = 0

    def __enter__(self):
        self.process = subprocess.Popen(
            [preloaded.python(), "-m", "tests.killable_training", *self.modules],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(
        self,
        arguments: list[str],
        output: Path,
        kill: int | None = None,
        processes: int = 1,
        terminate: tuple[int, int] | tuple[None, None] = (None, None),
        fault: tuple[int, int] | None = None,
    ) -> dict:
        """Exit codes, number of moments if the run got to its end, and what it said."""
        self.runs += 1
        log = self.logs / f"run{self.runs}.log"
        order = {"arguments": [*arguments, f"output={output}"], "output": str(output), "kill": kill}
        order |= {"processes": processes, "terminate": terminate, "fault": fault, "log": str(log)}
        line = json.dumps(order)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return {**json.loads(self.process.stdout.readline()), "said": log.read_text()}


if __name__ == "__main__":
    preloaded.load((*preloaded.PACKAGES, *OF_A_RUN, *sys.argv[1:]))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(train_in_children(json.loads(line))) + "\n")
        sys.stdout.flush()
