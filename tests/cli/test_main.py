"""What a person gets for bad input: one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.envs import Environment
from polyactor.storage import checkpoint

SOURCE = Path(pa.__file__).parents[1]
USAGE, ENVIRONMENT, CHECKPOINT, DIRECTORY = 2, 3, 4, 5
ODD_ENVS = """
import gymnasium, numpy as np
from gymnasium import spaces

class Textual(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Text(5)

class OldGym:
    observation_space = action_space = None
    def reset(self):
        return 0
    def step(self, action):
        return 0, 0.0, False, {}
"""
Refuse = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which stays as it is."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return directory


@pytest.fixture
def refuse(here: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that must be refused; returns the sentence."""

    def run(arguments: str, code: int) -> str:
        before = snapshot(here)
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments.split())
        captured = capfd.readouterr()
        assert captured.err.startswith("polyactor: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert stop.value.code == code, captured.err
        assert snapshot(here) == before
        return captured.err

    return run


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """Every file's bytes; compiled modules do not count."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    pa.train("a2c", env="polyactor/Chain-v0", steps=200, envs=2, out=str(directory), quiet=True)
    return directory


TRAIN = "train a2c --env CartPole-v1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian a2c", "did you mean 'train'?"),
        ("frobnicate", "there is no verb 'frobnicate'"),
        ("train", "train needs a preset"),
        ("train --env CartPole-v1", "train needs a preset"),
        ("train a3d --env CartPole-v1", "did you mean 'a3c'?"),
        ("train zzzzzz --env CartPole-v1", "choose from a2c, a3c"),
        ("train a2c", "--env is needed"),
        ("train a2c --env", "--env needs a value"),
        (f"{TRAIN} --scheme hogwidl", "did you mean 'hogwild'?"),
        (f"{TRAIN} --optimizer adamm", "did you mean 'adam'?"),
        (f"{TRAIN} --workers 0", "--workers 0 is not allowed: it must be a number of at least 1"),
        (f"{TRAIN} --envs 0", "--envs 0 is not allowed"),
        (f"{TRAIN} --rollout 0", "--rollout 0 is not allowed"),
        (f"{TRAIN} --steps 0", "--steps 0 is not allowed"),
        (f"{TRAIN} --steps -5", "--steps -5 is not allowed"),
        (f"{TRAIN} --steps {'9' * 400}", "is not allowed: it must be a number of at least 1"),
        (f"{TRAIN} --seed -1", "--seed -1 is not allowed: it must be a number of at least 0"),
        (f"{TRAIN} --seed=-1", "--seed -1 is not allowed"),
        (f"{TRAIN} --algorithm.gamma 1.5", "--algorithm.gamma 1.5 is not allowed: it must be a number from 0 to 1"),
        (
            f"{TRAIN} --optimizer.lr 1e39",
            "--optimizer.lr 1e+39 is not allowed: it must be a number of at least 0, 3e+38",
        ),
        (f"{TRAIN} --optimizer.lr -0.1", "--optimizer.lr -0.1 is not allowed"),
        (f"{TRAIN} --optimizer.lr nan", "--optimizer.lr nan is not allowed"),
        (f"{TRAIN} --optimizer.lr inf", "--optimizer.lr inf is not allowed"),
        (f"{TRAIN} --stop-at nan", "--stop-at nan is not allowed"),
        (f"{TRAIN} --model.hidden 0", "--model.hidden 0 is not allowed"),
        (f"{TRAIN} --max-episode-steps 0", "--max-episode-steps 0 is not allowed"),
        (f"{TRAIN} --atari.frame-skip 0", "--atari.frame-skip 0 is not allowed"),
        (f"{TRAIN} --atari.stack 0", "--atari.stack 0 is not allowed"),
        (f"{TRAIN} --atari.sticky 2", "--atari.sticky 2.0 is not allowed"),
        ("train pong-a3c --atari.crop-top 9", "--atari.resize-height none is not allowed"),
        (f"{TRAIN} --model.head-width 0", "--model.head-width 0 is not allowed"),
        (f"{TRAIN} --seeed 1", "did you mean '--seed'?"),
        (f"{TRAIN} --algorithm.gama 1", "did you mean '--algorithm.gamma'?"),
        (f"{TRAIN} --scheme.lock none", "there is no flag --scheme.lock"),
        (f"{TRAIN} --scheme hogwild --scheme.lock never", "never"),
        (f"{TRAIN} --steps many", "many"),
        (f"{TRAIN} --optimizer.lr fast", "fast"),
        (f"{TRAIN} --steps", "--steps"),
        (f"{TRAIN} stray", "'stray' is one word too many"),
        (f"{TRAIN} --compile maybe", "--compile maybe is not allowed: it takes no value"),
        (f"{TRAIN} --normalize.no-reward=3", "--normalize.no-reward 3 is not allowed: it takes no value"),
        (f"{TRAIN} --per-worker algorithm.entropy-coef=.1,.2", "--per-worker is not allowed with --scheme sync"),
        (f"{TRAIN} --scheme hogwild --per-worker nonsense", "--per-worker nonsense is not understood"),
        (f"{TRAIN} --scheme hogwild --per-worker algorithm.gamma=.9,2", "--algorithm.gamma 2.0 is not allowed"),
        (f"{TRAIN} --envs auto2", "--envs auto2 is not allowed: it must be a whole number or auto"),
        (f"{TRAIN} --rollout auto", "--rollout auto is not allowed: it must be a whole number"),
        (f"{TRAIN} --optimizer.lr x", "--optimizer.lr x is not allowed: it must be a number"),
        (f"{TRAIN} --model.torso a3c-cnn", "--model.torso a3c-cnn does not fit"),
        (
            "train acer --env Pendulum-v1 --algorithm.trust-region probs",
            "--algorithm.trust-region probs is not allowed",
        ),
        ("train acer --env Pendulum-v1 --algorithm.replay-ratio -1", "--algorithm.replay-ratio -1.0 is not allowed"),
        ("train pong-a3c --compile", "--compile is not allowed with a CNN"),
        ("train nowhere.py:Mine --env CartPole-v1", "there is no file nowhere.py"),
        ("resume", "a run directory is needed"),
        ("resume one two", "one run directory is needed, not 2"),
        ("resume run --steps many", "--steps many is not allowed: it must be a whole number"),
        ("resume run --stpes 5", "did you mean '--steps'?"),
        ("resume run --optimizer.lr 1e-4", "there is no flag --optimizer.lr; a run goes on with its own settings"),
        ("resume run --workers 4", "train … --init-from RUN begins one with others at its parameters"),
        (f"{TRAIN} --env-arg is_slippery=False", "there is no flag --env-arg: what an environment is made with"),
        (f"{TRAIN} --env.is-slippery False", "is said by --env-kwargs NAME=VALUE, or in a function of your own"),
        (f"{TRAIN} --env-timout 5", "did you mean '--env-timeout'?"),
        (f"{TRAIN} --optimizer.lr", "--optimizer.lr needs a value"),
        (f"{TRAIN} --model.hidden --seed 1", "--model.hidden needs a value"),
        (f"{TRAIN} --out", "--out needs a value"),
        (f"{TRAIN} --stop-at it's", "--stop-at it's is not allowed: it must be a number or none"),
        (f"{TRAIN} --workers x", "--workers x is not allowed: it must be a whole number or auto"),
        (
            f"{TRAIN} --model.hidden 4 x --seed 1",
            "--model.hidden 4 x is not allowed: it must be a whole number, or several",
        ),
        (f"{TRAIN} --algorithm.value_loss l1", "--algorithm.value-loss l1 is not allowed: it must be one of"),
        (
            f"{TRAIN} --transport {'x' * 200}",
            f"--transport {'x' * 80}… is not allowed: it must be one of local, inline",
        ),
        ("evaluate run --games -1", "--games -1 is not allowed"),
        ("evaluate run --games 0", "--games 0 is not allowed: it must be above 0"),
        ("evaluate run --evaluate.max-steps 0", "--evaluate.max-steps 0 is not allowed: it must be above 0"),
        (f"{TRAIN} --evaluate.timeout 0", "--evaluate.timeout 0.0 is not allowed: it must be a number above 0"),
        (f"{TRAIN} --evaluate.envs 0 --evaluate-every 9", "--evaluate.envs 0 is not allowed with --evaluate-every"),
        ("bench cartpole-a2c --seconds 0", "--seconds 0 is not allowed: it must be above 0"),
        (
            "train a3c --env CartPole-v1 --per-worker algorithm.epochs=2,4",
            "--per-worker algorithm.epochs is not allowed: there is no setting algorithm.epochs",
        ),
        (
            "train ppo --env CartPole-v1 --scheme hogwild --workers 2 --per-worker algorithm.epochs=2,2.5",
            "--per-worker algorithm.epochs=2.5 is not allowed: it must be a whole number",
        ),
        ("check", "check needs --env"),
        ("presets pong-a3", "there is no preset pong-a3 (did you mean 'pong-a3c'?)"),
        ("presets a2c a3c", "'a3c' is one word too many"),
    ],
)
def test_usage_is_refused_in_one_sentence(refuse: Refuse, arguments: str, said: str) -> None:
    assert said in refuse(arguments, USAGE)


def test_a_missing_compiler_is_named(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "it needs a C++ compiler (g++, or what CXX names)" in refuse(f"{TRAIN} --compile", USAGE)


@pytest.mark.fault("D7", "D8", "D9")
@pytest.mark.parametrize("verb", ["train a2c", "check"])
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'?"),
        ("no_such_module:Env-v0", "there is no module no_such_module"),
        ("odd_envs:Textual", "has the action space Text"),
        ("odd_envs:OldGym", "an environment of the old gym"),
        ("odd_envs:Textuall", "did you mean 'Textual'?"),
        ("odd_envs.py:Textual", "has the action space Text"),
        ("nowhere.py:Textual", "there is no file "),
        ("odd_envs.py", "name what is in the file, too, as FILE.py:NAME"),
        ("CartPole-v1?length=3", "is said by --env-kwargs NAME=VALUE, or in a function of your own"),
    ],
)
def test_an_environment_nobody_can_train_in(here: Path, refuse: Refuse, verb: str, env: str, said: str) -> None:
    (here / "odd_envs.py").write_text(ODD_ENVS)
    assert said in refuse(f"{verb} --env {env}", ENVIRONMENT)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train a2c --env {}", ENVIRONMENT),  # as an unknown id has
        (f"{TRAIN} --env-wrapper {{}}", USAGE),
        (f"{TRAIN} --callback {{}}", USAGE),
        (f"{TRAIN} --model.torso {{}}", USAGE),
        ("train {} --env CartPole-v1", USAGE),
    ],
)
def test_code_that_is_not_there_is_said_alike_of_every_part(
    here: Path, refuse: Refuse, command: str, code: int
) -> None:
    (here / "raises.py").write_text("def first():\n    nothing\n\nfirst()\n")
    (here / "mine.py").write_text("def Mine(*args): pass\n")
    for asked, why in {
        "gone.py:Mine": "gone.py:Mine is not allowed: there is no file gone.py",
        "raises.py:Mine": "raises.py could not be imported: NameError: name 'nothing' is not defined (line 2)",
        "mine.py:Nine": "(did you mean 'Mine'?)",
    }.items():
        assert why in refuse(command.format(asked), code).replace(f"{here}/", "")


def test_a_missing_extra_is_named(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for env_id in [name for name in gymnasium.registry if "Pong" in name]:
        monkeypatch.delitem(gymnasium.registry, env_id)
    for arguments in ("train a2c --env ALE/Pong-v5", "train pong-a3c", "check --env PongNoFrameskip-v4"):
        assert 'pip install "polyactor[atari]"' in refuse(arguments, ENVIRONMENT)


def test_a_run_directory_that_is_taken_is_left_alone(here: Path, trained: Path, refuse: Refuse) -> None:
    shutil.copytree(trained, here / "run")  # `refuse` compares every byte of it
    assert "polyactor resume run" in refuse(f"{TRAIN} --out run", DIRECTORY)
    (here / "file").write_text("mine")
    assert "--out file is taken" in refuse(f"{TRAIN} --out file", DIRECTORY)


@pytest.mark.fault("F5")
def test_a_directory_that_cannot_be_made(here: Path, refuse: Refuse) -> None:
    (here / "file").write_text("mine")
    assert "file/run" in refuse(f"{TRAIN} --out file/run", DIRECTORY)
    if sys.platform == "linux":
        assert "/proc/run" in refuse(f"{TRAIN} --out /proc/run", DIRECTORY)


@pytest.mark.parametrize("verb", ["resume", "evaluate", "record"])
def test_a_damaged_checkpoint(here: Path, trained: Path, refuse: Refuse, verb: str) -> None:
    shutil.copytree(trained, here / "run")
    state = next((here / "run").glob("checkpoints/*/state.safetensors"))
    data = bytearray(state.read_bytes())
    data[-1] ^= 1  # neither torch nor safetensors would notice
    state.write_bytes(data)
    assert "is damaged" in refuse(f"{verb} run", CHECKPOINT)


@pytest.mark.parametrize("verb", ["resume", "evaluate", "record"])
def test_nothing_to_go_on_from(here: Path, refuse: Refuse, verb: str) -> None:
    assert "nowhere does not exist" in refuse(f"{verb} nowhere", CHECKPOINT)
    (here / "empty").mkdir()
    assert "empty is neither a run directory" in refuse(f"{verb} empty", CHECKPOINT)


@pytest.mark.fault("D10")
@pytest.mark.parametrize("env", ["CartPole-v1", "polyactor/LQR-v0"])
def test_init_from_another_model(trained: Path, refuse: Refuse, env: str) -> None:
    assert "is of another model" in refuse(f"train a2c --env {env} --init-from {trained} --out new", CHECKPOINT)


def test_init_from_nothing(refuse: Refuse) -> None:
    assert "nowhere does not exist" in refuse(f"{TRAIN} --init-from nowhere --out new", CHECKPOINT)


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize(
    ("part", "name", "code"),
    [("algorithm", "evil.py:Boom", USAGE), ("optimizer", "evil.py:Boom", CHECKPOINT), ("scheme", "evil", CHECKPOINT)],
)
def test_a_config_imports_no_code(here: Path, trained: Path, refuse: Refuse, part: str, name: str, code: int) -> None:
    """A checkpoint is data: code that it names runs only when a person names it too."""
    found = checkpoint.load(trained)
    config = found.meta["config"] | {part: {"name": name}}
    (here / "run").mkdir()
    checkpoint.save(here / "run", found.tensors, found.meta | {"config": config}, 200)
    (here / "evil.py").write_text("raise SystemExit('imported')")
    assert name in refuse("resume run", code)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "usage: polyactor VERB"),
        ("--help", "usage: polyactor VERB"),
        ("-h", "usage: polyactor VERB"),
        (f"{TRAIN} --help", "--optimizer.lr"),
        ("train a3c --env CartPole-v1 --help", "--scheme.lock"),
        ("train --help", "--scheme.lock"),
        ("train acer --help", "--algorithm.truncation"),
        ("train pong-fast -h", "--atari.frame-skip"),
        ("bench --help", "[--schemes A,B,…]"),
        ("resume --help", "usage: polyactor resume"),
        ("evaluate --help", "usage: polyactor evaluate"),
        ("presets", "pong-a3c"),
        ("check --env polyactor/Chain-v0", "is fit for training"),
    ],
)
def test_help_and_lists(here: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    captured = capsys.readouterr()
    assert stop.value.code == 0
    assert said in captured.out
    assert captured.err == ""
    assert snapshot(here) == {}


def test_nodes_step_the_environment_that_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made as the flags say, and found by the same name in whatever directory a node begins its processes."""
    asked: list[Config] = []
    monkeypatch.setattr("polyactor.transport.facts", lambda config, spec: dict(asked.append(config) or ()))
    code = """
import gymnasium

def make(n):
    return gymnasium.make("polyactor/Chain-v0")

def wrap(env):
    return env
"""
    (here / "mine.py").write_text(code)
    made = "--env ./mine.py:make --env-kwargs n=3 --env-wrapper mine.py:wrap --env-timeout 7"
    with pytest.raises(SystemExit):
        cli.main(f"check {made} --transport ray".split())
    (config,) = asked
    assert config.environment == Environment(f"{here}/mine.py:make", ("n=3",), (f"{here}/mine.py:wrap",))
    assert config.env_timeout == 7.0


JUDGED = {
    "trian": USAGE,
    "train a3d --env CartPole-v1": USAGE,
    f"{TRAIN} --algorithm.gamma 1.5": USAGE,
    f"{TRAIN} --seeed 1": USAGE,
    f"{TRAIN} --steps many": USAGE,
    "train a3c --env CartPol-v1": ENVIRONMENT,
    f"{TRAIN} --out /dev/null": DIRECTORY,
    f"{TRAIN} --envs auto --algorithm.gamma 1.5": USAGE,
    f"{TRAIN} --envs auto --out /dev/null": DIRECTORY,
    f"{TRAIN} --help": 0,
}
JUDGE = """
import contextlib, io, json, sys
from polyactor.cli.main import main
found = []
for arguments in sys.argv[1:]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main(arguments.split())
    except SystemExit as stop:
        found.append([stop.code, "torch" in sys.modules, len(said.getvalue().splitlines())])
print(json.dumps(found))
"""


def test_flags_are_judged_without_torch(here: Path) -> None:
    """One after another in one process, in which torch is never imported."""
    command = [sys.executable, "-c", JUDGE, *JUDGED]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=60)
    found = dict(zip(JUDGED, json.loads(done.stdout), strict=True))
    assert found == {arguments: [code, False, int(code != 0)] for arguments, code in JUDGED.items()}


@pytest.mark.parametrize("arguments", ["presets", "--help", "presets pong-fast"])
def test_who_has_read_enough_may_leave(here: Path, arguments: str) -> None:
    command = [sys.executable, "-m", "polyactor", *arguments.split()]
    reading, writing = os.pipe()
    os.close(reading)  # before a line is written
    try:
        found = subprocess.run(
            command, cwd=here, env=os.environ | {"PYTHONPATH": str(SOURCE)}, stdout=writing, stderr=-1, timeout=60
        )
    finally:
        os.close(writing)
    assert found.returncode == 0
    assert found.stderr == b""


def test_the_module_is_the_command(here: Path) -> None:
    command = [sys.executable, "-m", "polyactor", *TRAIN.split(), "--workers", "0"]
    found = subprocess.run(
        command, cwd=here, env=os.environ | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == USAGE
    assert found.stdout == ""
    assert found.stderr == "polyactor: --workers 0 is not allowed: it must be a number of at least 1\n"
    assert snapshot(here) == {}


@pytest.mark.fault("S2")
def test_evaluate_and_record_take_the_limits_of_games_as_flags(
    finished: pa.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["--evaluate.max-steps", "5", "--evaluate.envs", "2"]
    assert cli.run(["evaluate", str(finished.path), "--games", "3", *limit]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(f"5.00 ± 0.00 over 4 games, from 5 to 5, 4 cut at the step limit ({limit[0]})" in line for line in lines)
    film = tmp_path / "film.mp4"
    assert cli.run(["record", str(finished.path), "--out", str(film), *limit]) == 0
    said = capsys.readouterr().out
    assert said == f"{film}: a game of score 5, not to its end: the game had not ended after 5 steps\n"
    assert film.is_file()
