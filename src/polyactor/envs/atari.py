"""Atari games by ale-py's C++ vector environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from polyactor.envs import snapshot
from polyactor.envs.atari_exact import ExactAtariVectorEnv
from polyactor.envs.conversion import Conversion
from polyactor.envs.vector_env import Step, none_lost
from polyactor.errors import EnvironmentUnsupported, UsageError, one_line
from polyactor.fields import Allowed, fits, kind
from polyactor.system.interpreter import holding_interpreter, may_begin_long_call

MAX_FRAMES = 108_000
"""Emulator frames after which a game is truncated, which is 30 minutes at 60 frames per second."""

UNDERSTOOD = {
    "game",
    "repeat_action_probability",
    "full_action_space",
    "frameskip",  # replaced by AtariOptions.frame_skip
    "max_num_frames_per_episode",
}
"""Settings of an Atari id that can be passed on to the vector environment."""


@dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """Preprocessing of Atari games; observations are always grayscale, and rewards are not clipped here."""

    frame_skip: Annotated[int, Allowed(1)] = 4
    """Emulator frames per agent step; the action is repeated, and the maximum of the last two frames is observed."""
    frame_size: Annotated[int, Allowed(1)] = 84
    """Height and width of a frame in an observation, in pixels."""
    resize_height: Annotated[int | None, Allowed(1)] = None
    """Rows that the screen is resized to, of which frame_size rows are kept; none: frame_size, and all are kept."""
    crop_top: Annotated[int, Allowed(0)] = 0
    """First of the resized rows that are kept; the rows above it are cropped."""
    noop_max: Annotated[int, Allowed(0)] = 30
    """Most idle frames at the start of a game; their number is drawn at random."""
    fire_reset: bool = True
    """Press FIRE at the start of games that wait for it."""
    stack: Annotated[int, Allowed(1)] = 4
    """Number of latest frames that are stacked to one observation."""
    life_loss: bool = False
    """Treat a lost life as the end of the episode in the value function, while the game goes on."""
    one_life: bool = False
    """End the episode and restart the game when a life is lost, so that a score is of one life."""
    sticky: Annotated[float | None, Allowed(0, 1)] = None
    """Probability that the emulator repeats the last action; none: that of the id (ALE/*-v5 0.25, *-v4 0)."""


def looks_atari(env_id: str) -> bool:
    """Return whether an id is written like those of ale-py, even if it is not registered."""
    return env_id.startswith("ALE/") or "NoFrameskip-" in env_id


def is_atari(spec: EnvSpec) -> bool:
    """Return whether a registered id is an Atari game of ale-py."""
    return spec.entry_point == "ale_py.env:AtariEnv"


def check(spec: EnvSpec) -> None:
    """Check that the vector environment supports all settings of an Atari id.

    Raises:
        EnvironmentUnsupported: the id sets a mode, a difficulty, RAM observations, continuous actions or the like.
    """
    foreign = sorted(set(spec.kwargs) - UNDERSTOOD)
    if foreign:
        raise EnvironmentUnsupported(
            f"{spec.id} sets {', '.join(foreign)}, which the vector emulator does not have;"
            f" an Atari id may set {', '.join(sorted(UNDERSTOOD))}."
        )


HONOURED = {"full_action_space": bool, "repeat_action_probability": float, "max_num_frames_per_episode": int}
"""Arguments of an Atari id that ``--env-kwargs`` may give, and their types."""


def made_with(spec: EnvSpec, kwargs: Mapping[str, Any]) -> EnvSpec:
    """Return a registered id with these arguments in place of its own.

    Raises:
        UsageError: the vector emulator does not have the argument, or its value is none of its type.
    """
    for name, value in kwargs.items():
        said = f"--env-kwargs {name}={one_line(repr(value), most=80)} is not allowed"
        if name not in HONOURED:
            raise UsageError(f"{said}: {spec.id} may be given {', '.join(HONOURED)}; the flags --atari.… say the rest")
        low, high = (0, 1) if name == "repeat_action_probability" else (1, None)
        if not fits(value, HONOURED[name]) or (HONOURED[name] is not bool and value not in Allowed(low, high)):
            wanted = kind(bool) if HONOURED[name] is bool else f"{Allowed(low, high)}"
            raise UsageError(f"{said}: it must be {wanted}")
    return replace(spec, kwargs={**spec.kwargs, **kwargs})


class AtariEnvs:
    """B games of Atari as a `VectorEnv`.

    Observations are ``[stack, frame_size, frame_size]`` uint8, oldest frame first; frames from before the start of the
    game are black. ale-py returns new arrays at every step, so they are not copied here.

    A game is truncated, not terminated, after `max_episode_steps` agent steps or, by default, the id's number of
    emulator frames (108,000). They are counted from the first observation, without the idle frames before it.

    Args:
        spec: the registered id.
        num_envs: B.
        options: preprocessing.
        max_episode_steps: agent steps after which a game is truncated, or None.
        threads: emulator threads.
        saved: whether `snapshot` will be taken, which needs emulators whose state can be saved.
        render: whether to run a second emulator in colour for pictures of environment 0.

    Raises:
        EnvironmentUnsupported: the id has settings that the vector environment does not support.
        UsageError: cropping keeps more rows than the resized screen has.
    """

    action_mask = None

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        *,
        options: AtariOptions,
        max_episode_steps: int | None,
        threads: int,
        saved: bool,
        render: bool,
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        check(spec)
        size, top = options.frame_size, options.crop_top
        height = options.resize_height or size
        if height < top + size:
            raise UsageError(
                f"--atari.resize-height {options.resize_height or 'none'} is not allowed: frames of {size} rows"
                f" from row {top} on (--atari.frame-size, --atari.crop-top) need at least {top + size}"
            )
        if max_episode_steps is None:
            frames = spec.kwargs.get("max_num_frames_per_episode") or MAX_FRAMES
        else:
            frames = max_episode_steps * options.frame_skip
        sticky = spec.kwargs.get("repeat_action_probability", 0.25) if options.sticky is None else options.sticky
        game: dict[str, Any] = {
            "game": spec.kwargs["game"],
            "max_num_frames_per_episode": frames,  # frames, although ale-py's documentation says steps
            "repeat_action_probability": sticky,
            "full_action_space": spec.kwargs.get("full_action_space", False),
            "frameskip": options.frame_skip,
            "noop_max": options.noop_max,
            "use_fire_reset": options.fire_reset,
            "episodic_life": options.one_life,
            "reward_clipping": False,
            "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
        }
        screen: dict[str, Any] = {
            "img_height": height, "img_width": size, "stack_num": options.stack, "grayscale": True
        }  # fmt: skip
        self._emulators: Any
        with holding_interpreter():
            if saved:
                self._emulators = ExactAtariVectorEnv(num_envs, **screen, **game)
            else:
                many: dict[str, Any] = {"num_envs": num_envs, "num_threads": min(threads, num_envs)}
                self._emulators = AtariVectorEnv(**many, **screen, **game)
        self._rows = slice(top, top + size)
        # An emulator is gray or in colour: a twin of environment 0 with the same seed and actions gives the pictures.
        self._twin = None
        if render:
            self._twin = AtariVectorEnv(
                num_envs=1, num_threads=1, img_height=210, img_width=160, stack_num=1, grayscale=False, **game
            )
        self._picture: NDArray[np.uint8] | None = None
        self._life_loss = options.life_loss
        self._lives = np.zeros(num_envs, np.int32)
        self._done = np.zeros(num_envs, np.bool_)
        self._lost = none_lost(num_envs)

        self.num_envs = num_envs
        self.frames_per_second = round(60 / options.frame_skip)
        shape = (options.stack, size, size)
        actions = gymnasium.spaces.Discrete(len(self._emulators.ale.get_action_set()))
        self.conversion = Conversion(gymnasium.spaces.Box(0, 255, shape, np.uint8), actions, spec.id)
        self.observation_space, self.action_space = self.conversion.observation_space, self.conversion.action_space

    def reset(self, seed: int | None) -> NDArray[Any]:
        """Start B games and return their first observations ``[B, stack, frame_size, frame_size]``.

        Args:
            seed: environment i is seeded with ``seed + i``; None draws a seed.
        """
        may_begin_long_call()
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seed = int(seed) % (2**31 - self.num_envs)  # ale-py takes Python ints of 31 bits
        observation, info = self._emulators.reset(seed=seed)
        self._lives = info["lives"]
        self._done = np.zeros(self.num_envs, np.bool_)
        if self._twin is not None:
            colour, _ = self._twin.reset(seed=seed)
            self._picture = colour[0, -1]
        return np.asarray(observation)[:, :, self._rows]

    def step(self, action: NDArray[Any]) -> Step:
        """Take one agent step of `frame_skip` emulator frames; `action` ``[B]`` are indices of the game's actions."""
        action = np.asarray(action, np.int64)
        observation, reward, terminated, truncated, info = self._emulators.step(action)
        done = terminated | truncated
        if self._life_loss:
            # ale-py's life_loss_info is not used, since it hides whether and why the game ended. A game that starts
            # with fewer lives than the one before had at its end has lost none.
            terminated = terminated | ((info["lives"] < self._lives) & ~self._done)
        self._lives, self._done = info["lives"], done
        if self._twin is not None:
            self._picture = self._twin.step(action[:1])[0][0, -1]
        return Step(observation[:, :, self._rows], reward.astype(np.float32), terminated, done, self._lost)

    def snapshot(self) -> bytes:
        """Return the seed of every game and its actions so far; requires ``saved=True``."""
        return snapshot.snapshot([SimpleNamespace(lives=self._lives, done=self._done, **self._emulators.snapshot())])

    def restore(self, saved: bytes) -> None:
        """Restore the games of a snapshot by playing them again from their seeds; requires ``saved=True``."""
        found = SimpleNamespace(lives=self._lives, done=self._done, **self._emulators.snapshot())
        snapshot.restore([found], saved)
        self._emulators.restore(vars(found))
        self._lives, self._done = found.lives, found.done

    def close(self) -> None:
        """Stop the emulators."""
        self._emulators.close()
        if self._twin is not None:
            self._twin.close()

    def render(self) -> NDArray[np.uint8] | None:
        """Return the screen of environment 0 in RGB, ``[210, 160, 3]``, or None if made without ``render=True``."""
        return self._picture
