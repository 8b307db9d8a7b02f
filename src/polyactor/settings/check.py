"""Validation of a config: each setting by itself, and all settings together."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import cloudpickle

from polyactor.config import TRANSPORTS, Config
from polyactor.data import OPTIONAL
from polyactor.envs.environment import parsed
from polyactor.envs.resizing import size_of
from polyactor.errors import UsageError, in_one_line, one_line
from polyactor.fields import LARGEST, Allowed, OneOf, converted, fits, kind, replace_at, walk
from polyactor.settings.registry import name_of


def check(config: Config) -> None:
    """Check that a config can be run: each setting is allowed, and the settings go together.

    Raises:
        UsageError: a setting is not allowed; the sentence names the flag, the value and what is allowed.
    """
    check_values(config)
    config.ray.fits()
    for worker in range(config.workers if config.per_worker else 0):
        check(replace(config.for_worker(worker), per_worker=()))
    scheme, flag = config.scheme, f"--scheme {config.scheme.name}"
    if config.device == "cuda":
        if not scheme.learns_on_gpu:
            raise UsageError(f"--device cuda is not allowed with {flag}: use cpu, or --scheme sync or actor-learner")
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda is not allowed: this machine has no GPU that torch can use; use cpu")
    if config.exact_resume and not scheme.single:
        raise UsageError(f"--exact-resume is not allowed with {flag}, which never runs twice alike: use --scheme sync")
    if config.exact_resume and config.device == "cuda":
        raise UsageError("--exact-resume is not allowed with --device cuda, which never runs twice alike: use cpu")
    if config.compile and not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--compile is not allowed: it needs a C++ compiler (g++, or what CXX names), and none is here")
    if config.algorithm.differentiate and config.compile:
        raise UsageError("--compile is not allowed: what would be compiled is the gradient of a loss, and this is not")
    if config.algorithm.moves and config.precision == "bf16":
        raise UsageError("--precision bf16 is not allowed: steps this small would be rounded away; use fp32")
    if scheme.single and config.workers != 1:
        raise UsageError(
            f"--workers {config.workers} is not allowed: {flag} has one worker; "
            "give it more environments with --envs, or use --scheme hogwild"
        )
    if config.per_worker and not scheme.per_worker:
        raise UsageError(
            f"--per-worker is not allowed with {flag}, where one learner serves all: use hogwild or param-server"
        )
    if config.evaluate.envs == 0 and config.evaluate_every is not None:
        raise UsageError("--evaluate.envs 0 is not allowed with --evaluate-every, which needs an environment: use 1")
    unknown = set(config.algorithm.needs) - OPTIONAL
    if unknown:
        raise UsageError(
            f"the algorithm needs {one_line(sorted(unknown), most=80)}, which is no optional field of a rollout: "
            f"its `needs` may name {', '.join(sorted(OPTIONAL))}"
        )
    TRANSPORTS[config.transport].fits(config)
    code = (config.env, *config.env_wrappers, *config.model.own.values())
    objects = [each for each in code if not isinstance(each, str)]
    if objects and TRANSPORTS[config.transport].sends(scheme):
        _refuse_unsendable(config)
    scheme.fits(config)
    _refuse_misplaced(config)
    if config.model.noisy != "none":
        _refuse_noise(config)
    if config.optimizer.factored:
        _refuse_unfactored(config)
    memory, alone = config.model.core != "none" and config.model.network is None, scheme.alone(config)
    config.algorithm.fits(scheme.columns(config), memory=memory, alone=alone)


def _refuse_misplaced(config: Config) -> None:
    """Raise `UsageError` where parts of a network of one's own do not go together, or with precision or compiler."""
    own = [name for name in config.model.own if name != "core"]
    if own and config.precision == "bf16":
        raise UsageError(
            f"--precision bf16 is not allowed with --model.{own[0]} of your own: use fp32, in which it computes"
        )
    if config.compile and config.model.own:
        raise UsageError(
            f"--compile is not allowed with --model.{next(iter(config.model.own))} of your own: only the run's first "
            "gradient could tell whether torch compiles it"
        )
    for name in config.model.own if config.model.network is not None else ():
        if name != "network":
            raise UsageError(f"--model.{name} of your own is not allowed with --model.network, which is in its place")


def _refuse_noise(config: Config) -> None:
    """Raise `UsageError` where noisy layers do not fit the network, the precision or what a batch is made of."""
    model, algorithm = config.model, config.algorithm
    flag = f"--model.noisy {model.noisy}"
    if model.network is not None:
        raise UsageError(f"{flag} is not allowed with --model.network, whose layers are your own: use none")
    if model.norm == "weight":
        raise UsageError(
            f"--model.norm weight is not allowed with {flag}, whose layers have weights of their own: use layer"
        )
    if model.noisy == "dense" and "torso" in model.own:
        raise UsageError(f"{flag} is not allowed with --model.torso of your own, whose layers have no noise: use heads")
    if model.noisy == "dense" and config.precision == "bf16":
        raise UsageError(f"--precision bf16 is not allowed with {flag}: use fp32, in which noisy layers compute")
    if algorithm.spans_rollouts:
        raise UsageError(
            f"{flag} is not allowed with replayed sequences that span two rollouts, each with noise of its own: use "
            "--algorithm.replay-window none"
        )
    mixed = algorithm.remembers or config.scheme.columns(config) > config.envs
    if model.noisy_kind == "independent" and mixed:
        raise UsageError(
            "--model.noisy-kind independent is not allowed where a batch joins rollouts of several actors or from "
            "replay, each with noise of its own: use factorised"
        )


def _refuse_unfactored(config: Config) -> None:
    """Raise `UsageError` where the optimizer's factors of the Fisher matrix could not be estimated."""
    flag, algorithm = f"--optimizer {name_of('optimizer', config.optimizer)}", config.algorithm
    if not config.scheme.single:
        raise UsageError(
            f"{flag} is not allowed with --scheme {config.scheme.name}: one process estimates the Fisher matrix of all "
            "rollouts and steps by its inverse: use --scheme sync, or --optimizer adam"
        )
    if algorithm.reuses or algorithm.outputs != ("policy", "value"):
        raise UsageError(
            f"{flag} is not allowed with the algorithm {one_line(name_of('algorithm', algorithm))}: the Fisher matrix "
            "is that of a policy and of V(x), estimated from rollouts that are learned from once: use a2c or vtrace, "
            "or --optimizer adam"
        )
    own = {"noisy": config.model.noisy != "none", "norm": config.model.norm == "weight"}
    for name in (name for name, computed in own.items() if computed):
        raise UsageError(
            f"--model.{name} {getattr(config.model, name)} is not allowed with {flag}: the Fisher matrix is that of "
            "weights, which these layers compute from other parameters: use none, or --optimizer adam"
        )
    if config.precision == "bf16":
        raise UsageError(f"--precision bf16 is not allowed with {flag}, whose factors it would round: use fp32")


def _refuse_unsendable(config: Config) -> None:
    """Raise `UsageError` where the user's callables or algorithm cannot be sent to a worker's process."""
    parts = [("a wrapper", wrapper) for wrapper in config.env_wrappers]
    parts += [(f"the {name} of the model", value) for name, value in config.model.own.items()]
    for what, value in (("the environment", config.env), *parts, ("the algorithm", config.algorithm)):
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # the user's own object may raise anything
            raise UsageError(
                f"{what} cannot be sent to worker processes ({one_line(error, most=120)}): hand over a function that "
                "makes all it needs itself, or use --scheme sync or --transport inline"
            ) from None


def settled(config: Config) -> Config:
    """Return a config with each value as the type that its setting declares, and check the values by themselves.

    Raises:
        UsageError: a value is not allowed; the sentence names the flag, the value and what is allowed.
    """
    for setting in walk(config):
        value = converted(setting.value, setting.declared.hint)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str) and not in_one_line(each):
                said = one_line(each, most=80)
                raise UsageError(f"--{setting.flag} {said} is not allowed: it must be one line of text")
        if value is not setting.value:
            config = replace_at(config, setting.path, value)
    check_values(config)
    return config


def check_values(config: Config) -> None:
    """Check the type, range and name of each setting by itself, and not whether the settings go together.

    Raises:
        UsageError: a setting is not allowed; the sentence names the flag, the value and what is allowed.
    """
    for setting in walk(config):
        flag, value, hint = setting.flag, setting.value, setting.declared.hint
        for allowed in setting.declared.allowed:
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and each not in allowed:
                    text = ", not a text" * (isinstance(each, str) and not isinstance(allowed, OneOf))
                    if isinstance(each, float) and isinstance(allowed, Allowed) and allowed.high is None:
                        text = f", {LARGEST:g} at most" * (abs(each) > LARGEST)
                    said = one_line(each, most=80)
                    raise UsageError(f"--{flag} {said} is not allowed: it must be {allowed}{text}")
        if not fits(value, hint):
            large = " below 2**63" * (isinstance(value, int) and value >= 2**63)
            raise UsageError(f"--{flag} {one_line(value, most=80)} is not allowed: it must be {kind(hint)}{large}")
    parsed(config.env_kwargs)
    size_of(config.env_resize)
    for entry in config.model.hidden:
        if entry < 1:
            raise UsageError(f"--model.hidden {entry} is not allowed: it must be a number of at least 1")
