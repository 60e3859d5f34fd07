"""Trains VQGANs in one process or several; test_processes.py starts it.

    python -m tests.training.targets image ema [--kill STEP]
"""

import argparse

from tesserae.stage import Stage
from tesserae.training.vqgan import VQGANTask, train_vqgan


def kill_at(number):
    """Let every process end in that step."""
    plain = VQGANTask.step

    def step(self, step):
        if step == number:
            raise RuntimeError("killed")
        return plain(self, step)

    VQGANTask.step = step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--kill", type=int, default=-1)
    arguments = parser.parse_args()
    kill_at(arguments.kill)
    for target in arguments.targets:
        with Stage.open("vqgan", target) as stage:
            train_vqgan(stage)


if __name__ == "__main__":
    main()
