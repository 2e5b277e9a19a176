"""Captures or trains, and dies by SIGKILL at a given moment.

    python kill_driver.py capture|train MODEL TEXT OUT WHAT DONE

Dies at the first call of progress(WHAT, DONE, _); WHAT "nothing" lets it end.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from sparseinfer import predictors


def main() -> None:
    torch.set_num_threads(1)
    how, model, text, out, what, done = sys.argv[1:]

    def die(name: str, count: int, _total: int) -> None:
        if name.startswith(what) and count == int(done):
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"out": out, "text": text, "tokens": 2048, "context": 64, "progress": die}
    if how == "train":
        options["recall"] = 0.9
    getattr(predictors, how)(model, **options)


if __name__ == "__main__":
    main()
