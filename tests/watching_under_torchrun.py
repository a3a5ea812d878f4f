"""Trains under torchrun; at optimiser step 3 the loss of the last process is no number. Answers are few tokens long.

`python -m tests.watching_under_torchrun key=value ...`, the settings of `scripts.train`.
"""

import math
import os
import sys

from osprey_tp.training import held_out
from osprey_tp.training.trainer import StageTrainer
from scripts import train

if __name__ == "__main__":
    held_out.SHOWN_TOKENS = 8
    compute_loss = StageTrainer.compute_loss
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def broken(self, model, inputs, *rest, **named):
        loss = compute_loss(self, model, inputs, *rest, **named)
        return loss * math.nan if is_last and self.state.global_step == 2 else loss

    StageTrainer.compute_loss = broken
    sys.exit(train.main(sys.argv[1:]))
