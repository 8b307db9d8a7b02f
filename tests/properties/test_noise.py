"""Noisy networks: what is learned from has the noise that acted, under every scheme, by every algorithm, and replayed.

θ stays as it is here (the learning rate is 0), so the parameters of the policy at every row that is differentiated must
be those that acted. The loss itself looks; the run of a worker whose loss fails does so too.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyactor as pa
from polyactor import transport
from polyactor.algorithms import A2C, ACER, PPO, VTrace
from polyactor.algorithms.base import Algorithm, Model
from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.data import Batch, Metrics
from polyactor.errors import UsageError
from polyactor.models.noisy import MEAN_SIGMA
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD
from polyactor.schemes import ActorLearner, Hogwild, ParamServer, Sync
from polyactor.settings.check import check
from polyactor.storage.metrics_log import read_rows
from tests.helpers.fresh import fresh
from tests.helpers.toys import Everything

CLOSE = 1e-6
"""How near parameters of the policy near 1 are that are the same up to rounding."""


class Compared(Algorithm):
    """Compares every batch that it differentiates with what acted."""

    needs = frozenset({"behavior_params"})

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The loss of the other base class."""
        x = batch.rollout
        assert x.behavior_params is not None
        real = x.mask.bool() if "mask" not in batch.targets else batch.targets["mask"].bool()
        for each in (model, average) if average is not None else (model,):
            ours = each.unroll(x).policy[: len(x.reward)].detach()
            gap = (ours - x.behavior_params)[real].abs().max() if real.any() else torch.zeros(())
            assert gap <= CLOSE, f"a row has the policy of another noise: {float(gap)}"
        plain = model.unroll(x.replace(noise=None, actor_noise=None)).policy[: len(x.reward)].detach()
        assert (plain - x.behavior_params).abs().max() > 1e-3, "there is no noise at all"
        return super().loss(model, batch, average)


class ComparedA2C(Compared, A2C): ...


class ComparedPPO(Compared, PPO): ...


class ComparedVTrace(Compared, VTrace): ...


class ComparedACER(Compared, ACER): ...


ALGORITHMS: dict[str, Algorithm] = {
    "a2c": ComparedA2C(),
    "ppo": ComparedPPO(epochs=2, minibatches=2),
    "vtrace": ComparedVTrace(),
    "acer": ComparedACER(replay_ratio=2.0, replay_capacity=160, replay_start=20),
}
SCHEMES = {
    "sync": Sync(threads=1),
    "hogwild": Hogwild(),
    "hogwild-threads": Hogwild(workers_as="thread"),
    "param-server": ParamServer(),
    "param-server-ahead": ParamServer(accumulate=2, pull_every=2, queue=2),
    "actor-learner": ActorLearner(threads=1),
    "actor-learner-batch": ActorLearner(batch=2, threads=1),
}
NETWORKS: dict[str, tuple[Any, ModelSpec]] = {
    "mlp": ("CartPole-v1", ModelSpec(hidden=(8,))),
    "lstm": ("CartPole-v1", ModelSpec(hidden=(8,), core="lstm", core_size=8)),
    "cnn": ("polyactor/Catch-v0", ModelSpec(torso="a3c-cnn")),
    "box": ("Pendulum-v1", ModelSpec(hidden=(8,), share_torso=False)),
    "everything": (Everything, ModelSpec(hidden=(8,), core="gru", core_size=8)),
}


def config_of(scheme: str, algorithm: str, network: str, noisy: Any, kind: Any = "factorised") -> Config:
    env, spec = NETWORKS[network]
    return Config(
        env=env,
        algorithm=ALGORITHMS[algorithm],
        scheme=SCHEMES[scheme],
        optimizer=SGD(lr=0.0),
        steps=120,
        workers=1 if scheme == "sync" else 2,
        envs=2,
        rollout=5,
        precision="fp32",
        model=replace(spec, noisy=noisy, noisy_kind=kind),
    )


def run(config: Config) -> None:
    check(config)
    parts = fresh(config)
    theta = parts.state.theta.clone()
    for _ in transport.run(parts):
        pass
    assert parts.counters.steps >= config.steps
    assert torch.equal(parts.state.theta, theta)
    assert parts.counters.metrics()[MEAN_SIGMA] is not None


@pytest.mark.parametrize(
    ("scheme", "algorithm", "network", "noisy", "kind"),
    [
        ("sync", "acer", "box", "dense", "factorised"),
        ("hogwild", "acer", "mlp", "dense", "factorised"),
        ("param-server-ahead", "a2c", "mlp", "heads", "independent"),
        ("actor-learner", "ppo", "mlp", "heads", "factorised"),
        ("actor-learner-batch", "vtrace", "lstm", "dense", "factorised"),
    ],
)
def test_what_is_learned_from_has_the_noise_that_acted(
    scheme: str, algorithm: str, network: str, noisy: str, kind: str
) -> None:
    run(replace(config_of(scheme, algorithm, network, noisy, kind), transport="inline"))


def allowed(config: Config) -> bool:
    try:
        check(config)
    except UsageError:
        return False
    return True


EVERY = [
    cell
    for cell in itertools.product(SCHEMES, ALGORITHMS, NETWORKS, ("heads", "dense"), ("factorised", "independent"))
    if allowed(config_of(*cell))
]


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "algorithm", "network", "noisy", "kind"), EVERY)
def test_it_has_in_processes_too(scheme: str, algorithm: str, network: str, noisy: str, kind: str) -> None:
    run(config_of(scheme, algorithm, network, noisy, kind))


def test_noise_is_drawn_for_each_rollout_and_environment() -> None:
    drawn: dict[str, list[Tensor]] = {}
    for kind, field in (("factorised", "noise"), ("independent", "actor_noise")):
        parts = fresh(config_of("sync", "a2c", "mlp", "heads", kind))
        replica, actor = parts.actor(0)
        drawn[field] = [getattr(actor.collect(replica.version), field).clone() for _ in range(2)]
        actor.envs.close()
        assert not (drawn[field][0] == drawn[field][1]).any()
    assert drawn["noise"][0].shape == (2, 8 + 2 + 8 + 1)
    assert not (drawn["noise"][0][0] == drawn["noise"][0][1]).any()
    assert drawn["actor_noise"][0].shape == (1, 8 * 2 + 2 + 8 + 1)


def test_the_policy_that_is_played_has_no_noise(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = pa.train(
        "a3c", env="CartPole-v1", model={"noisy": "dense", "hidden": (8,)}, workers=1, envs=2, steps=200, out=str(out),
        quiet=True, transport="inline", algorithm={"entropy_coef": 0.5},
    )  # fmt: skip
    assert done.status == "done"
    sigma = read_rows(out / "metrics.jsonl")[-1][MEAN_SIGMA]
    assert 0.5 / np.sqrt(8) < sigma < 0.5 / np.sqrt(4)
    with pa.load(out) as policy:
        noise, seen = policy.model.noise, np.array([0.1, -0.2, 0.3, 0.4], np.float32)
        assert noise is not None
        noise.put(torch.randn(1, noise.width))  # what has been there before
        policy.act(seen)
        assert all(layer.noise is None for layer in noise.layers)


REFUSED = {
    "a3c --model.noisy-kind independent --scheme actor-learner --workers 2": "joins rollouts of several actors",
    "acer --model.noisy-kind independent": "--model.noisy-kind independent is not allowed where a batch joins",
    "acer --algorithm.replay-window 5": "--model.noisy heads is not allowed with replayed sequences that span",
    "a3c --model.network examples/own_torso.py:Residual": "--model.noisy heads is not allowed with --model.network",
    "a3c --model.noisy dense --model.torso a.py:B": "--model.noisy dense is not allowed with --model.torso of your own",
    "a3c --model.noisy dense --precision bf16": "--precision bf16 is not allowed with --model.noisy dense",
    "a3c --model.noisy some": "--model.noisy some is not allowed: it must be one of none, heads, dense",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_noise_does_not_fit_is_refused_in_one_sentence(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *more = flags.split()
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", name, "--model.noisy", "heads", *more, "--env", "CartPole-v1", "--out", "never"])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert REFUSED[flags] in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_independent_noise_is_allowed_where_a_batch_is_of_one_actor() -> None:
    for scheme, algorithm in (("sync", "ppo"), ("hogwild", "vtrace"), ("param-server-ahead", "a2c")):
        check(config_of(scheme, algorithm, "mlp", "heads", "independent"))
    check(replace(config_of("actor-learner", "vtrace", "mlp", "heads", "independent"), workers=1))
