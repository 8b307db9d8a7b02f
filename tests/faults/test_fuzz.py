"""Whatever is in a file or on the command line: an error with a sentence and a code, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.cli.flags import read_config
from polyactor.config import Config
from polyactor.errors import CheckpointError, PolyactorError, UsageError
from polyactor.settings.presets import PRESETS, base_config
from polyactor.settings.serialize import from_json, to_json
from polyactor.storage import checkpoint
from polyactor.storage.checkpoint import MANIFEST, META, STATE, load, save

CODES = {0, 2, 3, 4, 5, 6, 7, 9, 75}
SOME, MANY = 200, 2_000
HOW: dict[str, Any] = {
    "derandomize": True,
    "phases": (Phase.explicit, Phase.generate),  # what fails is in the message; to shrink it may take minutes
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
each_budget = pytest.mark.parametrize(
    "examples", [SOME, pytest.param(MANY, marks=pytest.mark.slow)], ids=["some", "many"]
)


def fuzz(examples: int, check: Callable[[st.DataObject], None]) -> None:
    settings(max_examples=examples, **HOW)(given(st.data())(check))()


def a_sentence(error: PolyactorError) -> None:
    """One line that a person reads, whatever the file says."""
    assert str(error).isprintable()
    assert len(str(error)) < 1_500


# ---- bytes -------------------------------------------------------------------------------------------------------


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Cut, grown, flipped, overwritten, repeated, or something else altogether."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            del data[at : at + rng.choice((1, 8, 10**6))]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 1_000)))
        elif kind == 2 and data:
            data[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data[at : at + 8] = rng.choice(
                (b"\xff" * 8, bytes(8), (2**63).to_bytes(8, "little"), b"9" * 8, b"[{[{[{[{")
            )
        elif kind == 4:
            data[at:at] = data[: rng.randrange(200)]
        elif kind == 5 and data:
            data[at - 1 : at] = b"%d" % rng.randrange(10)
        elif kind == 6:
            data = bytearray(rng.randbytes(rng.choice((0, 1, 8, 300, 20_000))))
        else:
            words = (b"null", b"-1", b"1e999", b'"', b"{}", b"[]", b"true", b"NaN", b'"F99"', b"18446744073709551616")
            data[at:at] = rng.choice(words)
    return bytes(data)


@each_budget
def test_a_checkpoint_of_mutated_bytes(tmp_path: Path, examples: int) -> None:
    """Some with a manifest that fits, so that the parsers behind it are reached."""
    root = tmp_path / "run"
    tensors = {"model.w": torch.arange(6.0).reshape(2, 3), "board.n": torch.tensor([[1, 2]]), "x": torch.ones(())}
    path = save(root, tensors, {"config": {"a": [1, None, {"b": "c"}]}, "scores": [1.5, 2.0]}, 12)
    files = {name: path / name for name in (STATE, META, MANIFEST)} | {"pointer": root / "checkpoints" / "last.json"}
    good = {name: file.read_bytes() for name, file in files.items()}
    outcomes = {"refused": 0, "read": 0}

    def check(data: st.DataObject) -> None:
        rng = random.Random(data.draw(st.integers(0, 2**32)))
        name = data.draw(st.sampled_from([STATE, STATE, META, META, MANIFEST, "pointer"]))
        files[name].write_bytes(mutated(rng, good[name]))
        if name in (STATE, META) and data.draw(st.sampled_from((True, True, False))):
            contents = {key: files[key].read_bytes() for key in (STATE, META)}
            files[MANIFEST].write_bytes(checkpoint._manifest(contents))
        try:
            found = load(root)
            assert isinstance(found.meta, dict)
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())
            checkpoint.not_finite(found.tensors)
            outcomes["read"] += 1
        except CheckpointError as error:
            a_sentence(error)
            outcomes["refused"] += 1
        finally:
            for key, file in files.items():
                file.write_bytes(good[key])

    fuzz(examples, check)
    print(outcomes)
    assert min(outcomes.values()) > examples // 100
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# ---- configs -----------------------------------------------------------------------------------------------------

ODD = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**63, 10**400, -(10**400), 0.0, -0.5, 1e308, float("inf"), float("nan"), "", "none",
     "a" * 5_000, "evil:make", "../x", "evil.py:Boom", "\x00", "\ud800", [], [1], [[1]], ["a"], [None], {}, {"name": 1},
     {"name": "adam"}, {"a": {"b": []}}, [10**9] * 3]
)  # fmt: skip
NESTED = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of JSON, the tree itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *[place for key, each in inner for place in places(each, (*path, key))]]


def spoilt(data: st.DataObject, plain: Any) -> Any:
    """With a few values replaced, missing, added or swapped."""
    plain = json.loads(json.dumps(plain))
    for _ in range(data.draw(st.sampled_from((1, 1, 2, 4)))):
        path = data.draw(st.sampled_from(places(plain)))
        if not path:
            if data.draw(st.integers(0, 20)) == 0:
                return copy.deepcopy(data.draw(NESTED))
            continue
        holder = plain
        for key in path[:-1]:
            holder = holder[key]
        kind = data.draw(st.sampled_from(("odd", "odd", "nested", "missing", "extra", "number")))
        if kind == "missing":
            del holder[path[-1]]
        elif kind == "extra" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(("evil", "name", "__class__", "env", "\x00")))] = copy.deepcopy(
                data.draw(ODD)
            )
        elif kind == "number":
            holder[path[-1]] = data.draw(st.integers() | st.floats())
        else:
            holder[path[-1]] = copy.deepcopy(data.draw(ODD if kind == "odd" else NESTED))
    return plain


CONFIGS = [
    to_json(base_config(name, env=env))
    for name, env in (("a2c", "CartPole-v1"), ("a3c", "polyactor/Chain-v0"), ("appo", "CartPole-v1"),
                      ("acer", "CartPole-v1"), ("pong-a3c", None), ("tmaze-a3c-lstm", None))
]  # fmt: skip


@each_budget
def test_a_config_of_a_file(examples: int) -> None:
    """What is read is a config that can be written and read again; everything else is refused."""
    outcomes = {"refused": 0, "read": 0}

    def check(data: st.DataObject) -> None:
        plain = spoilt(data, data.draw(st.sampled_from(CONFIGS)))
        try:
            config = from_json(plain)
        except (CheckpointError, UsageError) as error:
            a_sentence(error)
            outcomes["refused"] += 1
            return
        assert isinstance(config, Config)
        outcomes["read"] += 1
        if "evil" not in repr(plain):  # an algorithm of a file has no name to be written by
            assert from_json(json.loads(json.dumps(to_json(config)))) == config

    fuzz(examples, check)
    print(outcomes)
    assert min(outcomes.values()) > examples // 40
    assert "evil" not in sys.modules


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    return pa.train("a2c", env="polyactor/Chain-v0", steps=200, envs=2, out=str(out), quiet=True).path


@each_budget
def test_a_whole_checkpoint_of_a_spoilt_config_and_spoilt_tensors(
    trained: Path, tmp_path: Path, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to where a resumed run would start, and to the policy's first action."""
    from polyactor.training import trainer

    found, root = load(trained), tmp_path / "run"
    monkeypatch.setattr(trainer._Training, "run", lambda self, *_: self.log.close())
    monkeypatch.setattr(trainer, "tune_allocator", lambda: None)
    odd = [torch.zeros(0), torch.zeros(()), torch.zeros(1, 1, 1), torch.full((3,), float("nan")),
           torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool), torch.zeros(64, 64)]  # fmt: skip
    outcomes = {"refused": 0, "gone on with": 0}

    def check(data: st.DataObject) -> None:
        tensors, meta = dict(found.tensors), json.loads(json.dumps(found.meta))
        meta["config"] |= {"workers": 1}
        if data.draw(st.booleans()):
            spoil = spoilt(data, meta["config"])
            meta["config"] = spoil
        elif data.draw(st.booleans()):
            meta = spoilt(data, {key: value for key, value in meta.items() if key != "config"})
            meta = (meta if isinstance(meta, dict) else {}) | {"config": found.meta["config"]}
        else:
            name = data.draw(st.sampled_from(sorted(tensors)))
            tensors[name] = data.draw(st.sampled_from(odd))
        if data.draw(st.integers(0, 9)) == 0:
            del tensors[data.draw(st.sampled_from(sorted(tensors)))]
        if too_much(meta["config"]):
            return
        shutil.rmtree(root, ignore_errors=True)
        try:
            save(root, tensors, meta, 200, tags=("last", "best"))
        except (ValueError, UnicodeEncodeError):
            return  # not JSON: no file says that
        for action in (lambda: pa.load(root), lambda: pa.resume(root, quiet=True)):
            try:
                action()
                outcomes["gone on with"] += 1
            except PolyactorError as error:
                a_sentence(error)
                outcomes["refused"] += 1

    fuzz(examples // 2, check)  # each is a save, a load and a resumption
    print(outcomes)
    assert min(outcomes.values()) > examples // 80


def too_much(config: Any) -> bool:
    """A run that is possible and takes hours or all of this machine: many workers, many environments."""
    config = config if isinstance(config, dict) else {}
    return any(isinstance(value := config.get(name), int) and value > 100 for name in ("workers", "envs", "rollout"))


# ---- flags -------------------------------------------------------------------------------------------------------

VALUES = [
    "0", "1", "-1", "5", "0.5", "-0.5", "1e9", "1e400", "-1e400", "nan", "inf", "9" * 400, "auto", "none", "None",
    "true", "", " ", "--", "-", "=", "a2c", "adam", "mlp", "CartPole-v1", "CartPole-v9", "polyactor/Chain-v0",
    "no.module:Env", "::", "a:b:c", "..:x", "nowhere.py:X", "(1,2)", "1,2", "[1]", "{}", "'", '"', "\\", "ü",
    "\x1b[0m", "%s", "{0}", "*", "../x", "/dev/null", "a" * 3_000, "algorithm.gamma=.9", "algorithm.gamma=x",
    "optimizer.lr=", "=1", "scheme.lock=1",
]  # fmt: skip
FLAGS = [
    "--env", "--scheme", "--optimizer", "--steps", "--seed", "--workers", "--envs", "--rollout", "--stop-at", "--out",
    "--evaluate-every", "--transport", "--exact-resume", "--init-from", "--max-episode-steps", "--device",
    "--precision", "--per-worker", "--compile", "--quiet", "--no-quiet", "--model.hidden", "--model.torso",
    "--model.core", "--model.head-width", "--algorithm.gamma", "--algorithm.entropy-coef", "--algorithm.epochs",
    "--algorithm.replay-ratio", "--optimizer.lr", "--optimizer.max-grad-norm", "--scheme.lock", "--max-lag",
    "--max-staleness", "--scheme.threads", "--normalize.reward", "--normalize.clip-reward", "--atari.stack",
    "--atari.frame-size", "--atari.sticky", "--games", "--tag", "--greedy", "--restart", "--algorithm",
    "--trust-env", "--trust-code", "--env-kwargs", "--env-wrapper", "--env-resize",
    "--seconds", "--schemes", "--help", "-h", "--", "-", "--=", "---x", "--zzz", "-5",
]  # fmt: skip
WORD = st.sampled_from(VALUES) | st.text(max_size=8)
FLAG = st.sampled_from(FLAGS)
ARGUMENT = st.one_of(FLAG, WORD, st.builds(lambda flag, value: f"{flag}={value}", FLAG, WORD))
PAIRS = st.lists(st.one_of(st.tuples(FLAG, WORD), st.tuples(ARGUMENT)), max_size=5)
USUAL = [
    ("--steps", "5"), ("--seed=1",), ("--envs", "2"), ("--rollout=3",), ("--quiet",), ("--optimizer", "adam"),
    ("--scheme", "hogwild"), ("--algorithm.gamma", "0.5"), ("--model.hidden", "8"), ("--out", "somewhere"),
]  # fmt: skip
VERBS = [*cli.VERBS, "help", "-V", "", "trian", "--help"]
NAMES = [*list(PRESETS)[:12], "a2c", "a3c", "appo", "acer", "impala", "nope", "run"]


def argv(data: st.DataObject) -> list[str]:
    verb = data.draw(st.sampled_from(VERBS + ["train"] * 12))
    name = data.draw(st.sampled_from(NAMES) | WORD)
    usual = st.lists(st.sampled_from(USUAL), max_size=4)
    pairs = [word for pair in data.draw(usual if data.draw(st.booleans()) else PAIRS) for word in pair]
    env = ["--env", data.draw(st.sampled_from(["CartPole-v1", "polyactor/Chain-v0"]))] * data.draw(st.booleans())
    return [verb, name, *env, *pairs] if data.draw(st.integers(0, 9)) else [verb, *pairs]


@each_budget
def test_a_command_line(tmp_path: Path, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained: where a verb would begin its work, it stops."""
    monkeypatch.chdir(tmp_path)
    ran = {"train": 0, "other": 0}

    class Began(Exception):
        pass

    def begin(kind: str) -> Callable[..., Any]:
        def stop(*_: object, **__: object) -> Any:
            ran[kind] += 1
            raise PolyactorError("began")

        return stop

    for name in ("training.trainer.resume", "evaluation.evaluate.evaluate", "report.video.record", "report.speed.bench",
                 "envs.check.inspect", "settings.autotune.chosen"):  # fmt: skip
        monkeypatch.setattr(f"polyactor.{name}", begin("other"))
    monkeypatch.setattr("polyactor.training.trainer.train", begin("train"))
    monkeypatch.setattr("polyactor.settings.autotune.chosen", lambda configs, wanted: (configs, []))
    monkeypatch.setattr("polyactor.system.forkserver.start_forkserver", lambda: None)
    codes: dict[Any, int] = {}

    def check(data: st.DataObject) -> None:
        args, out, err = argv(data), io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            cli.main(args)
        code = stop.value.code or 0
        codes[code] = codes.get(code, 0) + 1
        assert code in CODES | {1 if "polyactor: began" in err.getvalue() else 0}, (args, err.getvalue())
        assert "Traceback" not in err.getvalue()
        if code:
            assert err.getvalue().startswith("polyactor: "), (args, err.getvalue())
            assert err.getvalue()[:-1].isprintable(), (args, err.getvalue())
        assert not list(tmp_path.iterdir()), args

    fuzz(examples, check)
    print(codes, ran)
    assert ran["train"] > examples // 100
    assert ran["other"] > 0
    assert codes[2] > examples // 4


@each_budget
def test_flags_to_a_config(examples: int) -> None:
    """`read_config` gives a config or a sentence, and help leaves with 0."""
    read, codes = [0], set()

    def check(data: st.DataObject) -> None:
        args = argv(data)[1:]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                config = read_config(args)
        except PolyactorError as error:
            codes.add(error.exit_code)
            return
        except SystemExit as stop:
            assert not stop.code  # noqa: PT017
            return
        assert isinstance(config, Config)
        read[0] += 1

    fuzz(examples, check)
    assert read[0] > examples // 50
    assert codes <= {2, 3}
