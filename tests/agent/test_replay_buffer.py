"""The replay buffer against a list of everything it was given."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polyactor as pa
from polyactor.agent.parts import make_model
from polyactor.agent.replay_buffer import ReplayBuffer
from polyactor.agent.rollout_row import row_of
from polyactor.cli import main as cli
from polyactor.data import FIELDS, Rollout, leaves
from polyactor.envs import EnvSpec, VectorEnv, make_envs
from polyactor.errors import CheckpointError, OutOfResources
from polyactor.settings.presets import base_config
from polyactor.storage import checkpoint

T, B, SLOTS = 4, 3, 5


def rollouts(count: int, *, seed: int = 0, stack: int = 1, length: int = T) -> list[Rollout]:
    """One stream cut into rollouts: row T of each is row 0 of the next, and stacks are those of the frames before."""
    rng = np.random.default_rng(seed)
    rows = count * length + 1
    is_first = rng.random((rows, B)) < 0.2
    is_first[0] = True
    frames = rng.integers(1, 256, (rows, B, 2, 2), dtype=np.uint8)
    observation = frames
    if stack > 1:
        observation = np.zeros((rows, B, stack, 2, 2), np.uint8)
        for t in range(rows):
            for b in range(B):
                begun = max(i for i in range(t + 1) if is_first[i, b])
                for age in range(min(stack, t - begun + 1)):
                    observation[t, b, stack - 1 - age] = frames[t - age, b]

    legal = rng.random((len(is_first), B, 3)) < 0.5

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    return [
        Rollout(
            observation=torch.from_numpy(observation[i * length : (i + 1) * length + 1].copy()),
            is_first=torch.from_numpy(is_first[i * length : (i + 1) * length + 1].copy()),
            action=torch.from_numpy(rng.integers(0, 3, (length, B))),
            reward=normal(length, B),
            terminated=torch.from_numpy(rng.random((length, B)) < 0.3),
            behavior_log_prob=normal(length, B),
            behavior_params=normal(length, B, 3),
            action_mask=torch.from_numpy(legal[i * length : (i + 1) * length + 1].copy()),
            core_state=(normal(B, 2), normal(B, 2)),
            version=torch.full((B,), i),
            noise=normal(B, 4),
        )
        for i in range(count)
    ]


def same(taken: Rollout, given: Rollout, column: int) -> None:
    for name, own in FIELDS.items():
        if not own.replayed:
            continue
        for ours, theirs in zip(leaves(getattr(taken, name)), leaves(getattr(given, name)), strict=True):
            assert torch.equal(ours[:, 0] if own.timed else ours[0], theirs[:, column] if own.timed else theirs[column])
            assert ours.dtype == theirs.dtype, name


def at(replay: ReplayBuffer, number: int, column: int) -> Rollout:
    return replay.take(np.array([number * T]), np.array([column]), T)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("kept", ["memory", "files"])
def test_whatever_can_be_sampled_is_what_was_added(stack: int, kept: str, tmp_path: Path) -> None:
    everything = rollouts(12, stack=stack)
    replay = ReplayBuffer(everything[0], SLOTS, stack=stack, folder=tmp_path if kept == "files" else None)
    assert replay.steps == 0
    for n, rollout in enumerate(everything, start=1):
        replay.add(rollout)
        first = max(0, n - SLOTS + 1)
        assert list(replay.whole) == list(range(first, n))
        assert replay.steps == len(replay.whole) * T * B
        assert replay.full == (n >= SLOTS - replay.lost)
        for number in replay.whole:
            for column in range(B):
                same(at(replay, number, column), everything[number], column)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_stacks_longer_than_a_rollout_are_whole(length: int) -> None:
    everything = rollouts(20, stack=4, length=length)
    replay = ReplayBuffer(everything[0], 8, stack=4)
    for n, rollout in enumerate(everything, start=1):
        replay.add(rollout)
        assert len(replay.whole) == min(n, 8 - math.ceil(4 / length))
        for number in replay.whole:
            for column in range(B):
                taken = replay.take(np.array([number * length]), np.array([column]), length)
                same(taken, everything[number], column)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("ahead", range(3 * SLOTS))
def test_winding_back_gives_what_was_there_or_is_refused(stack: int, ahead: int) -> None:
    everything = rollouts(3 * SLOTS, stack=stack)
    for then in range(ahead + 1):
        replay = ReplayBuffer(everything[0], SLOTS, stack=stack)
        for rollout in everything[:ahead]:
            replay.add(rollout)
        wanted = range(max(0, then - SLOTS + replay.lost), then)
        if ahead > then and not set(wanted) <= set(replay.whole):
            with pytest.raises(CheckpointError, match=f"{ahead} rollouts where the checkpoint has {then}, written"):
                replay.rewind(then)
            assert replay.added == ahead
            continue
        replay.rewind(then)
        assert replay.whole == wanted
        for number in wanted:
            same(at(replay, number, 0), everything[number], 0)
        replay.add(everything[then])
        same(at(replay, then, 1), everything[then], 1)


def test_what_was_never_written_is_not_wound_to() -> None:
    replay = ReplayBuffer(rollouts(1)[0], SLOTS)
    with pytest.raises(CheckpointError, match="0 rollouts where the checkpoint has 1, so"):
        replay.rewind(1)


def test_drawn_rollouts_are_all_alike_in_chance_and_repeat_with_the_seed() -> None:
    everything = rollouts(9)
    replay = ReplayBuffer(everything[0], SLOTS)
    for rollout in everything:
        replay.add(rollout)
    drawn = replay.sample(6_000, torch.Generator().manual_seed(0))
    again = replay.sample(6_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.reward, again.reward)
    assert drawn.reward.shape == (T, 6_000)
    assert drawn.observation.shape == (T + 1, 6_000, 2, 2)
    cells = len(replay.whole) * B
    wanted = torch.cat([everything[i].reward.T for i in replay.whole])
    counts = torch.tensor([(each == drawn.reward.T).all(1).sum() for each in wanted])
    assert counts.sum() == 6_000
    expected = 6_000 / cells
    assert ((counts - expected) ** 2 / expected).sum() < 2.5 * cells  # χ², far beyond its 99.9 % point


@given(length=st.integers(1, 3 * T), stack=st.sampled_from([1, 4]), added=st.integers(4, 11))
@settings(max_examples=40, deadline=None)
def test_windows_begin_anywhere_and_cross_neither_end(length: int, stack: int, added: int) -> None:
    everything = rollouts(added, stack=stack)
    replay = ReplayBuffer(everything[0], SLOTS + 1, stack=stack)
    for rollout in everything:
        replay.add(rollout)
    first, last = replay.whole.start * T, replay.whole.stop * T
    if last - first < length:
        return
    drawn = replay.sample(400, torch.Generator().manual_seed(0), length)
    assert drawn.reward.shape == (length, 400)
    joined = {
        name: torch.cat([getattr(x, name)[:T] for x in everything] + [getattr(everything[-1], name)[T:]])
        for name in ("reward", "observation", "is_first")
    }
    begins = torch.cat([joined["reward"][:, b] for b in range(B)])
    seen = set()
    for i in range(400):
        where = int((begins == drawn.reward[0, i]).nonzero())  # normal numbers: no two are alike
        column, start = divmod(where, len(joined["reward"]))
        seen.add(start)
        assert first <= start <= last - length
        assert torch.equal(drawn.reward[:, i], joined["reward"][start : start + length, column])
        assert torch.equal(drawn.is_first[:, i], joined["is_first"][start : start + length + 1, column])
        assert torch.equal(drawn.observation[:, i], joined["observation"][start : start + length + 1, column])
    assert seen == set(range(first, last - length + 1))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_stacks_are_rebuilt_whatever_the_episodes(seed: int) -> None:
    everything = rollouts(7, seed=seed, stack=3)
    replay = ReplayBuffer(everything[0], 4, stack=3)
    for rollout in everything:
        replay.add(rollout)
    for number in replay.whole:
        for column in range(B):
            same(at(replay, number, column), everything[number], column)


def test_an_image_is_stored_once() -> None:
    like = rollouts(1, stack=4)[0]
    replay = ReplayBuffer(like, 10, stack=4)
    assert replay.arrays["observation"].nbytes == 10 * T * B * 2 * 2


def test_files_are_found_again(tmp_path: Path) -> None:
    everything = rollouts(8)
    replay = ReplayBuffer(everything[0], SLOTS, folder=tmp_path)
    for rollout in everything[:7]:
        replay.add(rollout)
    again = ReplayBuffer(everything[0], SLOTS, folder=tmp_path)
    assert again.added == 7
    again.add(everything[7])
    for number in again.whole:
        same(at(again, number, 1), everything[number], 1)


def test_a_disk_too_small_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutOfResources, match=r"cannot reserve .* for replay in .*: No space left"):
        ReplayBuffer(rollouts(1)[0], SLOTS, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_memory_larger_than_the_disk_is_refused_before_anything_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pong-acer", "--algorithm.replay-capacity", "900000000000", "--out", "run"])
    said = capsys.readouterr().err
    assert stop.value.code == 9
    assert "--algorithm.replay-capacity 900000000000 needs 6," in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_goes_on_where_its_own_memory_has_filled_the_disk(
    moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = "run" if moved else None
    path = pa.train("acer", env="CartPole-v1", scheme="sync", steps=100, out=out, quiet=True).path
    assert json.loads((path / "config.json").read_text())["out"] == str(path)
    if moved:
        path = path.rename("elsewhere")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert pa.resume(path, steps=200, quiet=True).status == "done"
    assert checkpoint.load(path).meta["config"]["out"] == str(path.absolute())
    assert {each.name for each in tmp_path.iterdir()} == {"elsewhere" if moved else "runs"}


def test_the_size_known_beforehand_is_that_of_the_files(tmp_path: Path) -> None:
    like = rollouts(1, stack=4)[0]
    ReplayBuffer(like, SLOTS, stack=4, folder=tmp_path)
    assert ReplayBuffer.size(like, SLOTS, stack=4) == sum(each.stat().st_size for each in tmp_path.iterdir())


@pytest.mark.parametrize("env", ["PongNoFrameskip-v4", "CartPole-v1"])
def test_real_observations_come_back_byte_by_byte(env: str) -> None:
    config = base_config("acer", env=env)
    envs: VectorEnv = make_envs(env, B, atari=config.atari, max_episode_steps=11)
    try:
        spec = EnvSpec.of(envs)
        model = make_model(config, spec)
        stack = config.atari.stack if model.image else 1
        rng, everything = np.random.default_rng(0), []
        observation, is_first, ended = envs.reset(1), np.ones(B, bool), np.zeros(B, bool)
        row = row_of(spec, model, {"behavior_params"})
        replay = ReplayBuffer(Rollout.blank(row, t=T, b=B), 12, stack=stack)
        actions = int(envs.action_space.n)  # type: ignore[union-attr]
        for _ in range(10):
            rollout = Rollout.blank(row, t=T, b=B)
            for t in range(T):
                rollout.observation[t], rollout.is_first[t] = (
                    torch.from_numpy(observation.copy()),
                    torch.from_numpy(is_first),
                )
                observation, _, _, done, *_ = envs.step(rng.integers(0, actions, B))
                is_first, ended = ended, done.copy()
            rollout.observation[T], rollout.is_first[T] = (
                torch.from_numpy(observation.copy()),
                torch.from_numpy(is_first),
            )
            everything.append(rollout)
            replay.add(rollout)
        assert torch.stack([x.is_first[1:] for x in everything]).any()
        for number in replay.whole:
            for column in range(B):
                taken = at(replay, number, column)
                assert torch.equal(taken.observation[:, 0], everything[number].observation[:, column])
    finally:
        envs.close()
