"""The Python door: parts by name or by their fields, and what is not a setting."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import polyactor as pa
from polyactor import api, envs
from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.envs import Specs
from polyactor.errors import CheckpointError, PolyactorError, UsageError
from polyactor.optim.rules import Adam
from polyactor.schemes import ActorLearner, Hogwild
from polyactor.settings import autotune
from polyactor.settings.check import settled
from polyactor.settings.presets import PRESETS, base_config
from polyactor.settings.serialize import StandIn, algorithm_from, from_json, to_json
from polyactor.storage.run_directory import run_directory
from polyactor.system import forkserver
from polyactor.training import trainer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs of runs that would have been trained."""
    configs: list[Config] = []
    monkeypatch.setattr(trainer, "train", lambda config, spec, reasons, callbacks: configs.append(config))
    monkeypatch.setattr(forkserver, "start_forkserver", lambda: None)
    return configs


def test_parts_are_named_or_changed_or_both(asked: list[Config]) -> None:
    pa.train("a3c", env="CartPole-v1")
    pa.train("a3c", env="CartPole-v1", scheme={"lock": "both"}, optimizer={"lr": 0.5})
    pa.train("impala", env="CartPole-v1", scheme={"name": "actor-learner", "max_lag": 3}, optimizer="adam")
    pa.train("a3c", env="CartPole-v1", optimizer={"name": "adam", "lr": 0.25}, algorithm={"gamma": 0.5})
    plain, changed, learner, adam = asked
    assert changed.scheme == Hogwild(lock="both")
    assert type(changed.optimizer) is type(plain.optimizer)
    assert changed.optimizer.lr == 0.5
    assert learner.scheme == ActorLearner(max_lag=3)
    assert isinstance(adam.optimizer, Adam)
    assert (adam.optimizer.lr, adam.algorithm.gamma) == (0.25, 0.5)


def test_a_directory_may_be_a_path(asked: list[Config]) -> None:
    pa.train("a3c", env="CartPole-v1", out=Path("runs") / "one")
    assert asked[0].out == "runs/one"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": {"locks": "both"}}, "there is no setting scheme.locks (did you mean 'lock'?)"),
        ({"optimizer": {"name": "adam", "lrs": 1}}, "there is no setting optimizer.lrs"),
        ({"optimizer": {"name": "adan"}}, "--optimizer adan does not exist"),
        ({"worker": 3}, "there is no setting worker (did you mean 'workers'?)"),
    ],
)
def test_what_is_no_setting_is_named(values: dict[str, Any], words: str, asked: list[Config]) -> None:
    with pytest.raises(pa.PolyactorError) as caught:
        pa.train("a3c", env="CartPole-v1", **values)
    assert words in str(caught.value)
    assert not asked


CHAIN = {"env": "polyactor/Chain-v0", "workers": 1, "envs": 2, "rollout": 5, "steps": 30, "quiet": True}
PARTS: list[tuple[str, Any]] = [
    ("algorithm", "a2c"), ("algorithm", {"name": "a2c", "gamma": 0.9}), ("algorithm", pa.A2C(gamma=0.9)),
    ("algorithm", "ppo"), ("algorithm", {"name": "ppo", "epochs": 2}), ("algorithm", pa.PPO(epochs=2)),
    ("algorithm", "vtrace"), ("algorithm", {"name": "vtrace", "rho_bar": 2.0}), ("algorithm", pa.VTrace(rho_bar=2.0)),
    ("algorithm", "acer"), ("algorithm", {"name": "acer", "replay_start": 0}), ("algorithm", pa.ACER(replay_start=0)),
    ("scheme", "sync"), ("scheme", {"name": "sync", "threads": 1}), ("scheme", pa.Sync(threads=1)),
    ("scheme", "hogwild"), ("scheme", {"name": "hogwild", "lock": "both"}), ("scheme", pa.Hogwild(lock="both")),
    ("scheme", "param-server"), ("scheme", {"name": "param-server", "accumulate": 2}),
    ("scheme", pa.ParamServer(accumulate=2)),
    ("scheme", "actor-learner"), ("scheme", {"name": "actor-learner", "batch": 2}),
    ("scheme", pa.ActorLearner(batch=2)),
    ("optimizer", "sgd"), ("optimizer", {"name": "sgd", "lr": 0.1}), ("optimizer", pa.SGD(lr=0.1)),
    ("optimizer", "rmsprop"), ("optimizer", {"name": "rmsprop", "alpha": 0.9}), ("optimizer", pa.RMSprop(alpha=0.9)),
    ("optimizer", "adam"), ("optimizer", {"name": "adam", "beta1": 0.8}), ("optimizer", pa.Adam(beta1=0.8)),
    ("optimizer", "kfac"), ("optimizer", {"name": "kfac", "damping": 0.1}), ("optimizer", pa.KFAC(damping=0.1)),
    ("model", "mlp"), ("model", {"name": "mlp", "hidden": [4]}), ("model", pa.ModelSpec(hidden=(4,))),
    ("normalize", {"reward": True}), ("normalize", pa.Normalize(clip_reward=1.0)),
    ("atari", {"stack": 2}), ("atari", pa.AtariOptions(stack=2)),
]  # fmt: skip


def method_for(part: Any) -> str:
    """K-FAC is for `sync` alone."""
    return "a2c" if "kfac" in repr(part).lower() else "a3c"


@pytest.mark.parametrize(
    ("section", "part"),
    # Instances in the fast suite; a name or a mapping becomes one before anything is trained.
    [pytest.param(*each, marks=[pytest.mark.slow] * isinstance(each[1], str | dict)) for each in PARTS],
    ids=repr,
)
def test_every_part_trains_as_name_mapping_and_instance(section: str, part: Any, tmp_path: Path) -> None:
    run = pa.train(method_for(part), transport="inline", out=tmp_path / "run", **{**CHAIN, section: part})
    assert run.status == "done"


@pytest.mark.parametrize(("section", "part"), [each for each in PARTS if not isinstance(each[1], str)], ids=repr)
def test_values_of_a_mapping_arrive_and_an_instance_is_what_runs(section: str, part: Any, asked: list[Config]) -> None:
    pa.train(method_for(part), **{**CHAIN, section: part})
    found = getattr(asked[0], section)
    if isinstance(part, dict):
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}
        assert {name: getattr(found, name) for name in plain if name != "name"} == {
            name: value for name, value in plain.items() if name != "name"
        }
    else:
        assert found == part


def test_every_exported_part_is_tried() -> None:
    kinds = (pa.Algorithm, type(pa.Sync()).__mro__[1], type(pa.SGD()).__mro__[1])
    exported = {getattr(pa, name) for name in pa.__all__ if isinstance(getattr(pa, name), type)}
    parts = {part for part in exported if issubclass(part, kinds)} | {pa.ModelSpec, pa.Normalize, pa.AtariOptions}
    assert parts - {pa.Algorithm} == {type(part) for _, part in PARTS if not isinstance(part, (str, dict))}


def test_nothing_of_the_preset_leaks_into_an_instance(asked: list[Config]) -> None:
    """pong-a3c-server-3 says much of its algorithm, scheme, optimizer, model and preprocessing."""
    preset = PRESETS["pong-a3c-server-3"].values
    assert {path.partition(".")[0] for path in preset} >= {"algorithm", "scheme", "optimizer", "model"}
    sections = {
        "algorithm": pa.A2C(), "scheme": pa.ParamServer(), "optimizer": pa.Adam(), "model": pa.ModelSpec(),
        "normalize": pa.Normalize(), "atari": pa.AtariOptions(),
    }  # fmt: skip
    pa.train("pong-a3c-server-3", env="CartPole-v1", per_worker=(), **sections)
    assert {section: getattr(asked[0], section) for section in sections} == sections


def test_another_part_by_name_has_its_own_defaults_and_the_presets_own_keeps_its_values(asked: list[Config]) -> None:
    pa.train("pong-a3c-server-3", env="CartPole-v1", scheme="param-server", algorithm="a2c", optimizer="adam")
    pa.train("pong-a3c-server-3", env="CartPole-v1", scheme="hogwild", algorithm="vtrace", optimizer="sgd")
    same, other = asked
    assert replace(same, env="") == replace(base_config("pong-a3c-server-3"), env="")
    assert (other.scheme, other.algorithm, other.optimizer) == (pa.Hogwild(), pa.VTrace(), pa.SGD())


def test_a_whole_config_is_trained_and_may_be_changed(asked: list[Config]) -> None:
    config = replace(base_config("a3c", env="CartPole-v1"), workers=1)
    pa.train(config)
    pa.train(config, env="Acrobot-v1", optimizer="sgd", scheme={"lock": "update"}, model="mlp", steps=7)
    whole, changed = asked
    assert whole == config
    model, scheme = replace(config.model, torso="mlp"), pa.Hogwild(lock="update")
    wanted = {"env": "Acrobot-v1", "optimizer": pa.SGD(), "scheme": scheme, "model": model, "steps": 7}
    assert changed == replace(config, **wanted)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Own(pa.Algorithm):
    """A loss of one's own."""

    gamma: float = 0.5


def test_an_algorithm_of_ones_own_is_an_instance(asked: list[Config]) -> None:
    pa.train("a3c", env="CartPole-v1", algorithm=Own(gamma=0.25))
    assert asked[0].algorithm == Own(gamma=0.25)


@pytest.mark.parametrize(
    ("preset", "values", "words"),
    [
        ("a3c", {"scheme": pa.Adam()}, "scheme Adam("),
        (
            "a3c",
            {"scheme": 3},
            "scheme 3 is not allowed: it must be a name, a mapping of its fields, or an instance of",
        ),
        (
            "a3c",
            {"scheme": pa.Hogwild},
            "is not allowed: it must be a name, a mapping of its fields, or an instance of",
        ),
        ("a3c", {"optimizer": pa.Hogwild()}, "or an instance of Rule"),
        ("a3c", {"algorithm": ["a2c"]}, "or an instance of Algorithm"),
        ("a3c", {"algorithm": "a2d"}, "algorithm a2d does not exist (did you mean 'a2c'?)"),
        ("a3c", {"model": "mpl"}, "--model.torso mpl is not allowed: it must be one of auto, mlp"),
        ("a3c", {"model": pa.A2C()}, "or an instance of ModelSpec"),
        ("a3c", {"model": {"hidden": [64, "x"]}}, "--model.hidden (64, 'x') is not allowed: it must be"),
        ("a3c", {"normalize": "reward"}, "normalize reward is not allowed: it must be a mapping of its fields, or an"),
        ("a3c", {"normalize": {"reward": "yes"}}, "--normalize.reward yes is not allowed: it must be true or false"),
        ("a3c", {"atari": {"stak": 2}}, "there is no setting atari.stak (did you mean 'stack'?)"),
        ("a3c", {"quiet": 1}, "--quiet 1 is not allowed: it must be true or false"),
        ("a3c", {"steps": 1e6 + 0.5}, "--steps 1000000.5 is not allowed: it must be a whole number"),
        ("a3c", {"steps": True}, "--steps True is not allowed: it must be a whole number"),
        ("a3c", {"steps": np.array([2000])}, "--steps [2000] is not allowed: it must be a number of at least 1"),
        ("a3c", {"seed": "3"}, "--seed 3 is not allowed: it must be a number of at least 0, not a text"),
        ("a3c", {"compile": "no"}, "--compile no is not allowed: it must be true or false"),
        ("a3c", {"optimizer": {"lr": np.float32("nan")}}, "--optimizer.lr nan is not allowed"),
        ("a3c", {"out": "a\nb"}, "--out a?b is not allowed: it must be one line of text"),
        ("a3c", {"out": b"run"}, "--out b'run' is not allowed: it must be a text or none"),
        ("a3c", {"env": "Cart\nPole"}, "Cart?Pole"),
        ("a3c", {"steps.more": 1}, "there is no setting steps.more"),
        ("a3c", {"transport": "carrier pigeon"}, "--transport carrier pigeon is not allowed: it must be one of local"),
        ("a3c", {"workers": "many"}, "--workers many is not allowed"),
        ("a3c", {"env": 5}, "an environment cannot be given as an object of type int: hand over an id, or a function"),
        (5, {}, "preset 5 is not allowed: it must be a name or a Config"),
        ("a3d", {}, "there is no preset a3d (did you mean 'a3c'?)"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    preset: Any,
    values: dict[str, Any],
    words: str,
    asked: list[Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pa.PolyactorError) as caught:
        pa.train(preset, **{"env": "CartPole-v1", **values})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not asked
    assert list(tmp_path.iterdir()) == []


def test_numbers_may_be_left_to_the_machine(asked: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "workers", lambda config: (3, "three"))
    monkeypatch.setattr(autotune, "cheapest", lambda microseconds, sizes: (8, "eight"))
    pa.train("a3c", env="CartPole-v1", workers="auto", envs="auto")
    assert (asked[0].workers, asked[0].envs) == (3, 8)


# ---- preparing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Environments that were looked at."""
    seen, real = [], envs.make_envs

    def counted(env: Any, *args: Any, **values: Any) -> envs.VectorEnv:
        seen.append(env)
        return real(env, *args, **values)

    monkeypatch.setattr(envs, "make_envs", counted)
    return seen


@pytest.mark.parametrize(
    ("preset", "env"),
    [
        ("a3c", "CartPole-v1"),
        ("cartpole-a2c", "CartPole-v1"),
        ("bipedal-a3c-lstm", "Pendulum-v1"),  # a source's row, which asks for no kind of environment
        ("a3c", "PongNoFrameskip-v4"),
    ],
)
def test_an_environment_is_looked_at_once(preset: str, env: str, asked: list[Config], looks: list[Any]) -> None:
    if env.startswith("Pong"):
        pytest.importorskip("ale_py")
    pa.train(preset, env=env)
    assert (len(asked), looks) == (1, [envs.Environment(env)])


def test_the_command_line_looks_once_too(
    asked: list[Config], looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyactor.cli.main._exit_code", lambda run: 0)
    assert cli.run(["train", "a3c", "--env", "CartPole-v1", "--steps", "1000"]) == 0
    assert (asked[0].steps, looks) == (1_000, [envs.Environment("CartPole-v1")])


def by_flags(preset: str, **values: Any) -> None:
    cli.run(["train", preset, *(f"--{name}={value}" for name, value in values.items())])


@pytest.mark.parametrize("train", [pa.train, by_flags])
def test_what_is_wrong_is_refused_in_one_order(train: Callable[..., Any], asked: list[Config], tmp_path: Path) -> None:
    """Values, then the directory, then what does not go together."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    values: dict[str, Any] = {"env": "CartPole-v1", "out": taken, "steps": 0, "workers": 2, "scheme": "sync"}
    for words, mend in (
        ("--steps 0", {"steps": 9}),
        ("taken is taken", {"out": tmp_path / "new"}),
        ("--workers 2", {}),
    ):
        with pytest.raises(pa.PolyactorError, match=words):
            train("a3c", **values)
        values |= mend
    assert not asked


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"torso": "a3c"}}, "--model.torso a3c is not allowed: it must be one of auto, mlp"),
        (
            {"algorithm": {"value_loss": "l1"}},
            "--algorithm.value-loss l1 is not allowed: it must be one of",
        ),
        ({"transport": "carrier pigeon"}, "it must be one of local, inline"),
        ({"steps": "5"}, "--steps 5 is not allowed: it must be a number of at least 1"),
    ],
)
def test_python_is_told_what_a_flag_would_be(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        pa.train("a2c", env="CartPole-v1", out=str(tmp_path / "run"), **values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("needs", [frozenset({"behaviour_parms"}), frozenset({"reward"})])
def test_an_algorithm_that_needs_no_field_there_is_is_refused(needs: frozenset[str], asked: list[Config]) -> None:
    wishful = type("Wishful", (pa.A2C,), {"needs": needs})
    with pytest.raises(pa.PolyactorError, match=r"its `needs` may name behavior_params"):
        pa.train("a2c", env="CartPole-v1", algorithm=wishful())
    assert not asked


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Box(0, 255, (84, 84), np.uint8), "observations of shape (84, 84) are read by an MLP"),
        (
            spaces.Dict(image=spaces.Box(0, 255, (7, 7, 3), np.uint8)),
            "of shape (7, 7, 3) are read by an MLP",
        ),
        (spaces.Box(0, 255, (128,), np.uint8), None),
        (spaces.Box(0, 255, (96, 96, 24), np.uint8), None),
    ],
)
def test_pictures_that_an_mlp_will_read_are_told(space: Any, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictured(gymnasium.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return space.sample(), {}

    told: list[str] = []
    monkeypatch.setattr(trainer, "train", lambda config, spec, reasons, callbacks: told.extend(reasons))
    pa.train("a2c", env=Pictured, scheme="sync")
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


# ---- values of other kinds ------------------------------------------------------------------------------------------


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    ("values", "path", "value"),
    [
        ({"steps": 1e4}, "steps", 10_000),
        ({"steps": np.int64(2000)}, "steps", 2_000),
        ({"steps": torch.tensor(2000)}, "steps", 2_000),
        ({"seed": np.uint8(3)}, "seed", 3),
        ({"envs": np.array(4)}, "envs", 4),
        ({"stop_at": np.float64(1000)}, "stop_at", 1_000.0),
        ({"stop_at": Fraction(1, 2)}, "stop_at", 0.5),
        ({"optimizer": {"lr": np.float32(0.5)}}, "optimizer.lr", 0.5),
        ({"optimizer": pa.Adam(lr=np.float64(0.5))}, "optimizer.lr", 0.5),  # type: ignore[arg-type]
        ({"algorithm": {"gamma": torch.tensor(0.5)}}, "algorithm.gamma", 0.5),
        ({"normalize": {"reward": np.bool_(True)}}, "normalize.reward", True),
        ({"model": {"hidden": np.array([32, 16])}}, "model.hidden", (32, 16)),
        ({"model": {"hidden": [32.0, np.int32(16)]}}, "model.hidden", (32, 16)),
        ({"model": {"torso": np.str_("mlp")}}, "model.torso", "mlp"),
        ({"scheme": "hogwild", "workers": 1.0}, "workers", 1),
        ({"out": Path("runs") / "one"}, "out", "runs/one"),
    ],
)
def test_a_value_becomes_what_its_setting_is(
    values: dict[str, Any], path: str, value: Any, asked: list[Config]
) -> None:
    pa.train("a2c", env="CartPole-v1", **values)
    found = functools.reduce(getattr, path.split("."), asked[0])  # type: ignore[arg-type]
    assert (found, type(found)) == (value, type(value))
    assert from_json(json.loads(json.dumps(to_json(asked[0])))) == asked[0]


@dataclass(frozen=True)
class Odd(pa.Algorithm):
    """Has a setting that may be anything."""

    anything: Any = field(default_factory=threading.Lock)
    inner: pa.Normalize = field(default_factory=pa.Normalize)


@pytest.mark.fault("D15")
def test_what_cannot_be_saved_is_refused_and_what_is_saved_is_read(asked: list[Config]) -> None:
    for anything, words in ((threading.Lock(), "not JSON serializable"), (float("nan"), "not JSON compliant")):
        with pytest.raises(UsageError, match=rf"--algorithm.anything .* is not allowed: .*{words}"):
            pa.train("a2c", env="CartPole-v1", algorithm=Odd(anything=anything))
    assert not asked
    pa.train("a2c", env="CartPole-v1", algorithm=Odd(anything={"a": [1]}, inner=pa.Normalize(clip_reward=2.0)))
    plain = json.loads(json.dumps(to_json(asked[0])))
    assert from_json(plain).env == "CartPole-v1"
    again = algorithm_from(f"{__file__}:Odd", {k: v for k, v in plain["algorithm"].items() if k != "name"})
    assert {each.name: getattr(again, each.name) for each in fields(again)} == {
        "anything": {"a": [1]}, "gamma": 0.99, "inner": pa.Normalize(clip_reward=2.0),
    }  # fmt: skip


def test_an_algorithm_of_a_notebook_can_be_loaded(asked: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module has no file."""
    monkeypatch.setattr(Own, "__module__", "no_file")
    pa.train("a2c", env="CartPole-v1", algorithm=Own())
    plain = to_json(asked[0])
    assert plain["algorithm"]["name"] == "no_file:Own"
    assert isinstance(from_json(plain).algorithm, StandIn)


@pytest.mark.fault("D15")
def test_arguments_that_are_no_settings_are_checked_too(finished: pa.Run) -> None:
    for call, words in (
        (lambda: pa.load(finished), r"path Run\(.* is not allowed: it must be a text"),
        (lambda: pa.load(finished.path, trust_env="no"), "trust_env no is not allowed: it must be true or false"),
        (lambda: pa.resume(finished), r"path Run\(.* is not allowed"),
        (lambda: pa.resume(finished.path, restart="no"), "restart no is not allowed: it must be true or false"),
        (lambda: pa.resume(finished.path, steps="9000"), "--steps 9000 is not allowed: it must be a whole number"),
        (lambda: pa.load(finished.path).act(np.zeros(4), deterministic="no"), "deterministic no is not allowed"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


# ---- environments as people hand them over -------------------------------------------------------------------------


class Maker:
    """Makes environments, and cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self) -> gymnasium.Env[Any, Any]:
        with self.lock:
            return gymnasium.make("polyactor/Chain-v0")


@pytest.mark.fault("D16")
def test_an_environment_that_cannot_be_copied_is_trained_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maker = Maker()
    run = pa.train("a2c", env=maker, envs=2, steps=50, quiet=True)
    assert re.fullmatch(r"a2c-Maker-\d{8}-\d{6}", run.path.name)
    with pytest.raises(UsageError, match=r"tests.test_api:<Maker>: hand it over again, in Python: env="):
        pa.load(run.path)
    assert pa.load(run.path, env=maker).config.env is maker


@pytest.mark.fault("D16")
def test_what_cannot_be_sent_to_workers_is_refused_before_anything_exists(
    asked: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be sent to worker processes .*hand over a function that makes all"):
        pa.train("a3c", env=Maker(), workers=1)
    assert not asked
    pa.train("a3c", env=Maker(), workers=1, transport="inline")
    pa.train("a3c", env=Maker(), workers=1, scheme={"workers_as": "thread"})
    assert len(asked) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("P15")
def test_to_measure_environments_leaves_the_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(configs: Any, wanted: Any) -> Any:
        np.seterr(all="raise")  # as an environment may when it is made
        return configs, []

    monkeypatch.setattr(api, "chosen", chosen)
    before = np.geterr()
    api.prepare([base_config("a2c", env="CartPole-v1")], ["envs"], Specs(), kept=False)
    assert np.geterr() == before


@pytest.mark.fault("D15")
@pytest.mark.parametrize("folder", ["wide\u3000space", "hard\u00a0space", "\udcc3\udcbc", "a\nb", "\x9b2J"])
def test_an_environment_is_read_from_where_it_was_trained_in(folder: str) -> None:
    """Names with white space and bytes of another encoding are a path's like any other, and control characters none."""
    config = replace(base_config("a2c", env="polyactor/Chain-v0"), env=f"/{folder}/file.py:Env")
    plain = json.loads(json.dumps(to_json(config)))
    if folder in ("a\nb", "\x9b2J"):
        with pytest.raises(UsageError, match="must be one line of text"):
            settled(config)
        with pytest.raises(CheckpointError, match="the environment, a wrapper"):
            from_json(plain)
    else:
        assert from_json(plain).env == settled(config).env == config.env


LONG = "x" * 300


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"out": LONG}, 5), ({"init_from": LONG}, 4), ({"preset": f"{LONG}.py:A"}, 2),
        ({"algorithm": f"{LONG}.py:A"}, 2),
        ({"env": f"{LONG}:E"}, 3), ({"env": f"{LONG}.py:E"}, 3), ({"out": ""}, 5), ({"seed": 2**63}, 2),
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_refused_in_a_sentence(given: dict[str, Any], code: int, tmp_path: Path) -> None:
    standard = {"preset": "a2c", "env": "polyactor/Chain-v0", "steps": 10, "out": str(tmp_path / "run"), "quiet": True}
    with pytest.raises(PolyactorError) as caught:
        pa.train(**(standard | given))
    assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("D15")
@pytest.mark.parametrize("read", [pa.load, pa.resume])
def test_a_run_of_a_name_that_is_too_long_does_not_exist(read: Any) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read(LONG)


def test_a_path_of_this_user_and_a_preset_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = base_config("a2c", env="polyactor/Chain-v0")
    assert run_directory(replace(config, out="~/run")) == tmp_path / "run"
    assert api.configured(Path("a2c"), "polyactor/Chain-v0", {}, {}, Specs()) == config  # type: ignore[arg-type]


def test_idle_threads_of_torch_sleep_in_a_run_and_the_environment_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are told so before torch is loaded, which reads it only once."""
    seen: list[str | None] = []

    def refuse(*_: object) -> Config:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        raise UsageError("seen")

    monkeypatch.setattr(api, "configured", refuse)
    for before, inside in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", before or "")  # put back at the end
        if before is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        with pytest.raises(UsageError, match="seen"):
            pa.train("a2c", env="CartPole-v1")
        assert seen.pop() == inside
        assert os.environ.get("OMP_WAIT_POLICY") == before
