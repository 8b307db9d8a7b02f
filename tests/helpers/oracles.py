"""Other people's V-trace, GAE and clipped surrogate, over inputs that tests/properties/test_parity.py left.

A program, run in an interpreter of its own, because importing rlax and torchrl takes seconds, warns, starts JAX's
threads and changes the way processes are started, none of which the other tests should see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import rlax
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate, vtrace_advantage_estimate


def from_rlax(x: dict[str, np.ndarray], trace_lambda: float, rho_bar: float, policy_rho_bar: float) -> np.ndarray:
    """Advantage and target, ``[2, T, B]``; rlax has ``c_bar = 1``.

    It knows no fake rows: with ρ = 0 there a row's target is its value, which is what ours is.
    """
    value, discount = x["value"], x["discount"]

    def one(v_tm1: jax.Array, v_t: jax.Array, r_t: jax.Array, discount_t: jax.Array, rho_tm1: jax.Array) -> jax.Array:
        bars = (trace_lambda, rho_bar, policy_rho_bar)
        errors, advantage, _ = rlax.vtrace_td_error_and_advantage(v_tm1, v_t, r_t, discount_t, rho_tm1, *bars)
        assert jax.numpy.ndim(errors) == 1
        return jax.numpy.stack([advantage, errors + v_tm1])

    streams = jax.vmap(one, in_axes=1, out_axes=2)
    return np.asarray(streams(value[:-1], value[1:], x["reward"], discount, x["rho"] * x["mask"]))


def torchrl_rows(x: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """As ``[B, T, 1]``. `done` cuts at every end, so that what it makes of a fake row stays there."""
    row = {name: torch.from_numpy(x[name]).T.unsqueeze(-1) for name in ("reward", "done", "terminated")}
    value = torch.from_numpy(x["value"]).T.unsqueeze(-1)
    return row | {"state_value": value[:, :-1], "next_state_value": value[:, 1:]}


def from_torchrl(x: dict[str, np.ndarray], gamma: float, rho_bar: float, c_bar: float) -> np.ndarray:
    """V-trace: advantage and target, ``[2, T, B]``; torchrl has ``policy_rho_bar = rho_bar`` and λ = 1."""
    log_pi = torch.from_numpy(x["rho"]).log().T.unsqueeze(-1)
    both = vtrace_advantage_estimate(
        gamma, log_pi, torch.zeros_like(log_pi), **torchrl_rows(x), rho_thresh=rho_bar, c_thresh=c_bar
    )
    return torch.stack(both)[..., 0].transpose(1, 2).numpy()


def gae_from_torchrl(x: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """GAE: advantage and target, ``[2, T, B]``."""
    return torch.stack(generalized_advantage_estimate(gamma, gae_lambda, **torchrl_rows(x)))[..., 0].mT.numpy()


def main(source: Path, sink: Path) -> None:
    """Every case in `source` to answers in `sink`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    torch.set_default_dtype(torch.float64)  # torchrl makes γ · (not done) in the default one
    x = dict(np.load(source))
    gamma = float(x["gamma"])
    answers = {}
    for i, (trace_lambda, rho_bar, policy_rho_bar) in enumerate(x["rlax_bars"].tolist()):
        answers[f"rlax_{i}"] = from_rlax(x, trace_lambda, rho_bar, policy_rho_bar)
    for i, (rho_bar, c_bar) in enumerate(x["torchrl_bars"].tolist()):
        answers[f"torchrl_{i}"] = from_torchrl(x, gamma, rho_bar, c_bar)
    for i, gae_lambda in enumerate(x["lambdas"].tolist()):
        answers[f"gae_{i}"] = gae_from_torchrl(x, gamma, gae_lambda)
    for i, clip in enumerate(x["clips"].tolist()):
        ratio, advantage = x["rho"].ravel(), x["advantage"].ravel()
        loss, gradient = jax.value_and_grad(rlax.clipped_surrogate_pg_loss)(ratio, advantage, clip)
        answers[f"clip_{i}_loss"], answers[f"clip_{i}_gradient"] = np.asarray(loss), np.asarray(gradient)
    np.savez(sink, **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
