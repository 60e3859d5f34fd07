"""Trains a transformer in processes of which each other one finds the opposite of what the first one measures.

It also tells which process reads a checkpoint. test_processes.py starts it.
"""

import os

from tesserae.training import loop
from tesserae.training.transformer import TransformerTask, main

RANK = int(os.environ["RANK"])
plain, load = TransformerTask.evaluate, loop.load_checkpoint


def evaluate(self, step):
    measures = plain(self, step)
    return measures if RANK == 0 else {name: -value for name, value in measures.items()}


def load_checkpoint(*arguments, **options):
    print(f"process {RANK} looks for a checkpoint\n", end="", flush=True)
    return load(*arguments, **options)


if __name__ == "__main__":
    TransformerTask.evaluate, loop.load_checkpoint = evaluate, load_checkpoint
    main()
