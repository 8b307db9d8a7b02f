"""Sample Factory: asynchronous PPO on Pong with the Nature CNN.

Its own Atari wrappers and network; observations are divided by 255 and, like the returns, not normalised.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ale_py  # noqa: F401 - registers the games
from sample_factory.algo.utils.misc import LEARNER_ENV_STEPS, ExperimentStatus
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner
from sf_examples.atari.atari_utils import make_atari_env
from sf_examples.atari.train_atari import parse_atari_args


def main(settings: dict[str, Any]) -> None:
    """Train until killed."""
    register_env("atari_pong", make_atari_env)
    flags = {
        "env": "atari_pong",
        "device": "cpu",
        "train_dir": ".",
        "train_for_env_steps": 10**12,
        "summaries_use_frameskip": False,
        "async_rl": True,
        "num_workers": settings["workers"],
        "num_envs_per_worker": settings["envs"],
        "worker_num_splits": settings["splits"],
        "rollout": settings["rollout"],
        "batch_size": settings["minibatch"],
        "num_batches_per_epoch": settings["minibatches"],
        "num_epochs": settings["epochs"],
        "normalize_input": False,
        "normalize_returns": False,
        "decorrelate_experience_max_seconds": 0,
        "decorrelate_envs_on_one_worker": False,
    }
    _, runner = make_runner(parse_atari_args([f"--{name}={value}" for name, value in flags.items()]))
    runner.policy_msg_handlers[LEARNER_ENV_STEPS].append(report)
    if runner.init() == ExperimentStatus.SUCCESS:
        runner.run()


def report(runner: object, message: dict[str, Any], policy: int) -> None:
    """The learner says after every batch how many steps it has consumed."""
    print(f"steps {message[LEARNER_ENV_STEPS]}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
