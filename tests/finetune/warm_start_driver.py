"""Runs a warm start, and dies by SIGKILL once enough layers are finished.

python warm_start_driver.py MODEL WORK LAYERS
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.finetune.warm_start import Recipe, warm_start


def main() -> None:
    torch.set_num_threads(1)
    model, work, layers = sys.argv[1:]
    windows = torch.randint(3, 259, (16, 64), generator=torch.Generator().manual_seed(0))
    run = warm_start(
        Checkpoint.open(model),
        act="relu",
        windows=windows,
        dtype="fp32",
        work=Path(work),
        recipe=Recipe(epochs=2),
    )
    for done, _ in enumerate(run, start=1):
        if done == int(layers):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
