"""Settings by name: methods that fit any environment, and named rows that reproduce a result. Data, no code paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from polyactor.compose import part
from polyactor.config import Config
from polyactor.envs import EnvFactory, looks_atari, make_envs
from polyactor.errors import UsageError, suggestion
from polyactor.types import Algorithm

Kind = Literal["atari", "discrete", "continuous"]
Values = Mapping[str, Any]
"""Config values by dotted path: ``{"rollout": 20, "optimizer.lr": 1e-3}``."""


@dataclass(frozen=True)
class Method:
    """An algorithm under a scheme, with settings for each kind of environment.

    Attributes:
        about: one line.
        algorithm, scheme: by name.
        values: by kind of environment; the optimizer is `optimizer`.
    """

    about: str
    algorithm: str
    scheme: str
    values: Mapping[Kind, Values]


@dataclass(frozen=True)
class Preset:
    """A method on one environment.

    Attributes:
        about: one line.
        method: whose values these override.
        env: the environment.
        values: the overrides.
        claim: what its source published; empty for our own.
        measured: what we measured, as in ``results/``; empty until there is one.
    """

    about: str
    method: str
    env: str
    values: Values = field(default_factory=dict)
    claim: str = ""
    measured: str = ""


_ACTOR_CRITIC: dict[Kind, Values] = {
    # Per-pixel normalisation makes the few pixels that move stand out of the static background; with it Pong needs
    # well under a quarter of the steps. docs/performance.md has the comparison.
    "atari": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "rollout": 20, "envs": 8, "steps": 10_000_000,
        "algorithm.gae_lambda": 0.95, "normalize.observation": True, "normalize.clip_reward": 1.0,
    },
    "discrete": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "rollout": 20, "envs": 8, "steps": 300_000,
        "algorithm.gae_lambda": 0.95, "algorithm.entropy_coef": 0.0, "normalize.reward": True,
    },
    "continuous": {
        "optimizer": "adam", "optimizer.lr": 1e-3, "rollout": 20, "envs": 8, "steps": 1_000_000,
        "algorithm.gae_lambda": 0.95, "algorithm.entropy_coef": 0.0, "normalize.observation": True,
        "normalize.reward": True,
    },
}  # fmt: skip

_PPO: dict[Kind, Values] = {
    "atari": {**_ACTOR_CRITIC["atari"], "rollout": 64, "algorithm.clip": 0.1, "optimizer.lr": 5e-4},
    "discrete": {**_ACTOR_CRITIC["discrete"], "rollout": 32, "algorithm.entropy_coef": 0.0},
    "continuous": {**_ACTOR_CRITIC["continuous"], "rollout": 64, "algorithm.entropy_coef": 0.0},
}

METHODS: dict[str, Method] = {
    "a2c": Method("synchronous advantage actor-critic", "a2c", "sync", _ACTOR_CRITIC),
    "a3c": Method("asynchronous advantage actor-critic: lock-free workers", "a2c", "hogwild", _ACTOR_CRITIC),
    "ppo": Method("proximal policy optimisation", "ppo", "sync", _PPO),
    "vtrace": Method("V-trace actor-critic in one process", "vtrace", "sync", _ACTOR_CRITIC),
}

PRESETS: dict[str, Preset] = {
    "pong-a3c": Preset(
        "Pong to a mean score of 18 on a laptop",
        "a3c",
        "PongNoFrameskip-v4",
        {"stop_at": 18.0, "steps": 3_000_000, "algorithm.entropy_coef_end": 0.0, "optimizer.lr_end": 1e-4},
        measured="18 after 1.09M steps, 8.5 min (1 seed)",
    ),
    "cartpole-a2c": Preset(
        "balance, one process", "a2c", "CartPole-v1", measured="475 after 141k–185k steps (5 seeds)"
    ),
    "cartpole-a3c": Preset(
        "balance, two workers",
        "a3c",
        "CartPole-v1",
        {"workers": 2},
        measured="475 after 170k–225k steps (5 seeds)",
    ),
    "pendulum-a3c": Preset(
        "swing up with a Gaussian policy",
        "a3c",
        "Pendulum-v1",
        {"workers": 2, "rollout": 8, "algorithm.gamma": 0.9, "optimizer.lr": 2e-3, "optimizer.lr_end": 0.0},
        measured="−300 after 176k–245k steps (3 seeds)",
    ),
    "tmaze-a3c-lstm": Preset(
        "remember a cue along a corridor of 10; without memory nobody expects more than 0.5",
        "a3c",
        "polyactor/TMaze-v0",
        {
            "workers": 2,
            "steps": 500_000,
            "model.core": "lstm",
            "model.core_size": 64,
            "algorithm.gamma": 0.98,
            "algorithm.entropy_coef": 0.01,
            "normalize.reward": False,
        },
        measured="0.996 over 2,000 games; 0.494 without memory (1 seed)",
    ),
    "paper-a3c-ff": Preset(
        "Mnih et al. 2016, feed-forward, as published: 16 workers of one environment",
        "a3c",
        "PongNoFrameskip-v4",
        {
            "steps": 80_000_000,
            "workers": 16,
            "envs": 1,
            "rollout": 5,
            "optimizer": "rmsprop",
            "optimizer.lr": 7e-4,
            "optimizer.lr_end": 0.0,
            "optimizer.eps": 0.1,
            "optimizer.eps_inside": True,
            "optimizer.square_avg_start": 0.0,
            "optimizer.max_grad_norm": 40.0,
            "algorithm.gae_lambda": 1.0,
            "algorithm.reduction": "sum",
            "normalize.observation": False,
        },
        claim="Pong 11.4 after 1 day, 5.6 after 4 days (human starts)",
    ),
}


def kind_of(env: str | EnvFactory) -> Kind:
    """Which settings an environment wants.

    Raises:
        EnvironmentUnsupported: as `make_envs`.
    """
    if isinstance(env, str) and looks_atari(env):
        return "atari"
    envs = make_envs(env, 1)
    try:
        return "continuous" if envs.action_space.__class__.__name__ == "Box" else "discrete"
    finally:
        envs.close()


def base_config(
    name: str, *, env: str | EnvFactory | None = None, scheme: str | None = None, optimizer: str | None = None
) -> Config:
    """The config a name stands for, before any flag.

    Args:
        name: a method, a preset, or an algorithm of one's own as ``file.py:Class``.
        env, scheme, optimizer: in place of the name's own.

    Raises:
        UsageError: no such name, or no environment.
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
    values = dict(method.values[kind_of(env)]) | dict(preset.values if preset else {})
    algorithm: Algorithm = part("algorithm", method.algorithm)()
    own = values.pop("optimizer")
    if optimizer is not None and optimizer != own:  # another rule wants another learning rate: its own default
        values = {path: value for path, value in values.items() if not path.startswith("optimizer.")}
    config = Config(
        env=env,
        algorithm=algorithm,
        scheme=part("scheme", scheme or method.scheme)(),
        optimizer=part("optimizer", optimizer or own)(),
        preset=name,
    )
    if config.scheme.single:
        values |= {"workers": 1}
    for path, value in values.items():
        config = _with(config, path, value)
    return config


def _with(config: Config, path: str, value: Any) -> Config:
    """The config with a dotted path set; what an algorithm of one's own does not have is left out."""
    group, _, name = path.rpartition(".")
    if not group:
        return replace(config, **{name: value})
    section = getattr(config, group)
    if name not in {f.name for f in fields(section)}:
        return config
    return replace(config, **{group: replace(section, **{name: value})})


def show() -> None:
    """Print every name with its settings, its source's claim and what was measured."""
    from rich.console import Console
    from rich.table import Table

    methods = Table(title="methods: polyactor train NAME --env ID", title_justify="left")
    for column in ("name", "what it is", "algorithm", "scheme"):
        methods.add_column(column)
    for name, method in METHODS.items():
        methods.add_row(name, method.about, method.algorithm, method.scheme)
    presets = Table(title="presets: polyactor train NAME", title_justify="left")
    for column in ("name", "what it is", "environment", "settings", "published", "measured"):
        presets.add_column(column)
    for name, preset in PRESETS.items():
        settings = ", ".join(f"{path} {value}" for path, value in preset.values.items())
        presets.add_row(name, preset.about, preset.env, f"{preset.method}, {settings}", preset.claim, preset.measured)
    console = Console()
    console.print(methods)
    console.print(presets)
