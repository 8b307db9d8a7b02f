"""Masked actions are never taken, weigh nothing in learning, and are learned about in every combination."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyactor as pa
from polyactor import transport
from polyactor.config import Config, Normalize
from polyactor.data import Rollout
from polyactor.envs.check import inspect
from polyactor.equations import losses
from polyactor.equations.distributions import ILLEGAL
from polyactor.errors import UsageError
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.models.action_space import ActionSpec
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.report.video import record
from polyactor.schemes import SCHEMES
from polyactor.storage.metrics_log import read_rows
from tests.helpers.fresh import fresh
from tests.helpers.policies import untrained
from tests.helpers.toys import LENGTH, Masked
from tests.properties.test_spaces import ALGORITHMS, CORES, ENOUGH, greedy

MOST_STEPS, LOOKS = 160_000, 4_000


@dataclass(frozen=True)
class Cell:
    """One combination, over two workers where the scheme has several."""

    algorithm: str
    core: Any
    scheme: str

    def config(self, **toy: Any) -> Config:
        """Settings that learn the toy in seconds; with memory, states are shown two steps before they count."""
        toy.setdefault("remembered", 0 if self.core == "none" else 2)
        return Config(
            env=partial(Masked, **toy),
            algorithm=ALGORITHMS[self.algorithm],
            optimizer=Adam(lr=3e-3, max_grad_norm=1.0),
            scheme=SCHEMES[self.scheme](),
            workers=1 if self.scheme == "sync" else 2,
            envs=16 if self.scheme == "sync" else 8,
            rollout=LENGTH,
            steps=MOST_STEPS,
            model=ModelSpec(hidden=(32,), core=self.core, core_size=32, log_std_start=-0.7),
            normalize=Normalize(observation=True),
            precision="fp32",
            transport="inline",
            seed=1,
        )


CELLS = [Cell(*each) for each in itertools.product(ALGORITHMS, CORES, SCHEMES)]
FAST = {("a2c", "none", "hogwild"), ("acer", "none", "sync"), ("ppo", "none", "param-server")}
FAST |= {("vtrace", "none", "actor-learner")}


def name_of(cell: Cell) -> str:
    return f"{cell.algorithm}-{cell.core}-{cell.scheme}"


def learned(config: Config, *, most: int = MOST_STEPS) -> tuple[float, int]:
    """The share of the best return of greedy games once it is enough, or at the end; and the agent steps."""
    parts, looked, share = fresh(config), 0, 0.0
    for _ in transport.run(parts):
        if parts.counters.steps - looked >= LOOKS:
            looked, share = parts.counters.steps, greedy(parts)
            if share >= ENOUGH or looked >= most:
                break
    assert not parts.counters.new_env_errors()  # an illegal action fails the environment
    return share, parts.counters.steps


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=[] if (cell.algorithm, cell.core, cell.scheme) in FAST else pytest.mark.slow)
        for cell in CELLS
    ],
    ids=name_of,
)
def test_the_optimum_is_reached(cell: Cell, record_property: Any) -> None:
    share, steps = learned(cell.config())
    record_property("share", round(share, 3))
    record_property("steps", steps)
    assert share >= ENOUGH


def test_who_does_not_know_the_mask_stays_below() -> None:
    """The state says whether the lower or the higher of the legal choices pays: unseen, 2/5 is the most there is."""
    cell = Cell("a2c", "none", "sync")
    assert learned(cell.config(ranked=True), most=8_000)[0] >= ENOUGH
    assert learned(cell.config(ranked=True, told="not"), most=8_000)[0] < 0.5


# ---- distributions -------------------------------------------------------------------------------------------------

DRAWS, ROWS = 1_000_000, 1_000
SPECS = {
    "discrete": ActionSpec((5,), 0, ()),
    "multidiscrete": ActionSpec((2, 3, 5), 0, (3,)),
    "mixed": ActionSpec((2, 5), 1, (3,)),
}


def masks_of(spec: ActionSpec, rows: int, seed: int = 0) -> Tensor:
    """Random ones ``[rows, C]`` with at least one legal choice in each part."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(rows, spec.choices, generator=generator) < 0.4
    for part in masks.split(spec.sizes, -1):
        part[torch.arange(rows), torch.randint(part.shape[1], (rows,), generator=generator)] = True
    return masks


def params_of(spec: ActionSpec, rows: int, seed: int = 0) -> Tensor:
    """Of policies from nearly uniform to nearly certain ``[rows, P]``."""
    params = torch.randn(rows, spec.params, generator=torch.Generator().manual_seed(seed))
    params[:, : spec.choices] *= torch.logspace(-2, 3, rows).unsqueeze(1)
    return params


def all_legal(spec: ActionSpec, masks: Tensor, action: Tensor) -> bool:
    """Whether actions ``[..., rows, *A]`` are legal by masks ``[rows, C]``."""
    chosen = action.unsqueeze(-1) if not spec.shape else action[..., : len(spec.sizes)]
    parts = zip(masks.split(spec.sizes, -1), chosen.long().unbind(-1), strict=True)
    return all(bool(part.expand(*a.shape, -1).gather(-1, a.unsqueeze(-1)).all()) for part, a in parts)


@pytest.mark.parametrize("name", SPECS)
def test_a_masked_action_is_never_drawn(name: str) -> None:
    spec = SPECS[name]
    masks, generator = masks_of(spec, ROWS), torch.Generator().manual_seed(0)
    pi = spec.distribution(spec.masked(params_of(spec, ROWS), masks).expand(DRAWS // ROWS, -1, -1))
    assert all_legal(spec, masks, pi.sample(generator))
    assert all_legal(spec, masks, spec.distribution(spec.masked(params_of(spec, ROWS), masks)).mode())
    assert not all_legal(spec, masks, spec.distribution(params_of(spec, ROWS)).sample(generator))
    if spec.dims:
        noise = torch.randn(DRAWS // ROWS, ROWS, *spec.shape, generator=generator)
        noise[0], noise[1], noise[2] = -40.0, 40.0, 0.0  # Φ is 0 and 1 in float32
        assert all_legal(spec, masks, pi.from_noise(noise))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SPECS)
def test_masked_logits_have_no_gradient_and_no_say(name: str) -> None:
    spec = SPECS[name]
    masks, params = masks_of(spec, ROWS), params_of(spec, ROWS)
    others = spec.distribution(spec.masked(params_of(spec, ROWS, seed=1), masks))
    action = others.sample(torch.Generator().manual_seed(0))
    legal = torch.cat([masks, torch.ones(ROWS, spec.params - spec.choices, dtype=torch.bool)], -1)
    told = []
    for illegal in (0.0, 1e6):
        own = torch.where(legal, params, illegal).requires_grad_()
        pi = spec.distribution(spec.masked(own, masks))
        terms = torch.stack([pi.log_prob(action), pi.entropy(), pi.kl_from(others), others.kl_from(pi)])
        (gradient,) = torch.autograd.grad(terms.sum(), own)
        assert not gradient[~legal].any()
        assert gradient[legal].any()
        told.append((terms.detach(), gradient))
    assert torch.equal(told[0][0], told[1][0])
    assert torch.equal(told[0][1], told[1][1])
    assert bool(told[0][0].isfinite().all())
    assert bool(told[0][1].isfinite().all())


@pytest.mark.parametrize("name", SPECS)
def test_all_is_finite_where_two_policies_have_other_masks(name: str) -> None:
    """As where the same state is told other masks, which no environment should do."""
    spec = SPECS[name]
    both = [spec.masked(params_of(spec, ROWS, seed=i).clamp(-20, 20), masks_of(spec, ROWS, i)) for i in (0, 1)]
    both[1].requires_grad_()
    mu, pi = map(spec.distribution, both)
    action = mu.sample(torch.Generator().manual_seed(0))
    rho = (pi.log_prob(action) - mu.log_prob(action)).exp()
    assert (rho == 0).any()
    terms = [rho, pi.entropy(), pi.kl_from(mu), mu.kl_from(pi), pi.log_prob(action)]
    if not spec.dims:
        log_p, log_mu, a = pi.log_p, mu.log_p, mu.index(action)  # type: ignore[attr-defined]
        terms.append(losses.truncated_weights(log_p, log_p - log_mu, a, log_p, rho, rho, 10.0).sum(-1))
    for term in terms:
        assert bool(term.isfinite().all())
    (gradient,) = torch.autograd.grad(torch.stack([term.sum() for term in terms[:-1]]).sum(), both[1])
    assert bool(gradient.isfinite().all())


def test_a_floor_is_no_number_that_a_network_reaches() -> None:
    assert torch.tensor(ILLEGAL).exp() == 0
    assert torch.isfinite(torch.tensor(ILLEGAL, dtype=torch.bfloat16))


# ---- rollouts ------------------------------------------------------------------------------------------------------


def rollouts_of(config: Config, count: int) -> tuple[Any, list[Rollout]]:
    """Of the config's first worker, with its model."""
    replica, actor = fresh(config).actor(0)
    rollouts = [actor.collect(0).map(lambda x, _: x.clone()) for _ in range(count)]
    actor.close()
    return replica.model, rollouts


TOYS: dict[str, Any] = {
    "discrete": {},
    "parts": {"parts": 3, "told": "method"},
    "mixed": {"parts": 2, "numbers": True, "told": "observation"},
}


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("toy", TOYS)
def test_a_learner_sees_the_policy_that_acted(toy: str, core: str) -> None:
    """Bit for bit the same masks, over episodes' ends and from one rollout to the next."""
    config = replace(Cell("acer", core, "sync").config(**TOYS[toy]), envs=4, rollout=5)
    model, rollouts = rollouts_of(config, 6)
    for x in rollouts:
        assert x.action_mask is not None
        assert x.behavior_params is not None
        pi = model.distribution(model.unroll(x).policy[:-1])
        assert torch.allclose(pi.log_prob(x.action), x.behavior_log_prob, atol=1e-5)
        legal = x.action_mask.unflatten(-1, (-1, Masked.choices))
        fake = x.is_first[1:]
        assert bool(legal[:-1][fake].all()), "nobody acts there"
        assert bool((legal[:-1][~fake].sum(-1) == 2).all())
        assert bool(((x.behavior_params[..., : x.action_mask.shape[-1]] == ILLEGAL) == ~x.action_mask[:-1]).all())
    assert any(bool(x.is_first[1:].any()) for x in rollouts)
    for before, after in itertools.pairwise(rollouts):
        assert torch.equal(before.action_mask[-1], after.action_mask[0])  # type: ignore[index]


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_of_a_loss_reaches_what_is_masked(algorithm: str, toy: str) -> None:
    """Nor is it infinite where the masks are not those of the policy that acted."""
    config = replace(Cell(algorithm, "none", "sync").config(**TOYS[toy]), envs=4)
    model, (x, *_) = rollouts_of(config, 1)
    own, average = config.algorithm, fresh(replace(config, seed=9)).replica().model
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    masked = ActionSpec.masked
    for rollout, same in ((x, True), (x.replace(action_mask=x.action_mask.roll(1, -1)), False)):  # type: ignore[union-attr]
        with pytest.MonkeyPatch.context() as patch:

            def seen(spec: ActionSpec, params: Tensor, mask: Any) -> Tensor:
                if params.requires_grad:
                    params.retain_grad()
                    kept.append(params)
                return masked(spec, params, mask)

            patch.setattr(ActionSpec, "masked", seen)
            kept.clear()
            batch = next(own.batches(model, rollout, None, generator))
            loss, metrics = own.loss(model, batch, average if own.averaging else None)
            loss.backward()
        found = [each for each in kept if each.grad is not None]
        assert len(found) == 1
        (params,) = found
        legal = batch.rollout.action_mask
        assert legal is not None
        gradient = params.grad[..., : legal.shape[-1]]
        assert not gradient[~legal].any()
        assert gradient.any()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        if same:
            assert all(bool(torch.as_tensor(each).isfinite().all()) for each in metrics.values())
        model.zero_grad()


# ---- runs ----------------------------------------------------------------------------------------------------------


class Filmed(Masked):
    """Can be looked at."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 # as Gymnasium has it
    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


def test_a_run_its_resumption_an_evaluation_and_a_film_keep_to_the_masks(tmp_path: Path) -> None:
    """An illegal action fails the environment; untrained policies would soon take one."""
    given: dict[str, Any] = {"quiet": True, "callbacks": []}
    values = {"env": Filmed, "scheme": "sync", "envs": 4, "rollout": 5, "model": {"hidden": (8,)}, "seed": 1}
    replayed = {"algorithm": {"replay_capacity": 300, "replay_start": 50}}
    run = pa.train("acer", **values | replayed | given, steps=600, out=str(tmp_path / "run"))
    run = pa.resume(run.path, steps=1_200, trust_code=True, **given)
    assert (run.status, read_rows(run.path / "metrics.jsonl")[-1]["agent_steps"] >= 1_200) == ("done", True)
    assert not [each for each in read_rows(run.path / "events.jsonl") if each["event"] == "env_error"]
    assert read_rows(run.path / "metrics.jsonl")[-1]["env_errors"] == 0
    config, tensors = read(run.path, trust_code=True)
    for deterministic in (True, False):
        assert evaluate(config, tensors, games=40, deterministic=deterministic).lost == 0
    assert record(config, tensors, tmp_path / "film.mp4").cut == ""
    policy, env = pa.load(run.path, trust_code=True), Filmed()
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        policy.reset()
        over = False
        while not over:
            action = policy.act(observation, deterministic=seed % 2 == 0, action_mask=info["action_mask"])
            observation, _, over, _, info = env.step(action)


@pytest.mark.parametrize("form", [np.asarray, list, tuple, torch.tensor, lambda mask: np.array(mask, bool)])
def test_a_policy_takes_a_mask_in_every_form(form: Any) -> None:
    policy = untrained(Masked)
    x = np.zeros((1, 10), np.float32)
    for legal in range(5):
        for deterministic in (True, False):
            mask = form([int(each == legal) for each in range(5)])
            assert policy.act(x, deterministic=deterministic, action_mask=mask) == legal


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones(4), "action_mask [1. 1. 1. 1.] is not allowed: an action mask of 4 numbers where its actions have 5"),
        (np.zeros(5), "is not allowed: an action mask without a legal action"),
        (
            [1, 0, 2, 0, 0],
            "action_mask [1, 0, 2, 0, 0] is not allowed: the action mask [1, 0, 2, 0, 0], which has",
        ),
        ([[1], [0, 1], 1], "is not allowed: "),
        ("legal", "action_mask legal is not allowed: an action mask of 1 numbers where its actions have 5 choices"),
        ({"x": 1}, "is not allowed: an action mask of 1 numbers where its actions have 5 choices"),
    ],
)
def test_a_policy_refuses_what_is_no_mask_in_a_sentence(mask: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        untrained(Masked).act(np.zeros((1, 10), np.float32), action_mask=mask)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_finds_the_mask_in_an_observation() -> None:
    policy = untrained(partial(Masked, "observation", parts=2))
    x = {"action_mask": np.eye(5, dtype=np.int8)[[3, 1]].ravel(), "seen": np.zeros((2, 10), np.float32)}
    assert policy.act(x).tolist() == [3, 1]
    assert policy.act(x, action_mask=np.eye(5, dtype=np.int8)[[0, 2]]).tolist() == [0, 2]  # the one that is handed over
    with pytest.raises(UsageError, match="without a legal action"):
        policy.act(x | {"action_mask": np.zeros(10, np.int8)})


def test_where_there_are_no_choices_nothing_can_be_illegal() -> None:
    policy, x = untrained("Pendulum-v1"), np.zeros(3, np.float32)
    assert policy.act(x, action_mask=[]).shape == (1,)
    with pytest.raises(UsageError, match="an action mask of 1 numbers where its actions have 0 choices"):
        policy.act(x, action_mask=np.ones(1))


def test_an_inspection_shows_that_parts_have_masks() -> None:
    facts = inspect(partial(Masked, "method", parts=2, numbers=True), 2).facts
    assert facts["action"] == "Tuple(MultiDiscrete([5 5]), Box(-1.0, 1.0, (1,), float32)), masked"
