"""Retrace and ACER's terms: golden vectors, exact problems, and what the papers claim of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.equations import losses, returns
from polyactor.equations.distributions import Categorical, Gaussian, MultiCategorical

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def close(ours: Tensor, theirs: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, tensor(theirs), rtol=0, atol=atol)


# -- Retrace -----------------------------------------------------------------------------------------------------------


def retraced(x: dict[str, Any], trace: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the golden inputs, whose rows name their own next value: a fake row is put after each truncation."""
    pi, mu, q = tensor(x["logits"]).softmax(-1), tensor(x["mu"]), tensor(x["q"])
    taken = torch.as_tensor(x["actions"]).unsqueeze(-1)
    q_a, rho = q.gather(-1, taken).squeeze(-1), (pi / mu).gather(-1, taken).squeeze(-1)
    v, v_next, r = (pi * q).sum(-1), tensor(x["v_next"]), tensor(x["r"])
    terminated, truncated = tensor(x["terminated"]), tensor(x["truncated"])
    columns = []
    for b in range(r.shape[1]):
        rows: list[tuple[float, ...]] = []
        for t in range(len(r)):
            rows.append((r[t, b], v[t, b], q_a[t, b], terminated[t, b], 1.0, trace(rho[t, b])))
            if terminated[t, b] or truncated[t, b]:  # V(final observation), and values that must not matter
                rows.append((77.0, v_next[t, b], 55.0, 0.0, 0.0, 1.0))
        reward, value, q_taken, end, mask, c = (
            tensor([float(e) for e in row]).unsqueeze(1) for row in zip(*rows, strict=True)
        )
        value = torch.cat([value, v_next[-1:, b : b + 1]])
        target = returns.retrace(reward, value, q_taken, x["gamma"] * (1 - end), mask, c)
        assert (target[mask == 0] == 55.0).all()
        columns.append(target[mask == 1])
    return torch.stack(columns, 1)


def test_retrace_golden(golden: Golden) -> None:
    inputs, outputs = golden("retrace_discrete")
    close(retraced(inputs, lambda rho: rho.clamp(max=1.0)), outputs["q_ret"])
    close(retraced(inputs, lambda rho: torch.ones_like(rho)), outputs["q_opc"])
    close(retraced(inputs, lambda rho: 0.8 * rho.clamp(max=1.0)), outputs["q_ret_lam0_8"])


def enumerated(mdp: dict[str, Any], q: Tensor, horizon: int, trace: Callable[[Tensor], Tensor]) -> Tensor:
    """The Retrace operator itself: E_μ of the target over all paths of `horizon` steps from each (s, a)."""
    p, r, pi, mu = (tensor(mdp[name]) for name in ("P", "R", "pi", "mu"))
    gamma, (states, actions) = mdp["gamma"], r.shape
    v = (pi * q).sum(-1)
    target = torch.zeros_like(q)
    for s0 in range(states):
        for a0 in range(actions):
            # Paths as columns: (probability, states, actions).
            paths = [(1.0, [s0], [a0])]
            for step in range(horizon):
                last = step == horizon - 1
                paths = [
                    (w * float(p[s[-1], a[-1], s1]) * (1.0 if last else float(mu[s1, a1])), [*s, s1], [*a, a1])
                    for w, s, a in paths
                    for s1 in range(states)
                    for a1 in range(1 if last else actions)
                ]
            weight = tensor([w for w, _, _ in paths])
            s = torch.tensor([path for _, path, _ in paths]).T
            a = torch.tensor([path for _, _, path in paths]).T
            row = slice(0, horizon)
            rho = (pi / mu)[s[row], a[row]]
            ones = torch.ones(rho.shape, dtype=torch.float64)
            found = returns.retrace(r[s[row], a[row]], v[s], q[s[row], a[row]], gamma * ones, ones, trace(rho))
            target[s0, a0] = (weight * found[0]).sum()
    return target


@pytest.mark.parametrize("trace", [lambda rho: rho.clamp(max=1.0), lambda rho: 0.5 * rho.clamp(max=1.0)])
def test_the_operator_contracts_to_q_of_pi_whatever_acted(golden: Golden, trace: Callable[[Tensor], Tensor]) -> None:
    mdp, answer = golden("random_mdp_off_policy")
    wanted = tensor(answer["Q_pi"])
    q = torch.zeros_like(wanted)
    errors = []
    for _ in range(60):
        q = enumerated(mdp, q, 3, trace)
        errors.append(float((q - wanted).abs().max()))
    assert all(after <= mdp["gamma"] * before + 1e-12 for before, after in pairwise(errors))
    assert errors[-1] < 1e-2
    close(enumerated(mdp, wanted, 3, trace), wanted)  # its fixed point


def test_traces_of_one_are_the_wrong_fixed_point_off_policy(golden: Golden) -> None:
    """Q^opc: no correction, so what it evaluates depends on μ."""
    mdp, answer = golden("random_mdp_off_policy")
    wanted = tensor(answer["Q_pi"])
    off_by = (enumerated(mdp, wanted, 3, torch.ones_like) - wanted).abs().max()
    assert off_by < 1e-9  # of Q^π itself even this operator changes nothing: E[Q^π(a) − V^π] is 0 under π, not μ


T, B = 6, 3


def random_case(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ended = torch.rand(T, B, generator=generator) < 0.25
    terminated = ended & (torch.rand(T, B, generator=generator) < 0.5)
    mask = torch.ones(T, B, dtype=torch.float64)
    mask[1:][ended[:-1]] = 0.0
    discount = 0.9 * (1 - (terminated & (mask == 1)).double())
    return {"reward": normal(T, B), "value": normal(T + 1, B), "discount": discount, "mask": mask}


@pytest.mark.parametrize("seed", range(5))
def test_on_policy_it_is_the_n_step_return_where_q_ignores_the_action(seed: int) -> None:
    x = random_case(seed)
    q = x["value"][:-1]  # Q(x, a) = V(x)
    ones = torch.ones(T, B, dtype=torch.float64)
    target = returns.retrace(x["reward"], x["value"], q, x["discount"], x["mask"], ones)
    close(target, returns.n_step(x["reward"], x["value"], x["discount"], x["mask"]).target)


@pytest.mark.parametrize("seed", range(5))
def test_on_policy_it_differs_from_the_n_step_return_by_the_advantages_on_the_way(seed: int) -> None:
    """Q^ret_0 = R_0 + Σ_k γ^k (V − Q_a)(x_k), k = 1 … n − 1 (no end on the way)."""
    x, gamma = random_case(seed), 0.9
    ones = torch.ones(T, B, dtype=torch.float64)
    q = torch.randn(T, B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = returns.retrace(x["reward"], x["value"], q, gamma * ones, ones, ones)[0]
    n_step = returns.n_step(x["reward"], x["value"], gamma * ones, ones).target[0]
    extra = sum(gamma**k * (x["value"][k] - q[k]) for k in range(1, T))
    close(target, n_step + extra)


@pytest.mark.parametrize("seed", range(5))
def test_without_traces_it_is_the_one_step_backup(seed: int) -> None:
    x = random_case(seed)
    q = torch.zeros(T, B, dtype=torch.float64)
    target = returns.retrace(x["reward"], x["value"], q, x["discount"], x["mask"], q)
    close(target, x["mask"] * (x["reward"] + x["discount"] * x["value"][1:]))


def test_what_follows_a_terminal_row_does_not_matter() -> None:
    reward, value = torch.ones(3, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    discount, mask = 0.9 * torch.ones(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    discount[0], mask[1] = 0.0, 0.0
    q, trace = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    clean = returns.retrace(reward, value, q, discount, mask, trace)[0]
    value[1:], reward[1:], trace[1:] = 99.0, 99.0, 99.0
    assert torch.equal(returns.retrace(reward, value, q, discount, mask, trace)[0], clean)
    assert clean.item() == 1.0


# -- ACER's policy gradient --------------------------------------------------------------------------------------------


def ascent(x: dict[str, Any], action: int, q_ret: float, c: float, *, by: str = "logits") -> Tensor:
    """∇ of the objective by the logits."""
    z = tensor(x["logits"]).requires_grad_()
    log_p, q = z.log_softmax(-1), tensor(x["q"])
    v = (log_p.exp() * q).sum(-1).detach()
    weight = losses.truncated_weights(
        log_p, log_p - tensor(x["mu"]).log(), torch.tensor(action), q, tensor(q_ret), v, c
    )
    (gradient,) = torch.autograd.grad(-losses.policy_gradient(log_p, weight).sum(), z, retain_graph=True)
    (surrogate,) = torch.autograd.grad(-losses.importance_surrogate(log_p, log_p.detach(), weight).sum(), z)
    close(surrogate, gradient)  # where π = π_old
    return gradient


@pytest.mark.parametrize("c", [1, 2, 10])
def test_truncation_and_correction_golden(golden: Golden, c: int) -> None:
    x, wanted = golden(f"acer_discrete_pg_c{c}")
    close(ascent(x, x["action"], x["q_ret"], x["c"]), wanted["grad_logits_total"])


def test_the_weight_of_the_correction_is_a_constant(golden: Golden) -> None:
    x, wanted = golden("acer_correction_attached_pi_WRONG")
    z = tensor(x["logits"])
    v = float((z.softmax(-1) * tensor(x["q"])).sum())
    correction = ascent(x, 0, v, x["c"])  # Q^ret = V: nothing but the correction
    close(correction, wanted["grad_logits_correct"])
    assert (correction - tensor(wanted["grad_logits_wrong"])).abs().max() > 1e-2


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 2.0, 10.0, math.inf])
def test_it_is_unbiased_whatever_c_is(golden: Golden, c: float) -> None:
    """Σ_a μ(a) [...] with Q^ret = Q, all actions enumerated."""
    x, wanted = golden("acer_unbiasedness")
    each = [mu * ascent(x, a, x["q"][a], c) for a, mu in enumerate(x["mu"])]
    close(torch.stack(each).sum(0), wanted["exact_grad_logits"])


def test_truncation_lowers_the_variance(golden: Golden) -> None:
    x, _ = golden("acer_unbiasedness")
    mu = tensor(x["mu"]).unsqueeze(1)

    def variance(c: float) -> float:
        each = torch.stack([ascent(x, a, x["q"][a], c) for a in range(len(mu))])
        mean = (mu * each).sum(0)
        return float((mu * (each - mean) ** 2).sum())

    found = [variance(c) for c in (0.5, 1.0, 2.0, math.inf)]
    assert found == sorted(found)
    assert found[0] < 0.5 * found[-1]


def test_weights_are_constants(golden: Golden) -> None:
    x, _ = golden("acer_discrete_pg_c2")
    q, q_ret, v = (tensor(value).requires_grad_() for value in (x["q"], x["q_ret"], 1.3))
    log_p = tensor(x["logits"]).log_softmax(-1).requires_grad_()
    log_rho = (log_p.detach() - tensor(x["mu"]).log()).requires_grad_()
    assert not losses.truncated_weights(log_p, log_rho, torch.tensor(2), q, q_ret, v, 2.0).requires_grad
    both = log_rho[:2].unsqueeze(0)
    assert not losses.sampled_weights(both, torch.ones(1, 2).double().requires_grad_(), 2.0).requires_grad


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_and_behaviour_stay_finite(scale: float) -> None:
    z = torch.tensor([scale, 0.0, -scale], requires_grad=True)
    log_p = z.log_softmax(-1)
    log_mu = torch.tensor([1e-12, 0.5, 0.5]).log()
    for action, c in itertools.product(range(3), (0.0, 10.0)):
        weight = losses.truncated_weights(
            log_p, log_p - log_mu, torch.tensor(action), torch.ones(3), torch.tensor(2.0), torch.tensor(1.0), c
        )
        loss = losses.policy_gradient(log_p, weight).sum()
        (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


# -- trust region ------------------------------------------------------------------------------------------------------


def test_projection_golden(golden: Golden) -> None:
    inputs, outputs = golden("trust_region_projection")
    for row, wanted in zip(inputs["rows"], outputs["rows"], strict=True):
        close(losses.trust_region(tensor(row["g"]), tensor(row["k"]), row["delta"]), wanted["z"])


vectors = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(g=vectors, k=vectors, delta=st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_the_projection_is_the_nearest_feasible_point(g: list[float], k: list[float], delta: float) -> None:
    z = losses.trust_region(tensor(g), tensor(k), delta)
    g_, k_ = np.array(g), np.array(k)
    slack = 1e-9 * (1 + abs(g_ @ k_))
    assert k_ @ z.numpy() <= delta + slack
    torch.testing.assert_close(losses.trust_region(z, tensor(k), delta), z, rtol=0, atol=1e-8)  # idempotent
    if k_ @ g_ <= delta - slack or not k_.any():  # nearer to the border NumPy and torch may place g on either side
        assert torch.equal(z, tensor(g))
        return
    if k_ @ k_ < 1e-6:
        return  # the quadratic program is ill-conditioned
    constraint = {"type": "ineq", "fun": lambda z: delta - k_ @ z, "jac": lambda z: -k_}
    solved = scipy.optimize.minimize(
        lambda z: 0.5 * ((z - g_) ** 2).sum(),
        g_,
        jac=lambda z: z - g_,
        constraints=[constraint],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    np.testing.assert_allclose(z.numpy(), solved.x, atol=1e-5)


def test_rows_are_projected_by_themselves() -> None:
    g, k = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    together = losses.trust_region(g, k, 0.1)
    close(torch.stack([losses.trust_region(a, b, 0.1) for a, b in zip(g, k, strict=True)]), together)


# -- divergence --------------------------------------------------------------------------------------------------------


def test_kl_is_torchs_and_its_gradient_by_logits_is_p_minus_the_average() -> None:
    ours, theirs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    kl = Categorical(ours).kl_from(Categorical(theirs))
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=theirs), torch.distributions.Categorical(logits=ours)
    )
    close(kl.detach(), wanted.detach())
    (k,) = torch.autograd.grad(kl.sum(), ours)
    close(k, ours.detach().softmax(-1) - theirs.softmax(-1))
    both = MultiCategorical((Categorical(ours), Categorical(ours[:, :2])))
    average = MultiCategorical((Categorical(theirs), Categorical(theirs[:, :2])))
    close(both.kl_from(average).detach(), (kl + Categorical(ours[:, :2]).kl_from(Categorical(theirs[:, :2]))).detach())


def test_gaussian_kl_is_torchs_and_its_gradients_are_the_formulas() -> None:
    m, s, m_a, s_a = (torch.randn(4, 2, dtype=torch.float64, requires_grad=i < 2) for i in range(4))
    kl = Gaussian(m, s).kl_from(Gaussian(m_a, s_a))
    normal = torch.distributions.Normal
    close(kl.detach(), torch.distributions.kl_divergence(normal(m_a, s_a.exp()), normal(m, s.exp())).sum(-1).detach())
    of_mean, of_log_std = torch.autograd.grad(kl.sum(), (m, s))
    variance = (2 * s.detach()).exp()
    close(of_mean, (m.detach() - m_a) / variance)
    close(of_log_std, 1 - ((2 * s_a).exp() + (m_a - m.detach()) ** 2) / variance)
