"""What is done to all fields of a rollout follows from what each declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyactor.data import FIELDS, Along, Memo, Moments, Rollout, leaves, map_tree

T, B, N = 3, 4, 2


def numbered() -> Rollout:
    """A rollout with every field, a tree of observations among them; every number in it is another one."""
    row = {
        "observation": {"image": torch.zeros(2, 5), "inventory": (torch.zeros(3), torch.zeros(()))},
        "is_first": torch.zeros(()),
        "action": torch.zeros(2),
        "reward": torch.zeros(()),
        "terminated": torch.zeros(()),
        "behavior_log_prob": torch.zeros(()),
        "core_state": (torch.zeros(6), torch.zeros(7)),
        "version": torch.zeros(()),
        "behavior_params": torch.zeros(5),
        "action_mask": torch.zeros(3),
        "noise": torch.zeros(4),
        "actor_noise": torch.zeros(3),
        "moments": {"x": Moments(torch.zeros(()), torch.zeros(2), torch.zeros(2))},
    }
    assert row.keys() == FIELDS.keys(), "a new field belongs into this test, too"
    x = Rollout.blank(row, t=T, b=B, actors=N)
    start = 0
    for tensor in x.tensors():
        tensor.copy_(torch.arange(start, start + tensor.numel()).view(tensor.shape))
        start += tensor.numel()
    return x


SIZES = {"T": T, "T+1": T + 1, "B": B, "N": N}


def each(x: Rollout, y: Rollout) -> list[tuple[Along, Any, Any]]:
    """Every tensor of one beside that of the other, with its layout."""
    return [
        (own, ours, theirs)
        for name, own in FIELDS.items()
        for ours, theirs in zip(leaves(getattr(x, name)), leaves(getattr(y, name)), strict=True)
    ]


def test_memory_has_the_axes_that_the_fields_declare() -> None:
    x = numbered()
    for own, tensor, _ in each(x, x):
        assert tensor.shape[: len(own.axes)] == tuple(SIZES[axis] for axis in own.axes)
    assert x.observation["image"].shape == (T + 1, B, 2, 5)  # type: ignore[call-overload]
    assert isinstance(x.moments["x"], Moments)


def test_every_tensor_travels() -> None:
    x = numbered()
    assert len({tensor.data_ptr() for tensor in x.tensors()}) == 18


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), slice(1, 3)], ids=["chosen", "slice"])
def test_columns_are_environments(index: Any) -> None:
    x = numbered()
    y = x.columns(index)
    for own, whole, part in each(x, y):
        if "B" not in own.axes:
            assert part is whole
        else:
            assert torch.equal(part, whole[:, index] if own.axes[0] != "B" else whole[index])
            assert (part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()) == isinstance(index, slice)


def test_rows_are_one_step_of_many_environments() -> None:
    x, index = numbered(), torch.tensor([0, 5, 11])
    for own, whole, part in each(x, x.rows(index)):
        for n, (t, b) in enumerate([(0, 0), (1, 1), (2, 3)]):
            if own.timed:
                assert torch.equal(part[0, n], whole[t, b])
            elif "B" in own.axes:
                assert torch.equal(part[n], whole[b])
            else:
                assert part is whole


def test_acted_leaves_out_the_row_to_bootstrap_from() -> None:
    x = numbered()
    for own, whole, part in each(x, x.acted):
        assert torch.equal(part, whole[:T] if own.timed else whole)


def test_a_block_is_what_one_actor_writes() -> None:
    x = numbered()
    y = x.block(1, 2)
    assert torch.equal(y.reward, x.reward[:, 2:])
    assert torch.equal(y.moments["x"].mean, x.moments["x"].mean[1:])
    assert x.noise is not None
    assert x.actor_noise is not None
    assert y.noise is not None
    assert y.actor_noise is not None
    assert torch.equal(y.noise, x.noise[2:])
    assert torch.equal(y.actor_noise, x.actor_noise[1:])
    y.actor_noise.fill_(-1)
    assert (x.actor_noise[1] == -1).all()
    y.blank_(7)
    assert x.is_first[:, 2:].all()
    assert x.version.tolist()[2:] == [7, 7]
    assert x.version[0] != 7
    assert not x.moments["x"].samples[1]
    assert x.moments["x"].samples[0]


def test_a_field_that_is_missing_stays_so() -> None:
    x = numbered().replace(behavior_params=None)
    assert x.columns(slice(0, 1)).behavior_params is None
    assert len(list(x.tensors())) == 17


@pytest.mark.parametrize(
    "cut",
    [lambda x: x.columns(torch.tensor([1])), lambda x: x.rows(torch.tensor([1, 5]))],
    ids=["columns", "rows"],
)
def test_the_images_of_chosen_rows_go_with_them(cut: Callable[[Rollout], Rollout]) -> None:
    images = torch.arange(T * B * 2.0).view(T * B, 1, 1, 2)
    x = numbered().replace(memo=Memo(images=images, features=(torch.zeros(T * B, 1),)))
    y = cut(x)
    assert y.memo is not None
    assert y.memo.images is not None
    assert not y.memo.features
    wanted = images.view(T, B, 2)[:, 1] if len(y.reward) == T else images.view(T * B, 2)[[1, 5]]
    assert torch.equal(y.memo.images.flatten(1), wanted.reshape(-1, 2))
    assert x.columns(slice(0, 2)).memo is None


def test_a_tree_keeps_its_form() -> None:
    tree = {"a": (1, Moments(2, 3, 4)), "b": 5}  # type: ignore[arg-type]
    assert map_tree(lambda n: n + 1, tree) == {"a": (2, Moments(3, 4, 5)), "b": 6}  # type: ignore[arg-type]
    assert list(leaves(tree)) == [1, 2, 3, 4, 5]
