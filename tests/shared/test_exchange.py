"""Columns of joint rollouts: all workers' are the whole, and one worker alone has its own."""

from __future__ import annotations

import torch

from polyactor.data import Rollout
from polyactor.shared.exchange import Rounds

ROW = {
    "observation": torch.zeros(2),
    "is_first": torch.zeros((), dtype=torch.bool),
    "action": torch.zeros((), dtype=torch.int64),
    "reward": torch.zeros(()),
    "terminated": torch.zeros((), dtype=torch.bool),
    "behavior_log_prob": torch.zeros(()),
    "core_state": (),
    "version": torch.zeros((), dtype=torch.int64),
}
T, B, BATCH, W, LAG = 3, 2, 2, 3, 1


def rounds_of(workers: int, first: int = 0) -> Rounds:
    b = workers * BATCH * B
    joint = [Rollout.blank(ROW, t=T, b=b, actors=workers * BATCH) for _ in range(LAG + 1)]
    return Rounds(joint, BATCH, B, first)


def test_the_slots_of_all_workers_are_all_columns_each_once() -> None:
    rounds = rounds_of(W)
    for worker in range(W):
        for slot in range((LAG + 1) * BATCH):
            rounds.place(worker, slot).reward.add_(1 + slot // BATCH)
    for slot in range((LAG + 1) * BATCH):
        assert torch.equal(rounds.round(slot).reward, torch.full((T, W * BATCH * B), 1.0 + slot // BATCH))


def test_one_worker_alone_has_memory_for_itself() -> None:
    alone, among = rounds_of(1, first=2), rounds_of(W)
    for slot in range((LAG + 1) * BATCH):
        shapes = [[each.shape for each in rounds.place(2, slot).tensors()] for rounds in (alone, among)]
        assert shapes[0] == shapes[1]
        alone.place(2, slot).reward.fill_(slot)
    assert alone.round(0).reward.shape == (T, BATCH * B)
    assert alone.round(0).reward[0].tolist() == [0.0, 0.0, 1.0, 1.0]
