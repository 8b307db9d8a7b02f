"""Where a module is, its test can be found; and the package stays as flat and as named as the design says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import polyactor

ROOT = Path(__file__).parents[2]
TESTS, PACKAGE = ROOT / "tests", Path(polyactor.__file__).parent
OF_NO_MODULE = {"properties", "faults", "benchmarks", "helpers"}
"""Folders whose files are named for what they hold together, break or share."""
ELSEWHERE = {
    "__main__.py": "cli/test_main.py",  # is the command line
    "fields.py": "cli/test_flags.py",  # a field of a config is a flag
    "types.py": "properties/test_structure.py",  # public names alone
    "agent/replica.py": "properties/test_hygiene.py",  # with updater: what one update does and leaves
    "agent/resumables.py": "properties/test_exact_resume.py",  # what is named there is what goes on
    "agent/rollout_row.py": "agent/test_actor.py",  # the rows that it writes
    "agent/updater.py": "properties/test_hygiene.py",
    "cli/verbs.py": "cli/test_main.py",  # each is called through it
    "data/learning.py": "properties/test_hygiene.py",  # values alone, that an update hands on
    "envs/finding.py": "envs/test_gymnasium_env.py",  # what names stand for, by what is made of them
    "envs/answers.py": "envs/test_serial_vector_env.py",  # of environments that are wrong in every way
    "envs/vector_env.py": "envs/test_serial_vector_env.py",  # an interface
    "equations/schedules.py": "algorithms/test_base.py",  # every algorithm anneals by it
    "models/scaling.py": "models/test_actor_critic.py",  # what a model makes of observations
    "models/spec.py": "models/test_actor_critic.py",  # values alone, of a model
    "schemes/sync.py": "properties/test_proof.py",  # what every other scheme is compared with
    "settings/check.py": "properties/test_combinations.py",  # what is refused, of every pairing
    "settings/registry.py": "test_api.py",  # parts by name, mapping and instance
    "settings/serialize.py": "faults/test_fuzz.py",  # of configs that anybody may have written
    "storage/atomic.py": "faults/test_saves.py",  # crashes at every call
    "system/interpreter.py": "transport/test_threads.py",  # threads that it keeps apart
    "system/script.py": "transport/test_processes.py",  # what workers import of it
    "transport/main_role.py": "transport/test_local.py",  # with the workers beside it
    "transport/last_words.py": "transport/test_processes.py",  # what workers say when they raise
    "transport/ray/probe.py": "transport/ray/test_cluster.py",  # what a cluster is asked before it is joined
    "transport/surroundings.py": "transport/test_processes.py",  # what workers take over
    "system/forkserver.py": "transport/test_processes.py",  # what its processes share
    "training/run.py": "training/test_callbacks.py",  # what callbacks are given
    "training/forkserver_preload.py": "transport/test_processes.py",  # imports alone
    "transport/inline.py": "properties/test_schedules.py",  # orders of turns
    "transport/pause.py": "faults/test_lost_workers.py",  # pauses while workers die and hang
}
"""By module: the file that tests it under another name."""
ALSO = {"equations/test_retrace.py"}  # ACER's equations, which returns, losses and distributions have a part of
OPAQUE = {
    *("auto", "beside", "board", "channel", "compose", "goal", "nursery", "pace", "parcel", "preloaded", "pulse"),
    *("restoring", "rundir", "saving", "tally", "telling"),
    *("actions", "each", "emulators", "inspect", "natural", "torso"),
}
"""Names that no module has: a person who looks for what they held would not look there."""


def modules() -> set[str]:
    """Every module that is not a package."""
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    return {path.as_posix() for path in files}


def file_of(module: str) -> str:
    """The file that tests a module."""
    path = Path(module)
    return ELSEWHERE.get(module, path.with_name(f"test_{path.name}").as_posix())


def test_every_module_has_its_test() -> None:
    missing = {module: file_of(module) for module in modules() if not (TESTS / file_of(module)).is_file()}
    assert not missing


def test_what_is_tested_elsewhere_is_there_and_has_no_file_of_its_own() -> None:
    assert set(ELSEWHERE) <= modules()
    own = {module: Path(module).with_name(f"test_{Path(module).name}") for module in ELSEWHERE}
    assert not [module for module, path in own.items() if (TESTS / path).exists()]


def test_every_test_has_the_name_of_a_module() -> None:
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    mirrored = {path.as_posix() for path in files if path.parts[0] not in OF_NO_MODULE}
    assert mirrored - ALSO <= {Path(module).with_name(f"test_{Path(module).name}").as_posix() for module in modules()}
    assert mirrored >= ALSO


def test_few_modules_lie_beside_the_folders() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_layers_are_few() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    assert len(layers) <= 13


def test_modules_have_names_that_say_what_is_inside() -> None:
    assert not [module for module in modules() if Path(module).stem in OPAQUE]
