"""The design's own promises: short call stacks, imports that go down only, public names that exist."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import polyactor
from polyactor.cli import main as cli
from polyactor.transport.processes import ProcessPool

ROOT = Path(__file__).parents[2]
PACKAGE = Path(polyactor.__file__).parent
MOST_FILES = 9
MOST_LINES = {"a3c": 1_300, "a3c-server": 1_450, "appo": 1_500, "impala": 1_450, "acer": 1_500}

PROBE = """
import multiprocessing
import gymnasium
from tests_watch import watch

if multiprocessing.current_process().name.startswith("polyactor-worker"):
    watch(setattr)

def make():
    return gymnasium.make("polyactor/Chain-v0")
"""
"""An environment whose workers note who calls the verbs."""

WATCH = """
import json, traceback
from pathlib import Path
import torch
from polyactor.agent.actor import Actor
from polyactor.algorithms import ALGORITHMS

SEEN = Path(__file__).with_name("stacks")

def watch(setattr):
    SEEN.mkdir(exist_ok=True)
    for cls in (Actor, *ALGORITHMS.values(), torch.autograd):
        for verb in ("collect", "loss", "grad"):
            if hasattr(cls, verb):
                setattr(cls, verb, watched(getattr(cls, verb), verb))

def watched(original, verb):
    code = getattr(original, "__code__", None)

    def call(*args, **kwargs):
        stack = [frame.filename for frame in traceback.extract_stack()] + [code.co_filename] * (code is not None)
        path = SEEN / f"{verb}.json"
        if not path.exists():
            path.write_text(json.dumps(stack))
        return original(*args, **kwargs)

    return call
"""


def ours(stack: list[str]) -> set[Path]:
    """The files of the package on a stack."""
    return {Path(name) for name in stack if Path(name).is_relative_to(PACKAGE)}


@pytest.mark.parametrize(
    ("method", "scheme", "algorithm"),
    [
        ("a3c", "hogwild", "a2c"),
        ("a3c-server", "param_server", "a2c"),
        ("appo", "actor_learner", "ppo"),
        ("impala", "actor_learner", "vtrace"),
        ("acer", "hogwild", "acer/acer"),
    ],
)
def test_from_the_command_line_to_the_gradient_in_few_files(
    method: str,
    scheme: str,
    algorithm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "probe_env.py").write_text(PROBE)
    (tmp_path / "tests_watch.py").write_text(WATCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("tests_watch").watch(monkeypatch.setattr)  # a learner is in this process
    start, spawns = ProcessPool.__init__, []

    def watched(self: ProcessPool, *args: Any) -> None:
        spawns.append([frame.filename for frame in traceback.extract_stack()] + [start.__code__.co_filename])
        start(self, *args)

    monkeypatch.setattr(ProcessPool, "__init__", watched)
    flags = "--env probe_env:make --workers 1 --envs 2 --steps 200 --out run --quiet"
    try:
        assert cli.run(["train", method, *flags.split()]) == 0
    finally:
        del sys.modules["tests_watch"], sys.modules["probe_env"]
    capsys.readouterr()

    assert len(spawns) == 1
    stacks = {"spawn": ours(spawns[0])}
    for verb in ("collect", "loss", "grad"):
        stacks[verb] = ours(json.loads((tmp_path / "stacks" / f"{verb}.json").read_text()))
    names = {verb: {str(path.relative_to(PACKAGE)) for path in files} for verb, files in stacks.items()}
    assert {"cli/main.py", "transport/local.py", "transport/processes.py"} <= names["spawn"]
    assert {f"schemes/{scheme}.py", "agent/actor.py"} <= names["collect"]
    assert {f"schemes/{scheme}.py", "agent/learner.py", f"algorithms/{algorithm}.py"} <= names["loss"]
    assert {f"schemes/{scheme}.py", "agent/learner.py"} <= names["grad"]

    lines = {path: len(path.read_text().splitlines()) for path in set().union(*stacks.values())}
    for path, count in sorted(lines.items()):
        print(f"{count:>6} {path.relative_to(PACKAGE)}")
    print(f"{sum(lines.values()):>6} in {len(lines)} files")
    assert len(lines) <= MOST_FILES
    assert sum(lines.values()) <= MOST_LINES[method]


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_imports_go_down_only() -> None:
    pytest.importorskip("importlinter")
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("file", "wrong"),
    [("agent/actor.py", "import polyactor.cli.main"), ("algorithms/a2c.py", "import threading")],
)
def test_an_import_that_goes_up_is_found(tmp_path: Path, file: str, wrong: str) -> None:
    pytest.importorskip("importlinter")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "src" / "polyactor", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "src" / "polyactor" / file, "a") as source:
        source.write(f"\n{wrong}\n")
    found = lint_imports(tmp_path)
    assert found.returncode != 0
    assert "BROKEN" in found.stdout


PUBLIC = [
    "A2C", "ACER", "PPO", "VTrace", "ActorLearner", "Hogwild", "ParamServer", "Sync", "KFAC", "SGD", "Adam", "RMSprop",
    "ModelSpec", "Normalize", "AtariOptions", "Config", "Algorithm", "Batch", "Rollout", "EnvSpec", "Evaluation",
    "Callback", "Policy", "PolyactorError", "Run", "curve", "load", "make_envs", "resume", "train", "losses", "returns",
    "types",
]  # fmt: skip


def test_every_public_name_exists_and_is_loaded_when_it_is_used() -> None:
    assert sorted(polyactor.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(polyactor, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = polyactor.no_such_name
    script = "import sys, polyactor; from polyactor import A2C, Config, losses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_run_on_this_machine_imports_ray() -> None:
    """Nor does it cost a start anything that it is installed."""
    modules = "polyactor, polyactor.api, polyactor.cli.main, polyactor.training.trainer, polyactor.transport"
    script = f"import sys, {modules}; assert not [name for name in sys.modules if name.split('.')[0] == 'ray']"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", ["losses", "returns", "types", "A2C"])
def test_a_public_name_is_there_in_a_new_process(name: str) -> None:
    """Whatever else has been imported before must not decide it."""
    done = subprocess.run([sys.executable, "-c", f"from polyactor import {name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
