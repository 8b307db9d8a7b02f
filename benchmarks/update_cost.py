"""CPU seconds of one update of ACKTR beside one of A2C, on Pong with the same network and the same T · B.

An update differentiates a rollout and applies the gradient. Both learn again and again from one rollout each, in turns,
so that whatever else the machine does slows both. ACKTR's blocks have as many updates as lie between two inverses.

    python benchmarks/update_cost.py --blocks 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

from polyactor.agent.learner import Learner
from polyactor.agent.parts import Parts
from polyactor.agent.updater import Updater
from polyactor.data import Rollout
from polyactor.envs import env_spec
from polyactor.fields import replace_at
from polyactor.settings.presets import base_config
from polyactor.system.machine import torch_threads


@dataclass
class Side:
    """A method with a rollout that it learns from.

    Attributes:
        learner: differentiates.
        updater: applies.
        rollout: the rollout, with the memo of the parameters that acted.
    """

    learner: Learner
    updater: Updater
    rollout: Rollout

    def seconds(self, updates: int) -> float:
        """Return the mean CPU seconds of so many updates, which other processes change little."""
        start = time.process_time()
        for _ in range(updates):
            self.learner.replica.version = self.updater.counters.version  # θ' stays, and so does the memo of it
            for gradients in self.learner.gradients(self.rollout):
                self.updater.apply(gradients)
        return (time.process_time() - start) / updates


def side(method: str, torso: str, envs: int, every: int) -> Side:
    """Make a method on Pong and collect a rollout of 20 steps."""
    config = base_config(method, env="PongNoFrameskip-v4")
    values = {"envs": envs, "rollout": 20, "model.torso": torso, "precision": "fp32", "steps": 100_000_000}
    if method == "acktr":
        values |= {"optimizer.factors_every": 10, "optimizer.inverse_every": every}
    for path, value in values.items():
        config = replace_at(config, path, value)
    parts = Parts.fresh(config, env_spec(config.environment, atari=config.atari))
    replica, actor = parts.actor(0)
    rollout = actor.collect(replica.version)
    actor.close()
    return Side(parts.learner(0, replica), parts.updater(0), rollout)


def main() -> None:
    """Print the seconds and the ratio of both, as medians over blocks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torso", default="nature-cnn")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--every", type=int, default=50, help="updates from one inverse to the next")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with torch_threads(given.threads):
        a2c, acktr = (side(method, given.torso, given.envs, given.every) for method in ("a2c", "acktr"))
        a2c.seconds(2)
        acktr.seconds(11)  # the cold start, and the first inverse
        pairs = [(a2c.seconds(given.every), acktr.seconds(given.every)) for _ in range(given.blocks)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(acktr / a2c for a2c, acktr in pairs)
    print(f"{given.torso}, T · B = {20 * given.envs}: A2C {ours:.3f} s, ACKTR {theirs:.3f} s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
