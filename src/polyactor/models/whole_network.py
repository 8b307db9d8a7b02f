"""A whole network of one's own in place of torso, core and heads."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.data import CoreState, Memo, Outputs, Rollout, Tree, map_tree
from polyactor.errors import UsageError
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic, Precision, Trunk, copy_of
from polyactor.models.heads import critic_width
from polyactor.models.own_parts import own_network
from polyactor.models.spec import ModelSpec


class WholeNetwork(ActorCritic):
    """Computes policy and value by a module of the user's, on observations that are scaled as for every torso.

    Masks are applied to the policy parameters that it gives. The arguments are those of `ActorCritic`; the module
    computes in float32, and of the spec it is `network`, `distribution` and `log_std` that
    count.

    Raises:
        UsageError: there is no such code, it makes no such network, or the critic reads actions (a dueling network).
    """

    def __init__(
        self,
        observation_space: spaces.Box | spaces.Dict,
        action_space: spaces.Space[object],
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        normalize_observation: bool = False,
        normalize_return: bool = False,
        value_head: str = "value",
        averaged: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        log_std = spec.log_std_start if spec.log_std == "fixed" else None
        self.actions = action_spec(action_space, log_std, spec.distribution)
        if value_head == "q" and self.actions.dims:
            raise UsageError(
                "--model.network is not allowed where the algorithm learns Q of actions with numbers, whose head reads"
                " features: give a --model.torso or --model.core of your own, or use a2c, ppo or vtrace"
            )
        self.lists_actions = value_head == "q"
        self.network = own_network(
            observation_space,
            spec,
            normalize_observation,
            self.actions.params,
            critic_width(value_head, self.actions),
            lists=self.lists_actions,
        )
        self._keep_statistics(observation_space, spec, normalize_observation, normalize_return)
        self.average = copy_of(self) if averaged else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and values."""
        own = itertools.chain(self.network.parameters(), self.network.buffers())  # of an average all are buffers
        return next(each.dtype for each in own if each.is_floating_point())

    @property
    def trunks(self) -> list[Trunk]:
        """None: there are no torsos whose activations a memo could hold."""
        return []

    def initial_state(self, batch: int) -> CoreState:
        """Return the recurrent state before an episode, tensors ``[B, ...]``; none without a method of that name."""
        own = getattr(self.network, "initial_state", None)
        return () if own is None else cast("CoreState", own(batch))

    def step(
        self,
        observation: Tree,
        state: CoreState,
        is_first: Tensor,
        memo: Memo | None = None,
        action_mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, CoreState]:
        """Compute the policy of one step, as `ActorCritic.step`; there is no memo, and no noisy layer."""
        params, _, state = self(map_tree(lambda x: x.unsqueeze(0), observation), state, is_first.unsqueeze(0))
        return self.actions.masked(params[0], action_mask), state

    def unroll(self, rollout: Rollout) -> Outputs:
        """Compute policy and value of all rows of a rollout, from the recurrent state before its first row."""
        params, value, _ = self(rollout.observation, rollout.core_state, rollout.is_first)
        return Outputs(self.actions.masked(params, rollout.action_mask), value, None)

    def forward(self, observation: Tree, state: CoreState, is_first: Tensor) -> tuple[Tensor, Tensor, CoreState]:
        """Compute policy parameters ``[T, B, P]``, values and the recurrent state after the last row."""
        seen = self.prepared(map_tree(lambda x: x.flatten(0, 1), observation))
        in_time = map_tree(lambda x: x.unflatten(0, is_first.shape), seen)
        return cast("tuple[Tensor, Tensor, CoreState]", self.network(in_time, state, is_first))

    def with_images(self, rollout: Rollout) -> Rollout:
        """Return the rollout as it is."""
        return rollout
