"""RLlib: APPO or IMPALA on Pong, new API stack, the learner in the driver's process.

Gymnasium's own Atari preprocessing, which RLlib's wrapper is slower than since it shrinks all four frames of a step.
The Nature CNN's dense layer is written as a convolution of 7 × 7 over 7 × 7 pixels, the same function, since RLlib's
own dense layers are one each for policy and value.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ale_py
import gymnasium
import numpy as np
import ray
import torch
from gymnasium.wrappers import AtariPreprocessing, ClipReward, FrameStackObservation, TransformObservation
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

NATURE = [[32, 8, 4, "valid"], [64, 4, 2, "valid"], [64, 3, 1, "valid"], [512, 7, 1, "valid"]]
"""Filters, kernel, stride and padding of each layer."""


def main(settings: dict[str, Any]) -> None:
    """Train until killed."""
    torch.set_num_threads(settings["threads"])
    ray.init(
        num_cpus=settings["runners"] + 1,
        include_dashboard=False,
        object_store_memory=2**30,
        log_to_driver=False,
        _temp_dir=os.getcwd(),
    )
    register_env("pong", make_env)
    algorithm = make_config(settings).build_algo()
    while True:
        sampled = int(algorithm.train()["num_env_steps_sampled_lifetime"])
        # It learns from whole batches and drops none; its own count of what it has learned from counts every epoch.
        print(f"steps {sampled // settings['batch'] * settings['batch']}", flush=True)


def make_env(_: object) -> gymnasium.Env[Any, Any]:
    """Pong as the others see it, channels last and in [0, 1] as RLlib's network wants it."""
    gymnasium.register_envs(ale_py)
    env = AtariPreprocessing(gymnasium.make("PongNoFrameskip-v4"), frame_skip=4, scale_obs=True)
    stacked = FrameStackObservation(ClipReward(env, -1.0, 1.0), 4)
    space = gymnasium.spaces.Box(0.0, 1.0, (84, 84, 4), np.float32)
    return TransformObservation(stacked, lambda frames: np.moveaxis(frames, 0, -1), space)


def make_config(settings: dict[str, Any]) -> AlgorithmConfig:
    """Each batch is learned from once per epoch."""
    appo = settings["algorithm"] == "appo"
    config: AlgorithmConfig = APPOConfig() if appo else IMPALAConfig()
    own = {"use_circular_buffer": False} if appo else {}
    return (
        config.environment("pong")
        .env_runners(
            num_env_runners=settings["runners"],
            num_envs_per_env_runner=settings["envs"],
            rollout_fragment_length=settings["rollout"],
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=settings["batch"],
            num_epochs=settings["epochs"],
            minibatch_size=settings["minibatch"],
            timeout_s_sampler_manager=1.0,  # wait for samples; by default a core is busy asking for them
            **own,
        )
        .rl_module(model_config=DefaultModelConfig(conv_filters=NATURE, vf_share_layers=True))
        .reporting(min_time_s_per_iteration=0)
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
