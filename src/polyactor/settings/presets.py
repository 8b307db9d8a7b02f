"""Settings by name: methods, which fit any environment, and presets, which reproduce one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from polyactor.algorithms import ALGORITHMS
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config, Scheme, parse_per_worker
from polyactor.envs import EnvFactory, Environment, EnvSpec, Wrapper, env_spec, is_atari
from polyactor.errors import UsageError, suggestion
from polyactor.fields import declared, replace_at
from polyactor.optim import Rule
from polyactor.settings.published import PUBLISHED, Preset, Values
from polyactor.settings.registry import part

Kind = Literal["atari", "discrete", "continuous"]
"""A kind of environment: Atari, or any other with discrete or with continuous actions."""


@dataclass(frozen=True)
class Method:
    """An algorithm under a scheme, with settings for each kind of environment.

    Attributes:
        about: a description in one line.
        algorithm: the algorithm's name.
        scheme: the scheme's name.
        values: settings by kind of environment; `optimizer` is the optimizer's name.
    """

    about: str
    algorithm: str
    scheme: str
    values: Mapping[Kind, Values]


_ACTOR_CRITIC: dict[Kind, Values] = {
    # Per-pixel normalisation makes the few pixels that move stand out of the static background: docs/performance.md.
    "atari": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "rollout": 20, "envs": 8, "steps": 10_000_000,
        "algorithm.gae_lambda": 0.95, "normalize.observation": True, "normalize.clip_reward": 1.0,
    },
    "discrete": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "rollout": 20, "envs": 8, "steps": 300_000,
        "algorithm.gae_lambda": 0.95, "algorithm.entropy_coef": 0.0, "normalize.reward": True,
    },
    # 8 steps, λ = 0.9, a step size that falls to 0 and a σ below 1 are those of RL Baselines3 Zoo's A2C for continuous
    # control (its σ is smaller still; with −0.5 Pendulum more often ends in swings to one side). γ = 0.95 looks 20
    # steps ahead: with 0.99 noise hides what a single action of a Gaussian is worth, but what pays late wants it.
    "continuous": {
        "optimizer": "adam", "optimizer.lr": 2e-3, "optimizer.lr_end": 0.0, "rollout": 8, "envs": 8, "steps": 1_000_000,
        "model.log_std_start": -0.3, "algorithm.gamma": 0.95, "algorithm.gae_lambda": 0.9,
        "algorithm.entropy_coef": 0.0, "normalize.observation": True, "normalize.reward": True,
    },
}  # fmt: skip


_A2C: dict[Kind, Values] = {
    # With one update of each batch a step size of 1e-3 leaves choices half learned after 100,000 steps.
    **_ACTOR_CRITIC, "discrete": {**_ACTOR_CRITIC["discrete"], "optimizer.lr": 2e-3},
}  # fmt: skip


_PPO: dict[Kind, Values] = {
    "atari": {
        **_ACTOR_CRITIC["atari"], "rollout": 32, "optimizer.lr": 5e-4, "algorithm.clip": 0.1, "algorithm.epochs": 2,
    },
    "discrete": {**_ACTOR_CRITIC["discrete"], "rollout": 32, "algorithm.entropy_coef": 0.0},
    # Few rows are learned by heart where rewards are noisy: 1,024 of them, in minibatches of 128.
    "continuous": {
        **_ACTOR_CRITIC["continuous"], "rollout": 128, "algorithm.minibatches": 8, "model.log_std_start": -0.7,
    },
}  # fmt: skip


_VTRACE: dict[Kind, Values] = {
    kind: {path.replace("gae_lambda", "trace_lambda"): value for path, value in values.items()}
    for kind, values in _ACTOR_CRITIC.items()
}


_ACER: dict[Kind, Values] = {
    # Wang et al. 2017: 20 steps, ratio 4, c = 10, δ = 1, α = 0.99, β = 0.001. Adam and normalised pixels: our choice.
    "atari": {
        "optimizer": "adam", "optimizer.lr": 5e-4, "optimizer.max_grad_norm": 40.0, "rollout": 20, "envs": 16,
        "steps": 10_000_000, "model.torso": "nature-cnn", "algorithm.entropy_coef": 0.001,
        "algorithm.replay_capacity": 600_000, "normalize.observation": True, "normalize.clip_reward": 1.0,
    },
    # A step size that falls to 0 and λ = 0.95: else noise, replayed again and again, drives nearly sure policies into
    # corners that they do not leave.
    "discrete": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "optimizer.lr_end": 0.0, "rollout": 20, "envs": 8, "steps": 300_000,
        "algorithm.trace_lambda": 0.95, "algorithm.entropy_coef": 0.0, "algorithm.replay_capacity": 40_000,
        "normalize.reward": True,
    },
    # As published there is no entropy bonus. T and the step size are those of discrete actions, γ that of the other
    # methods above. σ is learned: with the published 0.3 a policy learns slowly, and a larger one stays inexact.
    "continuous": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "optimizer.lr_end": 0.0, "rollout": 20, "envs": 8,
        "steps": 1_000_000, "model.log_std_start": -0.9, "algorithm.gamma": 0.95, "algorithm.trace_lambda": 0.8,
        "algorithm.truncation": 5.0, "algorithm.average_decay": 0.995, "algorithm.entropy_coef": 0.0,
        "algorithm.replay_capacity": 80_000, "normalize.observation": True, "normalize.reward": True,
    },
}  # fmt: skip


_ACKTR: dict[Kind, Values] = {
    # Wu et al. 2017 and OpenAI Baselines: η 0.25 that ends at 0, κ = 0.001, λ = 0.01. The rest is as for A2C.
    kind: {path: value for path, value in values.items() if not path.startswith("optimizer")}
    | {"optimizer": "kfac", "optimizer.lr_end": 0.0}
    for kind, values in _ACTOR_CRITIC.items()
}
_ACKTR["atari"] = {  # a dense layer on images has factors of thousands of rows
    **_ACKTR["atari"], "envs": 32, "optimizer.factors_every": 10, "optimizer.inverse_every": 50,
    "optimizer.decay": 0.95,
}  # fmt: skip
_ACKTR["continuous"] = {**_ACKTR["discrete"], "steps": 1_000_000, "normalize.observation": True}


METHODS: dict[str, Method] = {
    "a2c": Method("synchronous advantage actor-critic", "a2c", "sync", _A2C),
    "a3c": Method("asynchronous advantage actor-critic: lock-free workers", "a2c", "hogwild", _A2C),
    "acktr": Method("A2C with K-FAC, a natural gradient within a trust region", "a2c", "sync", _ACKTR),
    "ppo": Method("proximal policy optimisation", "ppo", "sync", _PPO),
    "vtrace": Method("V-trace actor-critic in one process", "vtrace", "sync", _VTRACE),
    "a3c-server": Method(
        "asynchronous advantage actor-critic: workers send gradients to a server", "a2c", "param-server", _A2C
    ),
    "appo": Method(
        "asynchronous PPO: actors send rollouts to a learner",
        "ppo",
        "actor-learner",
        _PPO,
    ),
    "acer": Method("actor-critic with experience replay: lock-free workers, a memory each", "acer", "hogwild", _ACER),
    "impala": Method(
        "importance-weighted actor-learner: rollouts to a learner, V-trace", "vtrace", "actor-learner", _VTRACE
    ),
}


_CONSTANT: Values = {"optimizer.lr_end": None, "algorithm.trace_lambda": 1.0}  # as published, and as measured
_TO_18: Values = {"stop_at": 18.0, "algorithm.entropy_coef_end": 0.0, "optimizer.lr_end": 1e-4}


PRESETS: dict[str, Preset] = {
    "pong-fast": Preset(
        "Pong to a mean score of 18 in minutes: pong-a3c with a shorter schedule",
        "a3c",
        "PongNoFrameskip-v4",
        {**_TO_18, "steps": 2_000_000},
        measured="18 after 773k–1.16M steps, 5.4–7.3 min, up to two more to confirm it (3 seeds)",
    ),
    "pong-a3c": Preset(
        "Pong to a mean score of 18 on a laptop",
        "a3c",
        "PongNoFrameskip-v4",
        {**_TO_18, "steps": 3_000_000},
        measured="18 after 1.09M steps, 8.5 min (1 seed)",
    ),
    "pong-a3c-server": Preset(
        "the same, gradients sent to a server",
        "a3c-server",
        "PongNoFrameskip-v4",
        {**_TO_18, "steps": 3_000_000},
        measured="18 after 1.12M steps (1 seed)",
    ),
    "pong-appo": Preset(
        "the same, rollouts sent to a PPO learner",
        "appo",
        "PongNoFrameskip-v4",
        {**_TO_18, "steps": 1_600_000},
        measured="18 after 508k–840k steps, 6–10 min (3 seeds)",
    ),
    "cartpole-a2c": Preset(
        "balance, one process",
        "a2c",
        "CartPole-v1",
        {"optimizer.lr": 1e-3},
        measured="475 after 141k–185k steps (5 seeds)",
    ),
    "cartpole-a3c": Preset(
        "balance, two workers",
        "a3c",
        "CartPole-v1",
        {"workers": 2, "optimizer.lr": 1e-3},
        measured="475 after 170k–225k steps (5 seeds)",
    ),
    "cartpole-acktr": Preset(
        "balance with natural gradients, one process",
        "acktr",
        "CartPole-v1",
        {"stop_at": 475.0},
        measured="475, confirmed, after 92k–156k steps (3 seeds)",
    ),
    "pendulum-a3c": Preset(
        "swing up with a Gaussian policy",
        "a3c",
        "Pendulum-v1",
        {"workers": 2, "algorithm.gamma": 0.9, "algorithm.gae_lambda": 0.95, "model.log_std_start": 0.0},
        measured="−300 after 176k–245k steps (3 seeds)",
    ),
    "tmaze-a3c-lstm": Preset(
        "remember a cue along a corridor of 10; without memory nobody expects more than 0.5",
        "a3c",
        "polyactor/TMaze-v0",
        {
            "workers": 2,
            "steps": 500_000,
            "optimizer.lr": 1e-3,
            "model.core": "lstm",
            "model.core_size": 64,
            "algorithm.gamma": 0.98,
            "algorithm.entropy_coef": 0.01,
            "normalize.reward": False,
        },
        measured="0.996 over 2,000 games; 0.493 without memory (1 seed)",
    ),
    "pong-acktr": Preset(
        "Pong with natural gradients, one process",
        "acktr",
        "PongNoFrameskip-v4",
        {"steps": 2_100_000, "stop_at": 18.0},
        measured="18, confirmed, after 1.00M–1.24M steps (3 seeds), 14–35 minutes with other work",
    ),
    "pong-acer": Preset(
        "Pong with replay, two workers",
        "acer",
        "PongNoFrameskip-v4",
        {"workers": 2, "steps": 1_800_000, "stop_at": 18.0},
        measured="18 after 0.95M–1.24M steps (3 seeds), 38–43 minutes with other work beside it",
    ),
    "cartpole-acer": Preset(
        "balance with replay, two workers",
        "acer",
        "CartPole-v1",
        {**_CONSTANT, "workers": 2, "stop_at": 475.0},
        measured="475, confirmed, after 63k–117k steps (5 seeds)",
    ),
    "lunarlander-acer": Preset(
        "land with replay, two workers",
        "acer",
        "LunarLander-v3",
        {
            **_CONSTANT,
            "workers": 2,
            "steps": 1_000_000,
            "stop_at": 200.0,
            "algorithm.gamma": 0.995,
            "algorithm.entropy_coef": 0.003,
            "algorithm.entropy_coef_end": 0.0,
        },
        measured="185 after 405k–550k steps; 200, confirmed, in 2 of 3 seeds within 1M",
    ),
    "pendulum-acer": Preset(
        "swing up with a Gaussian policy and a stochastic dueling network",
        "acer",
        "Pendulum-v1",
        {
            "workers": 2,
            "steps": 500_000,
            "rollout": 10,
            "algorithm.gamma": 0.9,
            "optimizer.lr": 1e-3,
            **_CONSTANT,
            "model.log_std": "fixed",  # as published: a σ of 0.3 for actions in [−1, 1]
            "model.log_std_start": -1.2,
        },
        measured="−250 after 128k–148k steps (3 seeds)",
    ),
    "tmaze-acer-lstm": Preset(
        "remember a cue along a corridor of 10, with replay",
        "acer",
        "polyactor/TMaze-v0",
        {
            **_CONSTANT,
            "workers": 2,
            "steps": 500_000,
            "model.core": "lstm",
            "model.core_size": 64,
            "algorithm.gamma": 0.98,
            "algorithm.entropy_coef": 0.01,
            "normalize.reward": False,
        },
        measured="1.0 over 2,000 games (1 seed)",
    ),
    "catch-a3c": Preset(
        "a CNN in well under a minute: catch ten balls of ten",
        "a3c",
        "polyactor/Catch-v0",
        {
            "workers": 2,
            "envs": 16,
            "steps": 400_000,
            "stop_at": 9.0,
            "optimizer.lr": 1e-3,
            "algorithm.gamma": 0.9,
            "algorithm.entropy_coef": 0.01,
            "normalize.observation": True,
        },
        measured="9 after 98k–164k steps (10 seeds in fp32, 10 in bf16)",
    ),
    **PUBLISHED,
}


def kind_of(env: str | EnvFactory | Environment, look: Callable[..., EnvSpec] = env_spec) -> Kind:
    """Return the kind of an environment; an Atari id is recognised without creating an environment.

    Args:
        env: the environment.
        look: returns what an environment looks like, as `env_spec` does.

    Raises:
        EnvironmentUnsupported: the environment cannot be created or has no spaces to train in.
    """
    if is_atari(env):
        return "atari"
    return "continuous" if look(env).continuous else "discrete"


def base_config(
    name: str,
    *,
    env: str | EnvFactory | None = None,
    algorithm: str | Algorithm | None = None,
    scheme: str | Scheme | None = None,
    optimizer: str | Rule | None = None,
    env_kwargs: tuple[str, ...] = (),
    env_wrappers: tuple[str | Wrapper, ...] = (),
    env_resize: tuple[int, ...] = (),
    noisy: str | None = None,
    look: Callable[..., EnvSpec] = env_spec,
) -> Config:
    """Return the config that a name stands for, before any flag changes it.

    The name's settings of a part (algorithm, scheme or optimizer) that is replaced do not apply: another optimizer
    needs another learning rate.

    Args:
        name: a method, a preset, or an algorithm from a file as ``file.py:Class``.
        env: the environment, in place of a preset's; needed for a method.
        algorithm: a name or an instance, in place of the method's.
        scheme: a name or an instance, in place of the method's.
        optimizer: a name or an instance, in place of the method's.
        env_kwargs: what the environment is made with, each as ``name=value``.
        env_wrappers: the wrappers around the environment, or their names.
        env_resize: height and width that its images are resized to.
        noisy: what `model.noisy` is asked to be, if at all; noise explores in place of an entropy bonus.
        look: returns what an environment looks like, as `env_spec` does.

    Raises:
        UsageError: there is no such name, or an environment is needed.
        EnvironmentUnsupported: the environment cannot be trained in.
    """
    preset = PRESETS.get(name)
    method = METHODS.get(preset.method if preset else name)
    if method is None:
        if ".py:" not in name:
            names = [*METHODS, *PRESETS]
            raise UsageError(f"there is no preset {name}{suggestion(name, names)}: choose from {', '.join(names)}")
        method = Method("", name, "sync", _ACTOR_CRITIC)
    if env is None:
        if preset is None:
            raise UsageError(f"--env is needed: polyactor train {name} --env CartPole-v1")
        env = preset.env
    asked = {"algorithm": algorithm, "scheme": scheme, "optimizer": optimizer}
    made: dict[str, Any] = {kind: _made(kind, value) for kind, value in asked.items() if value is not None}
    # A published preset changes the plain defaults: a method's settings are ours, not those of the source.
    values = (
        {}
        if preset and preset.source
        else dict(method.values[kind_of(Environment(env, env_kwargs, env_wrappers, env_resize), look)])
    )
    values |= preset.values if preset else {}
    named = {"algorithm": method.algorithm, "scheme": method.scheme, "optimizer": values.pop("optimizer")}
    made = {kind: _made(kind, name) for kind, name in named.items()} | made
    fields = declared(type(made["algorithm"]))

    def applies(path: str) -> bool:
        """Whether a setting is not of a part that is replaced, nor of a field that the algorithm lacks."""
        section, _, field = path.rpartition(".")
        if asked.get(section) not in (None, named.get(section)):
            return False
        # An algorithm from a file need not have all fields that our settings name.
        return section != "algorithm" or named["algorithm"] in ALGORITHMS or field in fields

    of_env: dict[str, Any] = {"env_kwargs": env_kwargs, "env_wrappers": env_wrappers, "env_resize": env_resize}
    config = Config(env=env, preset=name, **of_env, **made)
    if config.scheme.single:
        values |= {"workers": 1}
    if not config.scheme.per_worker:
        values |= {"per_worker": ()}
    for path in filter(applies, values):
        config = replace_at(config, path, values[path])
    if noisy not in (None, "none") and "entropy_coef" in fields and not isinstance(algorithm, Algorithm):
        config = replace_at(config, "algorithm.entropy_coef", 0.0)
        kept = [each for each in config.per_worker if "algorithm.entropy_coef" not in parse_per_worker((each,))]
        config = replace(config, per_worker=tuple(kept))
    return config


def _made(kind: str, value: str | Algorithm | Scheme | Rule) -> Any:
    """Return a part by name with its default values; an instance is returned as it is."""
    return part(kind, value)() if isinstance(value, str) else value
