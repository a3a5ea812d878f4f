"""Trains under torchrun; from optimiser step 4 on, the loss of the last process is no number.

`python -m tests.watching_under_torchrun key=value ...`, the settings of `scripts.train`.
"""

import math
import os
import sys

from osprey_tp.training.trainer import StageTrainer
from scripts import train

if __name__ == "__main__":
    compute_loss = StageTrainer.compute_loss
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def broken(self, model, inputs, *rest, **named):
        loss = compute_loss(self, model, inputs, *rest, **named)
        return loss * math.nan if is_last and self.state.global_step == 3 else loss

    StageTrainer.compute_loss = broken
    sys.exit(train.main(sys.argv[1:]))
