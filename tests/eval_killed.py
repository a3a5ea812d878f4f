"""Runs an evaluation that is killed in the middle of writing an answer: `python -m tests.eval_killed PLACES ARGUMENTS`.

PLACES are the numbers of batches after which a run dies, such as 1,2: the second run dies after two more.
"""

import os
import signal
import sys

import torch

from eval.__main__ import main
from eval.predictions import PredictionLog, line_of
from osprey_tp.describer import RegionDescriber

torch.set_num_threads(1)
assert RegionDescriber


def die_after(batches: int) -> None:
    append = PredictionLog.append
    written = []

    def append_or_die(self, predictions):
        if len(written) == batches:
            half = "".join(map(line_of, predictions))[:-20]
            self._file.write(half.encode())
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(len(predictions))
        append(self, predictions)

    PredictionLog.append = append_or_die


for place in sys.argv[1].split(","):
    child = os.fork()
    if not child:
        die_after(int(place))
        os._exit(main(sys.argv[2:]))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
sys.exit(main(sys.argv[2:]))
