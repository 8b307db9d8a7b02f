"""Update rules against golden vectors, against torch.optim, and through `Updater.apply`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.agent.learner import differentiate
from polyactor.agent.updater import Updater
from polyactor.algorithms import A2C
from polyactor.data import Batch, Gradients, Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD, Adam, RMSprop, Rule
from polyactor.optim.flat import State, bind, parameter_views
from polyactor.shared.counters import Counter, SharedCounters

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def double(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def trajectory(rule: Rule, theta: Tensor, grads: Sequence[Tensor], lr: float | None = None) -> tuple[Tensor, Any]:
    """θ after each gradient, and the statistics after the last."""
    theta, statistics, rows = theta.clone(), rule.statistics(theta), []
    for grad in grads:
        rule.step(theta, grad.clone(), statistics, rule.lr if lr is None else lr)
        rows.append(theta.clone())
    return torch.stack(rows), statistics


# -- golden vectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", ["1e-05", "0.1"])
@pytest.mark.parametrize("convention", ["torch", "tf", "a3c_paper"])
def test_golden_rmsprop(golden: Golden, convention: str, eps: str) -> None:
    x, outputs = golden(f"rmsprop_{convention}_eps{eps}")
    rule = RMSprop(
        lr=x["lr"],
        alpha=x["alpha"],
        eps=x["eps"],
        eps_inside=x["eps_inside_sqrt"],
        square_avg_start=x["square_avg_init"],
    )
    rows, statistics = trajectory(rule, double(x["theta0"]), double(x["grads"]))
    np.testing.assert_allclose(rows, outputs["theta"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(statistics["square_avg"], outputs["square_avg"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", ["1e-08", "1e-05", "0.001"])
@pytest.mark.parametrize("convention", ["torch", "tf"])
def test_golden_adam(golden: Golden, convention: str, eps: str) -> None:
    x, outputs = golden(f"adam_eps{eps}")
    rule = Adam(lr=x["lr"], beta1=x["betas"][0], beta2=x["betas"][1], eps=x["eps"], eps_hat=convention == "tf")
    rows, statistics = trajectory(rule, double(x["theta0"]), double(x["grads"]))
    np.testing.assert_allclose(rows, outputs[convention], rtol=0, atol=1e-12)
    assert statistics["step"] == len(x["grads"])


# -- torch.optim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (SGD(lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
        (
            RMSprop(lr=7e-4, alpha=0.99, eps=1e-5, eps_inside=False, square_avg_start=0.0),
            lambda p: torch.optim.RMSprop(p, lr=7e-4, alpha=0.99, eps=1e-5),
        ),
        (Adam(lr=1e-3, eps=1e-8), lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-8)),
        (Adam(lr=1e-3, beta1=0.8, beta2=0.9), lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.8, 0.9), eps=1e-5)),
        (Adam(lr=1e-3, beta2=0.9, amsgrad=True), lambda p: torch.optim.Adam(p, 1e-3, (0.9, 0.9), 1e-5, amsgrad=True)),
    ],
    ids=["sgd", "rmsprop", "adam", "adam-betas", "amsgrad"],
)
def test_equals_torch_over_50_random_steps(rule: Rule, reference: Callable[[Any], torch.optim.Optimizer]) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(20, generator=generator, dtype=torch.float64)
    # Sizes that come and go, so that AMSGrad's maximum is not the newest second moment.
    grads = [torch.randn(20, generator=generator, dtype=torch.float64) * (10 if i % 20 < 3 else 1) for i in range(50)]
    parameter = nn.Parameter(theta.clone())
    optimizer = reference([parameter])
    rows, _ = trajectory(rule, theta, grads)
    for grad, row in zip(grads, rows, strict=True):
        parameter.grad = grad.clone()
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), row, rtol=0, atol=1e-12)


def test_amsgrad_differs_from_adam_on_these_gradients() -> None:
    grads = double([[1.0], [0.1], [0.1], [0.1]])
    plain, _ = trajectory(Adam(lr=0.1, beta2=0.5), double([0.0]), grads)
    ams, statistics = trajectory(Adam(lr=0.1, beta2=0.5, amsgrad=True), double([0.0]), grads)
    assert (plain[-1] - ams[-1]).abs() > 0.01
    assert statistics["max_exp_avg_sq"] > statistics["exp_avg_sq"]


@pytest.mark.parametrize("rule", [SGD(), RMSprop(), RMSprop(eps_inside=False, square_avg_start=0), Adam(amsgrad=True)])
def test_zero_gradients_never_move_theta_so_padding_stays_zero(rule: Rule) -> None:
    rows, _ = trajectory(rule, torch.zeros(4), torch.zeros(10, 4))
    assert (rows == 0).all()


# -- through Updater.apply ---------------------------------------------------------------------------------------------


class Point(nn.Module):
    """A model that is one vector."""

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        self.at = nn.Parameter(double(start))


class Setup:
    """One state and its counters, and an updater for each worker."""

    def __init__(self, start: Sequence[float], rule: Rule, workers: int = 1, total_steps: int = 1000) -> None:
        self.model = Point(start)
        self.state = State.of(self.model, rule, workers)
        self.counters = SharedCounters(workers)
        self.updaters = [
            Updater(self.state, rule, self.counters, worker=w, total_steps=total_steps) for w in range(workers)
        ]

    def apply(self, gradient: Any, worker: int = 0, version: int | None = None, steps: int = 1) -> Tensor:
        vector = torch.zeros(self.state.layout.theta, dtype=torch.float64)
        vector[: self.model.at.numel()] = torch.as_tensor(gradient, dtype=torch.float64)
        version = self.counters.version if version is None else version
        assert self.updaters[worker].apply(Gradients(vector, {}, version, steps)) == self.counters.version
        return self.model.at.detach().clone()


@pytest.mark.parametrize("shared", [True, False])
def test_golden_rmsprop_shared_or_one_set_per_worker(golden: Golden, shared: bool) -> None:
    x, outputs = golden("rmsprop_shared_vs_unshared")
    rule = RMSprop(lr=x["lr"], alpha=x["alpha"], eps=x["eps"], square_avg_start=0.0, max_grad_norm=None, shared=shared)
    setup = Setup(x["theta0"], rule, workers=2)
    assert len(setup.state.statistics) == (1 if shared else 2)
    rows = [setup.apply(grad, worker) for grad, worker in zip(x["grads"], x["schedule"], strict=True)]
    np.testing.assert_allclose(torch.stack(rows), outputs["shared" if shared else "unshared"], rtol=0, atol=1e-12)


def test_golden_clip_to_global_norm(golden: Golden) -> None:
    x, outputs = golden("grad_clip_global_norm")
    setup = Setup([0.0] * 3, SGD(lr=1.0, max_grad_norm=x["max_norm"]))
    np.testing.assert_allclose(-setup.apply(x["grad"]), outputs["torch"], rtol=0, atol=1e-12)
    assert setup.counters.metrics()["grad_norm"] == outputs["norm"]  # as it was before clipping
    setup = Setup([0.0] * 3, SGD(lr=1.0, max_grad_norm=13.1))
    np.testing.assert_array_equal(-setup.apply(x["grad"]), x["grad"])  # inside the ball nothing changes
    setup = Setup([0.0] * 3, SGD(lr=1.0, max_grad_norm=None))
    np.testing.assert_array_equal(-setup.apply(x["grad"]), x["grad"])


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_golden_delayed_gradient_descent_on_a_parabola(golden: Golden, delay: int) -> None:
    x, outputs = golden("stale_sgd_quadratic")
    setup = Setup([x["theta0"]], SGD(lr=x["eta"], max_grad_norm=None))
    history = [x["theta0"]]
    for t in range(x["steps"]):
        version = max(0, t - delay)
        history.append(setup.apply([history[version]], version=version).item())  # d(θ²/2)/dθ at that version
        assert setup.counters.metrics()["gradient_staleness"] == t - version
        setup.counters.mark()
    assert history == pytest.approx(outputs[str(delay)], abs=1e-12)


def test_learning_rate_anneals_with_the_steps_of_all_workers() -> None:
    setup = Setup([0.0], SGD(lr=1.0, lr_end=0.2, max_grad_norm=None), workers=2, total_steps=40)
    moved, last = [], 0.0
    for i in range(6):
        setup.counters.mark()
        theta = setup.apply([-1.0], worker=i % 2, steps=10).item()
        moved.append(theta - last)
        last = theta
    assert moved == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])  # and stays at the end
    assert setup.counters.steps == 60
    assert setup.counters.metrics()["learning_rate"] == pytest.approx(0.2)
    assert SGD(lr=0.3).lr_at(0.7) == 0.3
    assert SGD(lr=0.3, lr_end=0.0).lr_at(2.0) == 0.0


# -- sum and mean ------------------------------------------------------------------------------------------------------


def test_golden_eps_of_sum_and_mean(golden: Golden) -> None:
    x, outputs = golden("rmsprop_sum_vs_mean")
    n, eps = x["N"], x["eps_sum"]
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    for inside, eps_mean in ((True, outputs["eps_mean_inside"]), (False, outputs["eps_mean_outside"])):
        rule = RMSprop(lr=1e-2, eps=eps, eps_inside=inside, square_avg_start=0.0)
        of_sum, _ = trajectory(rule, double([1.0, 2.0, 3.0]), n * grads)
        of_mean, _ = trajectory(replace(rule, eps=eps_mean), double([1.0, 2.0, 3.0]), grads)
        torch.testing.assert_close(of_sum, of_mean, rtol=0, atol=1e-12)
        naive, _ = trajectory(rule, double([1.0, 2.0, 3.0]), grads)
        assert (of_sum - naive).abs().max() > 1e-3


T, B = 5, 4


def after_updates(rollouts: Sequence[Rollout], algorithm: A2C, rule: RMSprop) -> tuple[Tensor, list[float]]:
    """θ of a real network after an update per rollout, and the gradients' norms."""
    torch.manual_seed(0)
    model = ActorCritic(
        spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), ModelSpec(hidden=(16,), core="lstm", core_size=8)
    ).double()
    state, counters = State.of(model, rule, 1), SharedCounters(1)
    gradient = torch.zeros(state.layout.theta, dtype=torch.float64)
    bind(model, state.vector)
    places = parameter_views(model, gradient)
    updater, norms = Updater(state, rule, counters, worker=0, total_steps=10**6), []
    for x in rollouts:
        x = x.replace(core_state=tuple(part.detach() for part in model.initial_state(B)))
        dtheta, metrics = differentiate(algorithm, model, Batch(x))
        for place, each in zip(places, dtheta, strict=True):
            place.copy_(each)
        updater.apply(Gradients(gradient, metrics, counters.version, x.steps))
        norms.append(counters.metrics()["grad_norm"] or 0.0)
    assert counters.table[0, Counter.UPDATES] == len(rollouts)
    return state.theta.clone(), norms


@pytest.mark.parametrize("clipped", [False, True])
def test_sum_and_mean_losses_train_a_network_alike_where_eps_and_clip_follow(
    make_rollout: Callable[..., Rollout], clipped: bool
) -> None:
    """Sum with (ε, C) is mean with (ε/N², C/N); N real rows in every rollout.

    Where the clip acts rewards are large, because torch's clip adds 1e-6 to the norm, which has a scale of its own.
    """
    rollouts = [make_rollout(T, B, seed=seed, end=0.0) for seed in range(50)]
    if clipped:
        rollouts = [x.replace(reward=1e5 * x.reward) for x in rollouts]
    n, clip = T * B, 40.0 if clipped else 1e9
    rule = RMSprop(lr=7e-4, eps=0.1, eps_inside=True, square_avg_start=0.0, max_grad_norm=clip)
    of_sum, norms = after_updates(rollouts, A2C(reduction="sum"), rule)
    assert all((norm > clip) == clipped for norm in norms)
    of_mean, _ = after_updates(rollouts, A2C(), replace(rule, eps=0.1 / n**2, max_grad_norm=clip / n))
    torch.testing.assert_close(of_mean, of_sum, rtol=0, atol=1e-10)
    for wrong in (replace(rule, max_grad_norm=clip / n), replace(rule, eps=0.1 / n, max_grad_norm=clip / n)):
        assert (after_updates(rollouts, A2C(), wrong)[0] - of_sum).abs().max() > 1e-4
