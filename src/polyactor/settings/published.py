"""Presets for results that others published, in polyactor's units; docs/presets.md says where they had to differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Values = Mapping[str, Any]
"""Settings by dotted path, such as ``{"rollout": 20, "optimizer.lr": 1e-3}``."""


@dataclass(frozen=True)
class Preset:
    """A method on one environment, with settings that reproduce a result.

    Attributes:
        about: a description in one line.
        method: the method's name, which gives algorithm and scheme and, without a source, its settings.
        env: the environment's id.
        values: settings that replace those of the method or, with a source, the plain defaults.
        claim: the result that the source published; empty without a source.
        measured: the result measured with polyactor, as in ``results/``; empty until measured.
        source: the repository or paper that published the result; empty for polyactor's own presets.
    """

    about: str
    method: str
    env: str
    values: Values = field(default_factory=dict)
    claim: str = ""
    measured: str = ""
    source: str = ""


# fmt: off
# Rows read as rows: several settings to a line.

PONG, BREAKOUT, QBERT = "PongNoFrameskip-v4", "BreakoutNoFrameskip-v4", "QbertNoFrameskip-v4"
SIGN = {"normalize.clip_reward": 1.0}
ADAM = {"optimizer": "adam", "optimizer.eps": 1e-8}
RMSPROP_TORCH = {"optimizer": "rmsprop", "optimizer.eps_inside": False, "optimizer.square_avg_start": 0.0}
LSTM_256 = {"model.core": "lstm", "model.core_size": 256}

# --- papers -----------------------------------------------------------------------------------------------------------

_A3C_PAPER: Values = {
    **SIGN, "steps": 80_000_000, "workers": 16, "envs": 1, "rollout": 5, "model.torso": "nature-cnn",
    "optimizer": "rmsprop", "optimizer.lr": 7e-4, "optimizer.lr_end": 0.0, "optimizer.eps": 0.1,
    "optimizer.square_avg_start": 0.0, "optimizer.max_grad_norm": 40.0, "algorithm.reduction": "sum",
}

A3C_PAPER: dict[str, Preset] = {
    "paper-a3c-ff": Preset(
        "A3C, feed-forward: 16 workers of one environment",
        "a3c", PONG,
        _A3C_PAPER,
        "Pong 11.4 after 1 day, 5.6 after 4 days (human starts)",
    ),
    "paper-a3c-lstm": Preset(
        "A3C with memory", "a3c", PONG, {**_A3C_PAPER, **LSTM_256}, "Pong 10.7 after 4 days (human starts)"
    ),
}

_ACER_PAPER: Values = {
    "optimizer": "rmsprop", "optimizer.lr": 7e-4, "optimizer.max_grad_norm": 40.0, "optimizer.square_avg_start": 0.0,
    "workers": 16, "envs": 1, "algorithm.delta": 1.0,
}

ACER_PAPER: dict[str, Preset] = {
    "paper-acer": Preset(
        "ACER, discrete: 16 workers of one environment, 50,000 steps remembered by each",
        "acer", PONG,
        {
            **SIGN, **_ACER_PAPER, "steps": 50_000_000, "rollout": 20, "model.torso": "nature-cnn",
            "algorithm.entropy_coef": 0.001, "algorithm.replay_capacity": 800_000, "algorithm.trust_region": "probs",
        },
        "57 games, median human-normalised score by steps, in curves: replay ratio 4 is about the best",
    ),
    "paper-acer-continuous": Preset(
        "ACER, continuous: off-policy alone, stochastic dueling network, σ of 0.3",
        "acer", "HalfCheetah-v5",
        {
            **_ACER_PAPER, "steps": 5_000_000, "rollout": 50, "optimizer.lr": 2e-4, "model.share_torso": False,
            "model.hidden": (200,), "model.activation": "relu", "model.log_std": "fixed",
            "model.log_std_start": math.log(0.3), "algorithm.truncation": 5.0, "algorithm.average_decay": 0.995,
            "algorithm.entropy_coef": 0.0, "algorithm.on_policy": False, "algorithm.replay_capacity": 80_000,
        },
        "curves only: ahead of A3C and of A3C with a trust region on 6 tasks",
    ),
}

IMPALA_PAPER: dict[str, Preset] = {
    "paper-impala-shallow": Preset(
        "IMPALA's shallow network; its batch of 32 unrolls comes from 8 actors of 4 environments",
        "impala", PONG,
        {
            **SIGN, "steps": 50_000_000, "workers": 8, "envs": 4, "rollout": 20, "model.torso": "a3c-cnn",
            "optimizer": "rmsprop", "optimizer.lr": 6e-4, "optimizer.lr_end": 0.0, "optimizer.eps": 0.01,
            "optimizer.max_grad_norm": 40.0, "algorithm.reduction": "sum", "atari.life_loss": True,
        },
        "57 games, human-normalised: median 93.2 %, mean 466.4 % after 200M frames (50M steps)",
    )
}

# --- alirezakazemipour/A3C-ACER-PyTorch -------------------------------------------------------------------------------

_AK_ACER: Values = {
    **SIGN, **ADAM, "envs": 1, "rollout": 20, "model.torso": "nature-cnn", "optimizer.lr": 1e-4,
    "optimizer.max_grad_norm": 40.0, "algorithm.entropy_coef": 0.001, "algorithm.replay_capacity": 600_000,
    "algorithm.replay_start": 0, "atari.life_loss": True,
}

AK: dict[str, Preset] = {
    "pong-acer-2w": Preset(
        "ACER, 2 workers, 600,000 steps remembered",
        "acer", PONG,
        {**_AK_ACER, "steps": 1_800_000, "workers": 2},
        "18 after 580 games of each worker (about 1.8M steps); 21 after 600",
    ),
    "breakout-acer-8w": Preset(
        "the same, 8 workers",
        "acer", BREAKOUT,
        {**_AK_ACER, "steps": 1_700_000, "workers": 8},
        "59 in one life after 1,280 lives of each worker (about 1.7M steps)",
    ),
    "spaceinvaders-acer-8w": Preset(
        "the same, 8 workers",
        "acer", "SpaceInvadersNoFrameskip-v4",
        {**_AK_ACER, "steps": 1_500_000, "workers": 8},
        "180 in one life after 840 lives of each worker (about 1.5M steps)",
    ),
    "pendulum-acer-replayed": Preset(
        "continuous ACER, off-policy alone, policy and critic apart",
        "acer", "Pendulum-v1",
        {
            **ADAM, "steps": 1_000_000, "workers": 8, "envs": 1, "rollout": 50, "model.hidden": (256,),
            "model.activation": "relu", "model.share_torso": False, "model.log_std": "fixed",
            "model.log_std_start": math.log(0.3), "optimizer.lr": 1e-4, "optimizer.max_grad_norm": None,
            "algorithm.gamma": 0.9, "algorithm.entropy_coef": 1e-4, "algorithm.truncation": 5.0,
            "algorithm.average_decay": 0.995, "algorithm.on_policy": False, "algorithm.replay_ratio": 4.0,
            "algorithm.replay_capacity": 2_000_000,
        },
        "none: its author calls it untested",
    ),
    "pong-a3c-lstm": Preset(
        "A3C-LSTM without a dense layer, 2 workers",
        "a3c", PONG,
        {
            **SIGN, **ADAM, **LSTM_256, "steps": 6_000_000, "workers": 2, "envs": 1, "rollout": 40,
            "model.torso": "a3c-conv", "optimizer.lr": 1e-4, "optimizer.max_grad_norm": 40.0,
            "atari.life_loss": True,
        },
        "17.9 after 1,730 games of each worker (about 5.9M steps)",
    ),
    "pendulum-a3c-episode": Preset(
        "whole episodes, policy and value apart",
        "a3c", "Pendulum-v1",
        {
            **ADAM, "steps": 1_000_000, "workers": 8, "envs": 1,
            "rollout": 201,  # an episode of 200 steps and the fake row after it
            "model.hidden": (256,), "model.activation": "relu", "model.share_torso": False,
            "model.log_std": "state", "optimizer.lr": 1e-4, "optimizer.max_grad_norm": None,
            "algorithm.gamma": 0.9, "algorithm.value_coef": 1.0, "algorithm.entropy_coef": 1e-4,
        },
        "none: its author calls it untested",
    ),
}

# --- fedetask/ACER-torch and Kaixhin/ACER -----------------------------------------------------------------------------

FD: dict[str, Preset] = {
    f"{env.split('-')[0].lower()}-acer-traces": Preset(
        "ACER on whole traces: rollouts of 1,000 steps, 32 of them to a replayed batch, without a trust region",
        "acer", env,
        {
            **ADAM, "steps": 1_000_000, "workers": 4, "envs": 1, "rollout": 1_000, "model.share_torso": False,
            "model.hidden": (128, 128, 128, 128), "model.activation": "relu", "optimizer.lr": 5e-4,
            "optimizer.max_grad_norm": 40.0, "algorithm.truncation": 1.0, "algorithm.trust_region": "none",
            "algorithm.entropy_coef": 1e-4, "algorithm.replay_capacity": 1_000_000, "algorithm.replay_batch": 32,
        },
        "none",
    )
    for env in ("CartPole-v1", "LunarLander-v3")
}

KX: dict[str, Preset] = {
    "cartpole-acer-lstm": Preset(
        "ACER with memory, 6 workers",
        "acer", "CartPole-v1",
        {
            **RMSPROP_TORCH, "steps": 500_000, "workers": 6, "envs": 1, "rollout": 100, "model.hidden": (32,),
            "model.activation": "relu", "model.core": "lstm", "model.core_size": 32, "optimizer.lr": 7e-4,
            "optimizer.max_grad_norm": 40.0, "algorithm.entropy_coef": 1e-4, "algorithm.trust_region": "probs",
            "algorithm.replay_capacity": 100_000, "algorithm.replay_start": 3_300, "algorithm.replay_batch": 16,
        },
        "500 after about 380k steps",
    )
}

# --- gianluca-maselli/A3C ---------------------------------------------------------------------------------------------

_GM: Values = {
    **SIGN, **ADAM, **LSTM_256, "envs": 1, "rollout": 20, "model.torso": "a3c-cnn", "optimizer.lr": 1e-4,
    "optimizer.beta2": 0.99, "optimizer.max_grad_norm": 40.0, "atari.resize_height": 110, "atari.crop_top": 18,
    "atari.fire_reset": False,
}

GM: dict[str, Preset] = {
    name: Preset(
        f"A3C-LSTM on cropped frames, {workers} workers, until the score is reached",
        "a3c",
        env,
        {**_GM, "steps": steps, "stop_at": target, "workers": workers},
        f"mean of 100 at {target:g} after {games} games of each worker ({total} in all)",
    )
    for name, env, workers, steps, target, games, total in (
        ("pong-a3c-lstm-8w", PONG, 8, 10_000_000, 18.0, "342", "2,700"),
        ("pong-a3c-lstm-4w", PONG, 4, 10_000_000, 18.0, "660", "2,600"),
        ("breakout-a3c-lstm-8w", BREAKOUT, 8, 40_000_000, 60.0, "2,010", "16,000"),
        ("breakout-a3c-lstm-4w", BREAKOUT, 4, 40_000_000, 60.0, "2,825", "11,300"),
    )
}

# --- hengyuan-hu/a2c --------------------------------------------------------------------------------------------------

_HH: Values = {
    **SIGN, **RMSPROP_TORCH, "envs": 16, "rollout": 5, "model.torso": "nature-cnn", "optimizer.lr": 7e-4,
    "optimizer.eps": 1e-5, "atari.one_life": True, "atari.fire_reset": False,
}

HH: dict[str, Preset] = {
    "pong-a2c-nature": Preset(
        "A2C, 16 environments, Nature's network",
        "a2c", PONG,
        {**_HH, "steps": 5_000_000},
        "17 after 2.6M, 20 after 3.8M steps; 2,300 steps/s on 4 cores and a GTX 1080",
    ),
    "spaceinvaders-a2c-nature": Preset(
        "the same; a lost life starts a new game",
        "a2c", "SpaceInvadersNoFrameskip-v4",
        {**_HH, "steps": 80_000_000},
        "600 after 4M, 750 after 16M, 1,000–1,250 after 50M steps",
    ),
}

# --- fulltopic/rlpractice ---------------------------------------------------------------------------------------------

DUAL_HEAD: Values = {"model.torso": "nature-conv", "model.head_width": 512}
"""Shared convolutions; a dense layer of 512 for the policy and another for the value."""

_FT: Values = {**SIGN, **ADAM, **DUAL_HEAD, "envs": 50, "optimizer.max_grad_norm": 0.1}
_FT_SERVER: Values = {
    **_FT, "rollout": 5, "scheme.reduction": "sum",
    # Their coefficient is .5 of a loss with ½ inside; ours has none inside.
    "algorithm.value_loss": "huber", "algorithm.value_coef": 0.25,
}
# One updater with a queue of 20 gradients, of which half is dropped when it is full: 7 for each of 3 workers.
_FT_QUEUE: Values = {"workers": 3, "scheme.queue": 7, "scheme.when_full": "drop"}
_FT_THREADS: Values = {
    **_FT, "rollout": 5, "scheme.workers_as": "thread", "scheme.lock": "update", "optimizer.lr": 3e-4,
    "algorithm.value_coef": 0.25,
}
_FT_APPO: Values = {
    **_FT, "rollout": 32, "workers": 4, "optimizer.lr": 3e-4, "algorithm.gae_lambda": 0.95,
    "algorithm.clip": 0.1, "algorithm.epochs": 16, "algorithm.minibatches": 4,
    "algorithm.value_coef": 0.5,  # of ½ (R − V)²: their .25 without the ½
    "algorithm.normalize_advantage": False,
}


def _entropy(values: str) -> Values:
    return {"per_worker": (f"algorithm.entropy-coef={values}",)}


def _sync(push: int, pull: int) -> Values:
    return {"scheme.accumulate": push, "scheme.pull_every": pull}


FT: dict[str, Preset] = {
    "cartpole-a3c-server-0": Preset(
        "A3C over a gradient server",
        "a3c-server", "CartPole-v1",
        {
            **_FT_SERVER, **_sync(4, 4), "steps": 1_000_000, "max_episode_steps": 200, "workers": 2, "envs": 32,
            "rollout": 8, "scheme.updaters": 2, "model.torso": "mlp", "model.hidden": (256,),
            "model.activation": "leaky-relu", "model.head_width": None, "optimizer.lr": 1e-3,
            "optimizer.eps": 1e-3,
        },
        "none: “to test again”",
    ),
    "pong-a3c-server-1": Preset(
        "negative control: lr too high, must fail",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_sync(2, 2), "steps": 30_000_000, "workers": 2, "envs": 32, "rollout": 8,
            "scheme.updaters": 2, "optimizer.lr": 1e-3, "optimizer.eps": 5e-4,
        },
        "failed",
    ),
    "pong-a3c-server-2": Preset(
        "2 updater threads",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_sync(2, 2), "steps": 40_000_000, "workers": 2, "scheme.updaters": 2,
            "optimizer.lr": 1e-4, "optimizer.eps": 5e-4,
        },
        "20 after 300k ticks of 50 environments per worker (15M steps per worker)",
    ),
    "pong-a3c-server-3": Preset(
        "4 workers with entropies of their own, long between exchanges",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_sync(4, 8), **_entropy(".01,.01,.01,.005"), "steps": 40_000_000, "workers": 4,
            "optimizer.lr": 1e-4,
        },
        "21 after 150k ticks of 50 environments per worker (30M steps)",
    ),
    "pong-a3c-server-4": Preset(
        "3 workers, a queue of gradients that drops when full",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_FT_QUEUE, **_sync(2, 4), **_entropy(".01,.02,.005"), "steps": 20_000_000,
            "optimizer.lr": 1e-4,
        },
        "15 after 62k, 20 after 100k ticks of 50 environments per worker (9M, 15M steps)",
    ),
    "pong-a3c-server-5": Preset(
        "2 updater threads, 4 workers",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_sync(2, 2), **_entropy(".05,.01,.02,.005"), "steps": 40_000_000, "workers": 4,
            "scheme.updaters": 2, "optimizer.lr": 1e-4,
        },
        "none: crashed (two threads stepped one optimizer)",
    ),
    "pong-a3c-server-6": Preset(
        "negative control: lr too high, must fail",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_FT_QUEUE, **_sync(1, 4), **_entropy(".05,.01,.02,.005"), "steps": 20_000_000,
            "optimizer.lr": 5e-4,
        },
        "failed",
    ),
    "pong-a3c-server-7": Preset(
        "negative control: lr too high, must fail",
        "a3c-server", PONG,
        {
            **_FT_SERVER, **_sync(4, 8), **_entropy(".05,.01,.02,.005"), "steps": 30_000_000, "workers": 4,
            "optimizer.lr": 1e-3,
        },
        "failed",
    ),
    "pong-a3c-threads-9": Preset(
        "threads of one process share the network",
        "a3c", PONG,
        {**_FT_THREADS, **_entropy(".01,.01,.005,.02"), "steps": 15_000_000, "workers": 4},
        "15 after 43k, 20 after 50k ticks of 50 environments per worker (10M steps)",
    ),
    "breakout-a3c-threads-10": Preset(
        "the same, 5 threads",
        "a3c", BREAKOUT,
        {**_FT_THREADS, **_entropy(".01,.01,.005,.02,0"), "steps": 40_000_000, "workers": 5, "atari.life_loss": True},
        "400 after 120k ticks of 50 environments per worker (30M steps), collapsing twice on the way",
    ),
    "pong-appo-2": Preset(
        "4 actors, 16 epochs",
        "appo", PONG,
        {**_FT_APPO, "steps": 3_000_000},
        "20 after 5k–8k ticks of 50 environments per actor (1M–1.6M steps)",
    ),
    "breakout-appo-3": Preset(
        "the same with a smaller step and λ",
        "appo", BREAKOUT,
        {**_FT_APPO, "steps": 10_000_000, "optimizer.lr": 1e-4, "algorithm.gae_lambda": 0.9, "atari.life_loss": True},
        "failed; a later run reached 120",
    ),
    "qbert-appo-4": Preset(
        "5 actors, shorter rollouts, 20 epochs",
        "appo", QBERT,
        {
            **_FT_APPO, "steps": 10_000_000, "rollout": 16, "workers": 5, "algorithm.epochs": 20,
            "algorithm.minibatches": 5, "algorithm.value_coef": 1.0, "atari.life_loss": True,
        },
        "above 15,000 after 30k ticks of 50 environments per actor (7.5M steps), then flat",
    ),
}

# --- ikostrikov/pytorch-a3c, dgriff777/rl_a3c_pytorch and a3c_continuous ----------------------------------------------

# Sums over the steps of a rollout, with a ½ in the squared error besides the coefficient.
_KOSTRIKOV: Values = {
    **ADAM, "envs": 1, "rollout": 20, "model.core": "lstm", "optimizer.lr": 1e-4, "algorithm.reduction": "sum",
    "algorithm.value_coef": 0.25, "normalize.observation": True, "normalize.clip_reward": 1.0,
}

IK_A3C: dict[str, Preset] = {
    "pong-a3c-lstm-42px": Preset(
        "A3C-LSTM on frames of 42 × 42, 16 workers",
        "a3c", PONG,
        {
            **_KOSTRIKOV, "steps": 20_000_000, "workers": 16, "model.torso": "elu-conv",
            "optimizer.max_grad_norm": 50.0, "atari.frame_size": 42, "atari.resize_height": 55,
            "atari.crop_top": 9, "atari.stack": 1, "atari.noop_max": 0, "atari.fire_reset": False,
        },
        "20 in 15 minutes with 16 processes",
    )
}

DG: dict[str, Preset] = {
    "pong-a3c-lstm-80px": Preset(
        "A3C-LSTM of 512 on frames of 80 × 80, 36 workers",
        "a3c", PONG,
        {
            **_KOSTRIKOV, "steps": 20_000_000, "workers": 36, "model.torso": "pool-conv",
            "model.core_size": 512, "optimizer.amsgrad": True, "optimizer.max_grad_norm": None,
            "algorithm.gae_lambda": 0.92, "atari.frame_size": 80, "atari.resize_height": 105,
            "atari.crop_top": 17, "atari.stack": 1,
        },
        "solved in 10 minutes on 4 V100 and 20 cores",
    )
}

_DC: Values = {
    **_KOSTRIKOV, "stop_at": 300.0, "model.hidden": (320, 160), "model.activation": "leaky-relu",
    "model.core_size": 160, "model.log_std": "state", "optimizer.amsgrad": True,
    "optimizer.max_grad_norm": None, "algorithm.gamma": 0.98, "algorithm.gae_lambda": 0.8,
    "algorithm.value_coef": 0.2,
}

DC: dict[str, Preset] = {
    "bipedal-a3c-lstm": Preset(
        "A3C-LSTM with a Gaussian policy, 8 workers",
        "a3c", "BipedalWalker-v3",
        {**_DC, "steps": 10_000_000, "workers": 8},
        "300 in 5–10 minutes",
    ),
    "bipedal-hardcore-a3c-lstm": Preset(
        "the same, 18 workers",
        "a3c", "BipedalWalkerHardcore-v3",
        {**_DC, "steps": 60_000_000, "workers": 18},
        "300 in 20–40 minutes on a CPU",
    ),
}

# --- ikostrikov/pytorch-a2c-ppo-acktr-gail ----------------------------------------------------------------------------

_A2C_16x5: Values = {
    **SIGN, "steps": 10_000_000, "envs": 16, "rollout": 5, "optimizer.lr": 7e-4, "optimizer.eps": 1e-5,
    "atari.life_loss": True,
}

IK_A2C: dict[str, Preset] = {
    f"{game.lower()}-a2c": Preset(
        "A2C, 16 environments of 5 steps",
        "a2c",
        f"{game}NoFrameskip-v4",
        {**_A2C_16x5, **RMSPROP_TORCH, "model.torso": "nature-cnn-32"},
        f"{score} after 10M steps",
    )
    for game, score in {
        "Breakout": "350", "Qbert": "10,000–12,000", "Seaquest": "1,740", "BeamRider": "3,300",
    }.items()
}

# Both sources add λ to the product of the factors, by eigenvalues.
_ACKTR_32x20: Values = {
    **SIGN, "optimizer": "kfac", "optimizer.inverse": "eigen", "steps": 10_000_000, "envs": 32, "rollout": 20,
    "atari.life_loss": True,
}

IK_ACKTR: dict[str, Preset] = {
    f"{game.lower()}-acktr": Preset(
        "ACKTR, 32 environments of 20 steps",
        "acktr",
        f"{game}NoFrameskip-v4",
        {**_ACKTR_32x20, "optimizer.cold_updates": 0, "model.torso": "nature-cnn-32"},
        f"{score} after 10M steps",
    )
    for game, score in {
        "Breakout": "420–470", "Qbert": "17,000", "Seaquest": "1,680", "BeamRider": "4,700",
    }.items()
}

# --- openai/baselines -------------------------------------------------------------------------------------------------

OB_ACER: dict[str, Preset] = {
    f"{game.lower()}-acer-baselines": Preset(
        "ACER in one process: 16 environments of 20 steps, 50,000 steps of each remembered",
        "acer",
        f"{game}NoFrameskip-v4",
        {
            **SIGN, "optimizer": "rmsprop", "steps": 10_000_000, "workers": 1, "envs": 16, "rollout": 20,
            "optimizer.lr": 7e-4, "optimizer.lr_end": 0.0, "optimizer.eps": 1e-5, "optimizer.max_grad_norm": 10.0,
            "model.torso": "nature-cnn", "algorithm.trust_region": "probs", "algorithm.hold_entropy": True,
            "algorithm.replay_capacity": 800_000, "algorithm.replay_start": 160_000, "atari.life_loss": True,
        },
        f"{score} after 10M steps (the end of the mean curve of 6 runs)",
    )
    for game, score in {
        "Enduro": "0", "SpaceInvaders": "1,298", "Qbert": "16,612", "Seaquest": "1,734", "Pong": "19.6",
        "BeamRider": "5,194", "Breakout": "438",
    }.items()
}

OB: dict[str, Preset] = {
    f"{game.lower()}-a2c-baselines": Preset(
        "A2C with TensorFlow's RMSProp and a learning rate that ends at 0",
        "a2c",
        f"{game}NoFrameskip-v4",
        {**_A2C_16x5, "optimizer": "rmsprop", "optimizer.lr_end": 0.0, "model.torso": "nature-cnn"},
        f"{score} after 10M steps (the end of the mean curve of 6 runs)",
    )
    for game, score in {
        "Enduro": "0", "SpaceInvaders": "689", "Qbert": "4,471", "Seaquest": "1,739", "Pong": "18.5",
        "BeamRider": "2,518", "Breakout": "275",
    }.items()
}

OB_ACKTR: dict[str, Preset] = {
    f"{game.lower()}-acktr-baselines": Preset(
        "ACKTR with a learning rate that ends at 0, 32 environments of 20 steps",
        "acktr",
        f"{game}NoFrameskip-v4",
        {**_ACKTR_32x20, "optimizer.lr_end": 0.0, "model.torso": "nature-cnn"},
        f"{score} after 10M steps (the end of the mean curve of 6 runs)",
    )
    for game, score in {
        "Enduro": "0", "SpaceInvaders": "850", "Qbert": "14,763", "Seaquest": "1,716", "Pong": "19.9",
        "BeamRider": "6,111", "Breakout": "441",
    }.items()
}


def _of(source: str, rows: Mapping[str, Preset]) -> dict[str, Preset]:
    """Return the presets with their source filled in."""
    return {name: replace(row, source=source) for name, row in rows.items()}


PUBLISHED: dict[str, Preset] = {
    **_of("Mnih et al. 2016", A3C_PAPER),
    **_of("Wang et al. 2017", ACER_PAPER),
    **_of("Espeholt et al. 2018", IMPALA_PAPER),
    **_of("fulltopic/rlpractice", FT),
    **_of("alirezakazemipour/A3C-ACER-PyTorch", AK),
    **_of("fedetask/ACER-torch", FD),
    **_of("Kaixhin/ACER", KX),
    **_of("gianluca-maselli/A3C", GM),
    **_of("hengyuan-hu/a2c", HH),
    **_of("ikostrikov/pytorch-a3c", IK_A3C),
    **_of("dgriff777/rl_a3c_pytorch", DG),
    **_of("dgriff777/a3c_continuous", DC),
    **_of("ikostrikov/pytorch-a2c-ppo-acktr-gail", IK_A2C | IK_ACKTR),
    **_of("openai/baselines", OB | OB_ACER | OB_ACKTR),
}
