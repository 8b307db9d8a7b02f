"""A run directory that names files of code: nothing of them is imported, by any verb, before somebody says so."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.errors import UsageError
from polyactor.settings.trust import PLACES, refuse_untrusted

CODE = """
import dataclasses
from pathlib import Path
import gymnasium
import polyactor as pa
import torch

Path(__file__).with_suffix(".mark").touch()

def make(size=None):
    return gymnasium.make("polyactor/Chain-v0")

def wrap(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward))

class Net(torch.nn.Linear):
    def __init__(self, space):
        super().__init__(*space.shape, 4)

class Whole(torch.nn.Linear):
    def __init__(self, space, params, values):
        super().__init__(*space.shape, params + values)

    def forward(self, x, state, is_first):
        y = super().forward(x)
        return y[..., :-1], y[..., -1], state

class Memory(torch.nn.Identity):
    def __init__(self, features):
        super().__init__()

    def initial_state(self, batch):
        return ()

    def forward(self, x, state, is_first):
        return x, state

class Watch:
    def on_end(self, run, status):
        pass

@dataclasses.dataclass(frozen=True)
class Mine(pa.A2C):
    pass
"""
FILES = {
    "env": "made.py:make",
    "env_wrappers": "wrapped.py:wrap",
    "callbacks": "called.py:Watch",
    "algorithm.name": "learned.py:Mine",
}
"""For each kind of part a file of its own, which leaves a mark when it is imported."""
PARTS = {"model.torso": "seen.py:Net", "model.core": "kept.py:Memory"}
"""The same for parts of a network, which other runs have."""
WHOLE = {"model.network": "whole.py:Whole"}
"""The same for a whole network, which takes the place of its parts."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of code, and its files."""
    here = tmp_path_factory.mktemp("trust")
    for name in (*FILES.values(), *PARTS.values(), *WHOLE.values()):
        (here / name.partition(":")[0]).write_text(CODE)
    pa.train(
        f"{here}/{FILES['algorithm.name']}", env=f"{here}/{FILES['env']}",
        env_wrappers=[f"{here}/{FILES['env_wrappers']}"], envs=2, steps=100, quiet=True, out=here / "run",
        callbacks=[f"{here}/{FILES['callbacks']}"],
    )  # fmt: skip
    for out, parts in {"net": PARTS, "whole": WHOLE}.items():
        model = {path.partition(".")[2]: f"{here}/{name}" for path, name in parts.items()}
        pa.train("a2c", env="polyactor/Chain-v0", model=model, envs=2, steps=100, quiet=True, out=here / out)
    return here


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run, of which nothing has been imported in this process."""
    for name in ("run", "net", "whole"):
        shutil.copytree(trained / name, tmp_path / name)
    before = [name for name in sys.modules if name.startswith("polyactor_file_")]
    for name in before:
        del sys.modules[name]
    for mark in trained.glob("*.mark"):
        mark.unlink()
    yield tmp_path
    for mark in trained.glob("*.mark"):
        mark.unlink()


def marks(trained: Path) -> list[str]:
    return sorted(mark.stem for mark in trained.glob("*.mark"))


def said_by(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    captured = capsys.readouterr()
    return stop.value.code, captured.out + captured.err


def test_there_is_a_file_for_each_place_that_may_name_code() -> None:
    assert FILES.keys() | PARTS.keys() | WHOLE.keys() == PLACES.keys()


VERBS = ["resume run --steps 200", "evaluate run --games 2", "record run", "plot run", "compare run"]


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_a_file_without_the_flag(
    verb: str, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    code, said = said_by(verb, capsys)
    assert marks(trained) == []
    if verb.split()[0] in ("plot", "compare"):
        assert code == 0
        return
    assert code == 2
    assert said.count("\n") == 1
    named = [name for path, name in FILES.items() if PLACES[path].plays or "resume" in verb]
    for name in FILES.values():
        assert (f"{trained}/{name}" in said) == (name in named)
    assert "if you trust it, add --trust-code (in Python: trust_code=True)" in said


def test_no_function_imports_a_file_without_the_argument(trained: Path, here: Path) -> None:
    run = here / "run"
    calls: list[Any] = [lambda: pa.load(run), lambda: pa.resume(run, steps=200, quiet=True)]
    for call in calls:
        with pytest.raises(UsageError, match="names code, which would be imported and run: the environment "):
            call()
    pa.train("a2c", env="polyactor/Chain-v0", init_from=run, envs=2, steps=20, quiet=True, out=here / "next")
    assert marks(trained) == []


def test_the_flag_imports_what_is_needed(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    assert said_by("evaluate run --games 2 --trust-code", capsys)[0] == 0
    assert marks(trained) == ["made", "wrapped"]  # to play needs no algorithm
    assert pa.load("run", trust_code=True).act(np.zeros(5, np.float32)) in range(2)
    assert said_by("resume run --steps 200 --trust-code --quiet", capsys)[0] == 0
    assert marks(trained) == ["called", "learned", "made", "wrapped"]


def test_the_older_flags_go_on_working(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They trust the environment with its wrappers, and name the algorithm."""
    monkeypatch.chdir(here)
    assert said_by("evaluate run --games 2 --trust-env", capsys)[0] == 0
    code, said = said_by("resume run --steps 200 --trust-env", capsys)
    assert code == 2
    assert f"run: the callback {trained}/called.py:Watch, the algorithm {trained}/learned.py:Mine; if you" in said
    code, said = said_by(f"resume run --steps 200 --algorithm {trained}/learned.py:Mine --callback none", capsys)
    assert code == 2
    assert "the algorithm" not in said
    assert "the callback" not in said
    assert not {"learned", "called"} & set(marks(trained))
    again = f"--algorithm {trained}/learned.py:Mine --callback none"
    assert said_by(f"resume run --steps 200 --trust-env --quiet {again}", capsys)[0] == 0
    assert "called" not in marks(trained)


def test_what_is_handed_over_needs_no_trust(trained: Path, here: Path) -> None:
    pa.load(here / "run", env="polyactor/Chain-v0", env_wrappers=[])
    with pytest.raises(UsageError, match=f"imported and run: the wrapper {trained}/wrapped.py:wrap;"):
        pa.load(here / "run", env="polyactor/Chain-v0")
    assert marks(trained) == []
    with pytest.raises(UsageError, match="trust_code yes is not allowed: it must be true or false"):
        pa.load(here / "run", trust_code="yes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="env_wrappers 3 is not allowed"):
        pa.load(here / "run", env="polyactor/Chain-v0", env_wrappers=3)  # type: ignore[arg-type]


def test_gymnasiums_own_wrappers_are_no_code_of_the_run(here: Path) -> None:
    plain = json.loads((here / "run" / "config.json").read_text()) | {"env": "CartPole-v1"}
    for name in gymnasium.wrappers.__all__:
        refuse_untrusted(plain | {"env_wrappers": [f"gymnasium.wrappers:{name}"]}, trust_code=False)
    with pytest.raises(UsageError, match=r"the environment gymnasium\.wrappers:TimeLimit;"):
        refuse_untrusted(plain | {"env_wrappers": [], "env": "gymnasium.wrappers:TimeLimit"}, trust_code=False)
    for name in (
        "gymnasium.wrappers:evil",
        "gymnasium.wrappers.evil:TimeLimit",
        "gymnasium:make",
        "wrappers:TimeLimit",
    ):
        with pytest.raises(UsageError, match=f"the wrapper {name};"):
            refuse_untrusted(plain | {"env_wrappers": [name]}, trust_code=False)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_a_part_of_a_network_without_the_flag(
    verb: str, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    code, said = said_by(verb.replace(" run", " net"), capsys)
    assert marks(trained) == []
    if verb.split()[0] not in ("plot", "compare"):
        assert code == 2
        assert f"run: the torso {trained}/seen.py:Net, the core {trained}/kept.py:Memory; if you trust it" in said
    code, said = said_by(verb.replace(" run", " whole"), capsys)
    assert marks(trained) == []
    if verb.split()[0] not in ("plot", "compare"):
        assert code == 2
        assert f"run: the network {trained}/whole.py:Whole; if you trust it" in said


def test_the_flag_imports_parts_of_a_network(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    assert said_by("evaluate net --games 2 --trust-code", capsys)[0] == 0
    assert said_by("resume net --steps 200 --trust-code --quiet", capsys)[0] == 0
    assert marks(trained) == ["kept", "seen"]
    assert said_by("evaluate net --games 2 --trust-env", capsys)[0] == 2  # which are no environment


@pytest.mark.parametrize("part", ["torso", "core", "network"])
def test_a_part_of_a_network_is_code_only_where_it_is_no_name_of_ours(part: str) -> None:
    for ours in (None, "mlp", "lstm"):
        refuse_untrusted({"model": {part: ours}}, trust_code=False)
    with pytest.raises(UsageError, match=f"the {part} net.py:Net; if you trust it"):
        refuse_untrusted({"model": {part: "net.py:Net"}}, trust_code=False)
    with pytest.raises(UsageError, match=f"the {part} of this run was an object .*: model={{"):
        refuse_untrusted({"model": {part: "__main__:<Net>"}}, trust_code=True)
    refuse_untrusted({"model": {part: "net.py:Net"}}, trust_code=False, given=(f"model.{part}",))


def test_parts_of_a_network_that_are_handed_over_need_no_trust(trained: Path, here: Path) -> None:
    def net(space: Any) -> torch.nn.Module:
        return torch.nn.Linear(*space.shape, 4)

    class Memory(torch.nn.Identity):
        def __init__(self, features: int) -> None:
            super().__init__()

        def initial_state(self, batch: int) -> tuple[()]:
            return ()

        def forward(self, x: torch.Tensor, state: Any, is_first: torch.Tensor) -> Any:
            return x, state

    with pytest.raises(UsageError, match=f"run: the core {trained}/kept.py:Memory;"):
        pa.load(here / "net", model={"torso": net})
    both = {"torso": net, "core": Memory}
    assert pa.load(here / "net", model=both).act(np.zeros(5, np.float32)) in range(2)
    assert pa.resume(here / "net", steps=200, model=both, quiet=True).status == "done"
    again = r"the torso of this run was an object that has no name .*<.*net>: .*model=.\"torso\": …"
    with pytest.raises(UsageError, match=again):
        pa.load(here / "net", tag="last", trust_code=True)
    pa.load(here / "net", tag="last", model=both)
    assert marks(trained) == []
    for wrong in ({"torso": "mlp"}, {"hidden": (8,)}, 3):
        with pytest.raises(UsageError, match=r"model .* is not allowed: "):
            pa.load(here / "net", model=wrong)  # type: ignore[arg-type]
