"""Trains under torchrun and writes down which samples each process saw: `python -m tests.order_under_torchrun OUT ...`.

Two runs of the same settings, the second interrupted after `steps` optimiser steps and resumed.
"""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.trainer import StageTrainer
from scripts import train


def texts(conversation):
    contents = [message["content"] for message in conversation]
    return [text if isinstance(text, str) else text[1]["text"] for text in contents]


@contextmanager
def samples_seen(steps=None):
    """Lists, while it is open, (finished optimiser steps, sample) for everything that is trained on.

    The samples travel from the loading processes with their batches. After `steps` optimiser steps the run breaks off.
    """
    seen, collate, training_step = [], ConversationCollator.__call__, StageTrainer.training_step

    def collate_with_samples(self, samples):
        return collate(self, samples) | {"samples": [[s["id"], *texts(s["conversation"])] for s in samples]}

    def note(self, model, inputs, *rest):
        if self.state.global_step == steps:
            raise KeyboardInterrupt
        seen.extend((self.state.global_step, sample) for sample in inputs.pop("samples"))
        return training_step(self, model, inputs, *rest)

    ConversationCollator.__call__, StageTrainer.training_step = collate_with_samples, note
    try:
        yield seen
    except KeyboardInterrupt:
        pass
    finally:
        ConversationCollator.__call__, StageTrainer.training_step = collate, training_step


def run(arguments, steps=None):
    """What is trained on by `scripts.train` with these arguments."""
    with samples_seen(steps) as seen:
        assert train.main(arguments) == 0
    return seen


def run_interrupted(arguments, steps, saved):
    """As `run`, broken off after `steps` optimiser steps and resumed from the checkpoint after `saved` of them."""
    before = run(arguments, steps)
    return [entry for entry in before if entry[0] < saved] + run(arguments)


if __name__ == "__main__":
    out, steps, saved, *arguments = sys.argv[1:]
    whole = run([*arguments, f"output={out}/whole"])
    resumed = run_interrupted([*arguments, f"output={out}/resumed"], int(steps), int(saved))
    result = {"whole": whole, "resumed": resumed}
    Path(out, f"rank{os.environ['RANK']}.json").write_text(json.dumps(result), encoding="utf-8")
