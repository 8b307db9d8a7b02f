"""A torso and a core of one's own: they learn as ours do, and what cannot work is refused in a sentence."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

import polyactor as pa
from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.agent.streams import Drawing
from polyactor.algorithms import A2C, ACER, PPO
from polyactor.cli import main as cli
from polyactor.config import Config, Normalize
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.optim.flat import State
from polyactor.schemes import SCHEMES
from polyactor.system.process_state import moved, streams
from tests.helpers.fresh import fresh
from tests.helpers.networks import Entries, Memory, Vector
from tests.helpers.toys import Masked, Matching

SEEN = spaces.Box(-1, 1, (3,), np.float32)
ACER_SMALL = ACER(replay_capacity=800, replay_start=8, replay_ratio=1.0)


def config_of(model: ModelSpec, **values: Any) -> Config:
    usual: dict[str, Any] = {
        "env": Masked, "algorithm": A2C(), "scheme": SCHEMES["sync"](), "optimizer": Adam(lr=3e-3), "rollout": 4,
        "envs": 2, "workers": 1, "steps": 24, "transport": "inline", "precision": "fp32",
    }  # fmt: skip
    return Config(**usual | {"model": model} | values)


def trained(config: Config) -> Parts:
    parts = fresh(config)
    for _ in transport.run(parts):
        pass
    return parts


def model_of(spec: ModelSpec, space: Any = SEEN, **options: Any) -> ActorCritic:
    return ActorCritic(space, spaces.Discrete(4), spec, **options)


@pytest.mark.parametrize("algorithm", [A2C(), PPO(minibatches=2), ACER_SMALL], ids=["a2c", "ppo", "acer"])
def test_a_torso_that_is_ours_learns_bit_for_bit_as_ours_does(algorithm: Any) -> None:
    normalize = Normalize(observation=True, reward=True)
    given = {"algorithm": algorithm, "normalize": normalize, "steps": 48}
    ours, own = (trained(config_of(model, **given)) for model in (ModelSpec(hidden=(32,)), ModelSpec(torso=Vector)))
    assert own.counters.version > 1
    assert own.state.views().keys() == ours.state.views().keys()
    assert torch.equal(ours.state.vector, own.state.vector)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_torso_for_entries_and_a_core_train_under_every_scheme(scheme: str) -> None:
    env = partial(Matching, "dict", "discrete")
    parts = fresh(config_of(ModelSpec(torso=Entries, core=Memory), env=env, scheme=SCHEMES[scheme]()))
    before = parts.state.vector.clone()
    for _ in transport.run(parts):
        pass
    assert parts.counters.version >= 1
    changed = {
        name
        for name, each in parts.state.views().items()
        if not torch.equal(each, State.views(replace(parts.state, vector=before))[name])
    }
    assert {"trunk.torso.join.weight", "trunk.core.lstm.weight_ih_l0", "policy.bias"} <= changed
    assert bool(torch.isfinite(parts.state.vector).all())


def test_images_come_as_floats_with_channels_first_and_bounds_are_told() -> None:
    seen: list[Tensor] = []

    class Images(nn.Module):
        def __init__(self, space: spaces.Box) -> None:
            super().__init__()
            assert space == spaces.Box(0, 1, (3, 12, 10), np.float32)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :7]

    model = model_of(ModelSpec(torso=Images), spaces.Box(0, 255, (12, 10, 3), np.uint8))
    assert model.trunk.features == 7
    image = torch.full((2, 12, 10, 3), 51, dtype=torch.uint8)
    model.step(image, (), torch.ones(2, dtype=torch.bool))
    assert seen[-1].shape == (2, 3, 12, 10)
    torch.testing.assert_close(seen[-1], torch.full((2, 3, 12, 10), 51 / 255))


def test_vectors_are_told_without_bounds_and_normalised_images_with_those_of_clipping() -> None:
    told: list[spaces.Box] = []

    def make(space: spaces.Box) -> nn.Module:
        told.append(space)
        return nn.Flatten()

    model_of(ModelSpec(torso=make))
    model_of(ModelSpec(torso=make), spaces.Box(0, 255, (12, 10, 3), np.uint8), normalize_observation=True)
    assert told == [spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-5, 5, (3, 12, 10), np.float32)]


def test_torsos_of_policy_and_value_are_two() -> None:
    model = model_of(ModelSpec(torso=Vector, core=Memory, share_torso=False))
    assert len(model.initial_state(5)) == 4
    assert model.critic is not None
    assert model.critic.torso is not model.trunk.torso


class Peculiar(nn.Module):
    """A torso with a frozen layer, constants, a tied weight and numbers drawn by torch's own functions."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        d = int(np.prod(space.shape))
        self.frozen = nn.Linear(d, 8).requires_grad_(False)
        self.drawn = nn.Parameter(torch.randn(8, 8))
        self.tied, self.tie = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.tie.weight = self.tied.weight
        self.scale: Tensor
        self.order: Tensor
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.frozen(x.flatten(1)) @ self.drawn)
        return self.tie(torch.tanh(self.tied(h)))[:, self.order] * self.scale


@pytest.mark.parametrize("algorithm", [A2C(), ACER_SMALL], ids=["a2c", "acer"])
def test_what_needs_no_gradient_stays_as_it_is_and_what_is_tied_stays_tied(algorithm: Any) -> None:
    config = config_of(ModelSpec(torso=Peculiar), algorithm=algorithm, steps=48)
    first, parts = fresh(config), trained(config)
    before, after = first.state.views(), parts.state.views()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    own = {name.removeprefix("trunk.torso.") for name in changed if name.startswith("trunk.torso.")}
    assert own == {"drawn", "tied.weight"}
    assert {"trunk.torso.frozen.weight", "trunk.torso.scale"} <= after.keys()
    assert "trunk.torso.order" not in after
    assert "trunk.torso.tie.weight" not in after
    again = fresh(config)  # as another process makes it
    assert torch.equal(again.state.vector, first.state.vector)
    replica = parts.replica()
    torso: Any = replica.model.trunk.torso
    assert torso.tie.weight is torso.tied.weight
    if replica.model.average is not None:
        average: Any = replica.model.average.trunk.torso
        theta, mean = parts.state.theta, parts.state.average
        assert mean is not None
        assert torch.equal(before["average.trunk.torso.drawn"], before["trunk.torso.drawn"])
        assert torch.equal(average.tie.weight, after["average.trunk.torso.tied.weight"])
        assert torch.equal(average.tied.weight, average.tie.weight)
        slots = {slot.name: slot for slot in parts.state.layout.slots}
        for name, _ in replica.model.named_parameters():  # what Updater averages, place by place
            theirs = slots[f"average.{name}"]
            assert theirs.start - parts.state.layout.average == slots[name].start
        assert len(mean) == len(theta)


def test_an_average_of_torchs_own_lstm_computes_with_averaged_weights() -> None:
    config = config_of(ModelSpec(torso=Vector, core=Memory), algorithm=ACER_SMALL)
    replica = trained(config).replica()
    model, average = replica.model, replica.model.average
    assert average is not None
    x, first = torch.randn(2, 3, 1, 10), torch.zeros(2, 3, dtype=torch.bool)
    start = model.initial_state(3)
    before = average(x, start, first)[0]
    with torch.no_grad():
        for slot in replica.state.layout.slots:
            if slot.name.startswith("average.") and "lstm" in slot.name:
                slot.view(replica.vector).zero_()
    assert not torch.equal(average(x, start, first)[0], before)


# ---- what is refused -------------------------------------------------------------------------------------------------


class Wrong(nn.Module):
    """A torso with one fault."""

    def __init__(self, space: spaces.Box, fault: str) -> None:
        super().__init__()
        self.fault, self.layer = fault, nn.Linear(3, 4)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))
        if fault == "made":
            raise OSError("no weights here")
        if fault == "leaving":
            sys.exit(0)
        if fault == "dtype of a parameter":
            self.layer.double()

    def forward(self, x: Tensor) -> Any:
        if self.fault == "computing":
            raise KeyError("camera")
        if self.fault == "leaving late":
            sys.exit()
        if self.fault == "counting":
            self.count += 1
        features = self.layer(x.double() if self.fault == "dtype of a parameter" else x)
        return {
            "axes": features.unsqueeze(-1), "rows": features[:1], "dtype": features.double(), "kind": [features],
            "dtype of a parameter": features.float(), "none": features[:, :0],
        }.get(self.fault, features)  # fmt: skip


class Odd(nn.Module):
    """A torso that computes what a test says of its input and of its layer's output."""

    def __init__(self, space: spaces.Box, compute: Any) -> None:
        super().__init__()
        self.compute, self.layer, self.calls = compute, nn.LazyLinear(4), 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.compute(self, x)


ODD: dict[str, list[Any]] = {
    "it changes what it is given in place, as x /= 10 does": [
        lambda own, x: own.layer(x.div_(10)),
        lambda own, x: own.layer(x.clamp_(-5, 5)),
        lambda own, x: own.layer(torch.from_numpy(np.negative(x.numpy(), out=x.numpy()))),
    ],
    "it gives other numbers for the same observations each time": [
        lambda own, x: F.dropout(own.layer(x), 0.5),
        lambda own, x: F.dropout(own.layer(x), 0.5, training=not torch.is_grad_enabled()),
        lambda own, x: own.layer(x) + torch.randn(4),
        lambda own, x: F.rrelu(own.layer(x), training=True),
        lambda own, x: F.gumbel_softmax(own.layer(x)),
        lambda own, x: own.layer(x) + np.random.default_rng().random(),
        lambda own, x: own.layer(x) / own.calls,
    ],
    "it gives other numbers for the same observations when it acts than when it learns": [
        lambda own, x: own.layer(x) * (1 + torch.is_grad_enabled()),
    ],
    "its numbers for an observation depend on the others of the batch": [
        lambda own, x: own.layer(x) - own.layer(x).mean(0),
        lambda own, x: own.layer(x) / own.layer(x).abs().max(),
        lambda own, x: own.layer(x) @ own.layer(x).T,
    ],
    "its features of 1 observation have the shape [4], not [1, F]": [lambda own, x: own.layer(x).squeeze()],
    "it raised ZeroDivisionError when tried on 1 observation: ": [lambda own, x: own.layer(x) * (1 // (len(x) // 2))],
}


def torso_with(layer: nn.Module) -> Any:
    return lambda space: nn.Sequential(nn.Linear(3, 4), layer)


REFUSED: list[tuple[Any, str]] = [
    *[
        (partial(Wrong, fault=fault), words)
        for fault, words in {
            "made": "it raised OSError when called with Box(-inf, inf, (3,), float32): no weights here",
            "computing": "it raised KeyError when tried on 3 observations: 'camera'",
            "leaving": "it raised SystemExit when called with Box(-inf, inf, (3,), float32): 0",
            "leaving late": "it raised SystemExit when tried on 3 observations: ",
            "counting": "its buffer count changes when it computes, and only parameters can learn",
            "axes": "its features of 3 observations have the shape [3, 4, 1], not [3, F]",
            "rows": "its features of 3 observations have the shape [1, 4], not [3, F]",
            "none": "its features of 3 observations have the shape [3, 0], not [3, F]",
            "dtype": "its features of 3 observations are torch.float64, not torch.float32",
            "kind": "its features of 3 observations are a list, not a tensor [3, F]",
            "dtype of a parameter": "its layer.weight is torch.float64, not torch.float32",
        }.items()
    ],
    (
        torso_with(nn.Dropout(0.5)),
        "1 is a Dropout with a dropout of 0.5, which would differ between acting and learning",
    ),
    (torso_with(nn.BatchNorm1d(4)), "1 is a BatchNorm1d, whose output depends on the other rows of a batch"),
    *[(partial(Odd, compute=each), words) for words, computes in ODD.items() for each in computes],
    (lambda space: 3, "it made a int, not a torch.nn.Module"),
    (lambda: nn.Flatten(), "it raised TypeError when called with Box(-inf, inf, (3,), float32): "),
    (nn.Flatten(), "it is a module already: name the class or function that makes one"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words[:60] for _, words in REFUSED])
def test_a_torso_that_cannot_work_is_refused_in_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(UsageError) as said:
        model_of(ModelSpec(torso=make))
    assert str(said.value).startswith("--model.torso ")
    assert f"is not allowed: {words}" in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5).eval(), nn.BatchNorm1d(4).eval(), nn.Dropout(0.0), nn.LayerNorm(4)])
def test_layers_that_compute_alike_each_time_are_allowed(layer: nn.Module) -> None:
    model_of(ModelSpec(torso=torso_with(layer)))
    with torch.inference_mode():
        model_of(ModelSpec(torso=torso_with(layer), core=Memory))


def test_an_entry_may_be_taken_out_of_the_mapping_but_not_changed() -> None:
    both = spaces.Dict({"a": SEEN, "b": SEEN})
    model_of(ModelSpec(torso=partial(Odd, compute=lambda own, x: own.layer(x.pop("b")))), both)
    with pytest.raises(UsageError, match="it changes what it is given in place"):
        model_of(ModelSpec(torso=partial(Odd, compute=lambda own, x: own.layer(x["b"].mul_(2)))), both)


def test_what_is_tried_lies_in_the_space_and_leaves_no_trace() -> None:
    seen: list[Tensor] = []

    def compute(own: Odd, x: Tensor) -> Any:
        seen.append(x)
        own.last = own.layer(x + 0 * F.dropout(x) + 0 * np.random.rand())  # an average network is a copy of it
        return own.last

    low, high = np.array([2, -np.inf, -3, -3e38, 7], np.float32), np.array([3, -4, np.inf, 3e38, 7], np.float32)
    before = streams()
    with Drawing(1):
        model_of(ModelSpec(torso=partial(Odd, compute=compute)), spaces.Box(low, high), averaged=True)
    assert not moved(before)
    assert all(((x >= torch.from_numpy(low)) & (x <= torch.from_numpy(high)) & (x.abs() < 10)).all() for x in seen)
    assert {len(x) for x in seen} == {1, 3}
    assert len(seen[0].unique()) == 13
    bytes_in = spaces.Box(0, 4, (9,), np.uint8)
    model_of(ModelSpec(torso=partial(Odd, compute=compute)), bytes_in)
    assert set((seen[-1] * 255).round().flatten().tolist()) <= {0, 1, 2, 3, 4}


class WrongCore(Memory):
    """A core with one fault."""

    def __init__(self, features: int, fault: str) -> None:
        super().__init__(features)
        self.fault = fault
        if fault == "no state":
            self.initial_state = None  # type: ignore[assignment, method-assign]

    def forward(self, x: Tensor, state: Any, is_first: Tensor) -> Any:
        output, after = super().forward(x, state, is_first)
        if self.fault == "in place":
            state[1].add_(1)
        return {
            "last alone": (output[-1], after), "other state": (output, after[:1]), "no pair": output,
            "list": (output, list(after)), "noise": (output + torch.rand(8), after),
            "batch": (output - output.mean(1, keepdim=True), after), "time": (output.flip(0), after),
            "state of a batch": (output, (after[0].roll(1, 0), after[1])), "one": (output.squeeze(1), after),
            "few steps": (output.squeeze(0), after),
        }.get(self.fault, (output, after))  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "words"),
    {
        "no state": "it has no method initial_state(batch)",
        "last alone": "its features of 2 steps of 3 environments have the shape [3, 8], not [2, 3, F]",
        "other state": "its next state is [([3, 8], torch.float32)], not [([3, 8], torch.float32), ([3, 8]",
        "no pair": "it returned a Tensor, where a tuple of 2 is wanted",
        "list": "its next state is list, not [",
        "in place": "it changes what it is given in place",
        "noise": "it gives other numbers for the same observations each time",
        "batch": "its numbers for an observation depend on the others of the batch",
        "state of a batch": "its numbers for an observation depend on the others of the batch",
        "time": "its numbers for a step differ where it computes one step at a time, as acting does",
        "one": "its features of 2 steps of 1 environment have the shape [2, 8], not [2, 1, F]",
        "few steps": "its features of 1 step of 3 environments have the shape [3, 8], not [1, 3, F]",
    }.items(),
)
def test_a_core_that_cannot_work_is_refused_in_a_sentence(fault: str, words: str) -> None:
    with pytest.raises(UsageError) as said:
        model_of(ModelSpec(core=partial(WrongCore, fault=fault)))
    assert str(said.value).startswith("--model.core ")
    assert f"is not allowed: {words}" in str(said.value)


@pytest.mark.parametrize("state", [lambda b: [torch.zeros(b)], lambda b: (torch.zeros(b, 8).squeeze(),)])
def test_an_initial_state_that_is_none_is_refused(state: Any) -> None:
    class Loose(Memory):
        def initial_state(self, batch: int) -> Any:
            return state(batch)

    with pytest.raises(UsageError, match=r"its initial_state\(batch\) is not a tuple of tensors \[batch, …\]"):
        model_of(ModelSpec(core=Loose))


FILE = """
from torch import nn
number = 3
class Net(nn.Linear):
    def __init__(self, space):
        super().__init__(*space.shape, 4)
"""


@pytest.mark.parametrize(
    ("flags", "words"),
    {
        "--model.torso gone.py:Net": "there is no file {here}/gone.py",
        "--model.torso net.py:Nat": "{here}/net.py has no Nat (did you mean 'Net'?)",
        "--model.core net.py:number": "it is a int, not a class or function that makes a torch.nn.Module",
        "--model.network ends.py:Net": "{here}/ends.py could not be imported: SystemExit: 3",
        "--model.network breaks.py:Net": "{here}/breaks.py could not be imported: ZeroDivisionError: division by zero",
        "--model.network no_such_module:Net": "there is no module no_such_module",
        "--model.torso Net": "it must be one of auto, mlp, ",
        "--model.network Net": "it must be code of your own, as file.py:name or module:name",
        "--precision bf16 --model.torso net.py:Net": "use fp32, in which it computes",
        "--compile --model.torso net.py:Net": "--compile is not allowed with --model.torso of your own",
        "--model.torso net.py:Net --model.network net.py:Net": "of your own is not allowed with --model.network",
    }.items(),
)
def test_a_wrong_name_is_refused_before_there_is_a_file(
    flags: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"net": FILE, "ends": "raise SystemExit(3)", "breaks": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "a2c", "--env", "polyactor/Chain-v0", "--out", "run", "--steps", "20", *flags.split()])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert words.format(here=tmp_path) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_names_its_file_wherever_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    run = pa.train("a2c", env="polyactor/Chain-v0", model="net.py:Net", envs=2, steps=20, quiet=True, out="run")
    monkeypatch.chdir(tmp_path.parent)
    assert json.loads((run.path / "config.json").read_text())["model"]["torso"] == f"{tmp_path}/net.py:Net"
    loaded = pa.load(run.path, trust_code=True)
    assert type(loaded.model.trunk.torso).__name__ == "Net"
    again = pa.load(run.path, model={"torso": type(loaded.model.trunk.torso)})
    x = np.ones(5, np.float32)
    assert [loaded.act(x, deterministic=False) for _ in range(9)] == [
        again.act(x, deterministic=False) for _ in range(9)
    ]


@pytest.mark.slow
def test_workers_in_processes_get_a_class_that_no_file_has(tmp_path: Path) -> None:
    class Local(Vector):
        pass

    run = pa.train(
        "a3c", env="CartPole-v1", model={"torso": Local, "core": Memory}, workers=2, steps=2_000, quiet=True,
        out=tmp_path / "run", evaluate_every=1_000,
    )  # fmt: skip
    assert run.status == "done"
    assert "<" in json.loads((run.path / "config.json").read_text())["model"]["torso"]


def test_an_exact_resume_goes_on_with_parts_of_ones_own(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "env": "polyactor/TMaze-v0", "model": {"torso": Vector, "core": Memory}, "envs": 2, "rollout": 4,
        "exact_resume": True, "quiet": True,
    }  # fmt: skip
    whole = pa.train("a2c", steps=160, out=tmp_path / "whole", **given)
    part = pa.train("a2c", steps=80, out=tmp_path / "part", **given)
    pa.resume(part.path, steps=160, quiet=True, trust_code=True)
    ours, theirs = (pa.load(run.path, tag="last", trust_code=True).model.state_dict() for run in (whole, part))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
