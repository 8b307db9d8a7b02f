"""Checkpoints: each is one directory, which a reader finds whole or not at all.

::

    checkpoints/
      last.json                 {"checkpoint": "000000200000"}: the checkpoint to resume from
      best.json                 the same, for the best score so far
      000000200000/             named after the agent steps so far
        state.safetensors       every tensor
        meta.json               counters, config, versions: plain JSON
        manifest.json           size and SHA-256 of the two, and of itself

A checkpoint is written under a temporary name in the same folder, forced to disk, renamed, and only then pointed at. So
a crash, a full disk or a killed process leaves the previous checkpoint as it was. Neither torch nor safetensors notices
a flipped bit in a tensor, hence the hashes; nothing is parsed before they match. Pickle is not used.

Only one process at a time may save into a run directory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyactor.errors import CheckpointError, RunDirectoryError
from polyactor.storage.atomic import HALF, replace_file, sync_directory, write_new, writing
from polyactor.system.failpoints import hit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

FORMAT = "polyactor-checkpoint"
FORMAT_VERSION = 1
STATE, META, MANIFEST = "state.safetensors", "meta.json", "manifest.json"
FOLDER = "checkpoints"
LEARNED = ("model.", "optimizer.")
"""Prefixes of the names of tensors that learning changes: parameters, running statistics and optimizer state."""

POLICY_ALONE = "policy_alone"
"""Key of the meta of a checkpoint that holds a policy and nothing that training would go on from."""

MAX_META_BYTES = MAX_HEADER_BYTES = 1 << 20
MAX_MANIFEST_BYTES = MAX_POINTER_BYTES = 1 << 14

_NAME = re.compile(r"([0-9]{12,20})(?:\.([0-9]{1,6}))?")
"""The name of a checkpoint directory: agent steps, and a count if saved again. It cannot lead out of the folder."""
_TAG = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TEMPORARY = ".saving-"


@dataclass(frozen=True)
class Checkpoint:
    """The verified content of a checkpoint.

    Attributes:
        path: the checkpoint directory.
        tensors: by name, on the CPU, each with its own memory.
        meta: the values given to `save`, as JSON returns them: tuples are lists and keys are strings.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(
    root: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    steps: int,
    *,
    tags: Collection[str] = ("last",),
) -> Path:
    """Save a checkpoint of the run in ``root``, point the tags at it, and remove checkpoints without a tag.

    The checkpoint that the tag `last` named before is kept as well, as a fallback if the new one gets damaged.
    If the same step was saved before, the new directory is called ``<steps>.2``.

    Args:
        root: the run directory; it and ``checkpoints/`` are created if missing.
        tensors: by name, of any dtype, shape and device; copied, so views of one flat vector are fine.
        meta: plain JSON without NaN or infinity, at most 1 MiB once written.
        steps: agent steps so far.
        tags: the tags to point at the checkpoint, usually ``("last",)`` or ``("last", "best")``.

    Returns:
        The new checkpoint directory.

    Raises:
        OutOfResources: the disk or the quota is full; the previous checkpoint is untouched.
        RunDirectoryError: the run directory cannot be written; the previous checkpoint is untouched.
        TypeError, ValueError: ``meta`` is not plain JSON or too long, a tag is no plain name, or ``steps`` is negative.
    """
    if steps < 0 or not all(_TAG.fullmatch(tag) for tag in tags):
        raise ValueError(f"steps {steps} must be 0 or more and tags {tuple(tags)} plain lower-case names")
    contents = _contents(tensors, meta)
    folder = Path(root) / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():  # a run directory from elsewhere must not choose where we write
            raise RunDirectoryError(f"cannot write {folder}: it is a symbolic link")
        sync_directory(folder.parent)
        for leftover in folder.glob(f"{_TEMPORARY}*"):  # left by a killed save: make room first
            _remove(leftover)
        for leftover in folder.glob(f"{HALF[0]}*{HALF[1]}"):
            leftover.unlink()
        previous = _named_or_none(folder, "last")
        target = _write_directory(folder, steps, contents)
        try:
            sync_directory(folder)
            for tag in tags:
                replace_file(_pointer(folder, tag), _dump({"checkpoint": target.name}))
        except BaseException:
            others = {directory.name for directory in _directories(folder)} - {target.name}
            _prune(folder, keep=others)  # removes the new one, unless a pointer names it already
            raise
    if "last" in tags:
        _prune(folder, keep={previous, target.name})
    return target


def point(root: Path, tag: str, *, at: str) -> None:
    """Point ``tag`` at the checkpoint that the tag ``at`` names, atomically; no checkpoint is copied or removed.

    Raises:
        CheckpointError: the run in ``root`` has no readable pointer ``at``.
        OutOfResources, RunDirectoryError: the pointer cannot be written; the old one is untouched.
        ValueError: ``tag`` is no plain lower-case name.
    """
    if not _TAG.fullmatch(tag):
        raise ValueError(f"the tag {tag!r} must be a plain lower-case name")
    folder = Path(root) / FOLDER
    name = _named(folder, at)
    with writing(folder):
        replace_file(_pointer(folder, tag), _dump({"checkpoint": name}))


def load(path: Path, *, tag: str = "last") -> Checkpoint:
    """Read and verify a checkpoint.

    Args:
        path: a run directory, or a checkpoint directory, for which ``tag`` is ignored.
        tag: which of the run's checkpoints to read.

    Raises:
        CheckpointError: a file is missing, damaged, not of polyactor, or in a newer format. The sentence names the
            file, what is wrong with it, and the run's newest good checkpoint if there is one.
    """
    path = Path(path)
    try:
        directory = _directory(path, tag)
        contents = _verified(directory)
        return Checkpoint(directory, _parse_state(directory / STATE, contents), _parse_meta(directory / META, contents))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_advice(path)}") from error.__cause__


def last(root: Path) -> Path | None:
    """Return the checkpoint directory that the run in ``root`` resumes from, or None; its content is not verified."""
    folder = Path(root) / FOLDER
    name = _named_or_none(folder, "last")
    return folder / name if name and os.path.isdir(folder / name) else None


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of parameters, running statistics and optimizer tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if name.startswith(LEARNED) and tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]


def exists(path: Path, *, tag: str = "last") -> bool:
    """Whether ``path`` is a run directory with that tag, or a checkpoint directory; its content is not verified."""
    path = Path(path)
    return os.path.isfile(_pointer(path / FOLDER, tag)) or os.path.isfile(path / MANIFEST)


def newest_good(root: Path) -> Path | None:
    """Return the newest checkpoint directory in ``root`` whose hashes match, with or without a tag; None if none do."""
    for directory in sorted(_directories(Path(root) / FOLDER), key=_order, reverse=True):
        with suppress(CheckpointError):
            _verified(directory)
            return directory
    return None


# ---- writing ---------------------------------------------------------------------------------------------------


def _contents(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of a checkpoint's three files by name, the manifest last."""
    import torch
    from safetensors.torch import save as serialize

    # safetensors refuses tensors that share memory, as views of one vector do.
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    contents = {STATE: serialize(copies), META: _dump(dict(meta))}
    if len(contents[META]) > MAX_META_BYTES:
        raise ValueError(f"meta is {len(contents[META])} bytes of JSON; at most {MAX_META_BYTES} can be saved")
    return contents | {MANIFEST: _manifest(contents)}


def _manifest(contents: Mapping[str, bytes]) -> bytes:
    """Return the manifest: size and SHA-256 of each file, and of the manifest itself."""
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "polyactor": _version(),
        "files": {name: {"bytes": len(data), "sha256": _hash(data)} for name, data in contents.items()},
    }
    return _dump(body | {"sha256": _hash(_dump(body))})


def _version() -> str:
    try:
        return metadata.version("polyactor")
    except metadata.PackageNotFoundError:
        return "unknown"


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_directory(folder: Path, steps: int, contents: Mapping[str, bytes]) -> Path:
    """Write a checkpoint's files under a temporary name, force them to disk, then rename the directory."""
    temporary = folder / f"{_TEMPORARY}{os.getpid()}"
    try:
        temporary.mkdir()
        for name, data in contents.items():
            write_new(temporary / name, data)
        sync_directory(temporary)
        target = _free_name(folder, steps)
        hit("save")
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _free_name(folder: Path, steps: int) -> Path:
    """Return an unused directory name for a step, since a directory cannot be replaced atomically."""
    taken = [_order(directory)[1] for directory in _directories(folder) if _order(directory)[0] == steps]
    return folder / (f"{steps:012d}.{max(taken) + 1}" if taken else f"{steps:012d}")


def _prune(folder: Path, keep: Collection[str | None]) -> None:
    """Remove the checkpoints that neither a tag nor `keep` names. Never raises: the next save removes leftovers."""
    try:
        named = {_named(folder, pointer.stem) for pointer in folder.glob("*.json")}
    except CheckpointError:
        return  # an unreadable pointer may name any of them
    for directory in _directories(folder):
        if directory.name not in named | set(keep):
            _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a directory with all its content, or a symbolic link without its target. Never raises."""
    if directory.is_symlink():
        with suppress(OSError):
            directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)


# ---- reading ---------------------------------------------------------------------------------------------------


def _pointer(folder: Path, tag: str) -> Path:
    return folder / f"{tag}.json"


def _directories(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)]
    except OSError:
        return []


def _order(directory: Path) -> tuple[int, int]:
    """Return the sort key of a checkpoint directory: agent steps, then which save of that step."""
    match = _NAME.fullmatch(directory.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _directory(path: Path, tag: str) -> Path:
    """Return the checkpoint directory of a tag in a run directory, or ``path`` if it is a checkpoint directory."""
    if not _TAG.fullmatch(tag):
        raise CheckpointError(f"{tag!r} cannot name a checkpoint")
    if not os.path.isdir(path):
        raise CheckpointError(f"{path} {'is not a directory' if os.path.lexists(path) else 'does not exist'}")
    if os.path.isdir(path / FOLDER):
        return path / FOLDER / _named(path / FOLDER, tag)
    if path.parent.name == FOLDER or any(os.path.exists(path / name) for name in (STATE, META, MANIFEST)):
        return path
    raise CheckpointError(f"{path} is neither a run directory with checkpoints nor a checkpoint")


def _named(folder: Path, tag: str) -> str:
    """Return the name of the checkpoint directory that a tag points at. Raises `CheckpointError`."""
    pointer = _pointer(folder, tag)
    content = _json(pointer, _read(pointer, MAX_POINTER_BYTES))
    name = content.get("checkpoint")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} is damaged: it does not name a checkpoint directory")
    return name


def _named_or_none(folder: Path, tag: str) -> str | None:
    try:
        return _named(folder, tag)
    except CheckpointError:
        return None


def _verified(directory: Path) -> dict[str, bytes]:
    """Return the bytes of a checkpoint's tensors and meta, whose sizes and hashes match the manifest."""
    if not os.path.isdir(directory):
        raise CheckpointError(f"{directory} is missing")
    expected = _parse_manifest(directory / MANIFEST)
    contents = {}
    for name in (META, STATE):
        size, digest = expected[name]
        data = _read(directory / name, size, exactly=True)
        if _hash(data) != digest:
            raise CheckpointError(f"{directory / name} is damaged: its SHA-256 is not the one in {MANIFEST}")
        contents[name] = data
    return contents


def _parse_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size in bytes and the SHA-256 of each file that a valid manifest lists."""
    data = _read(path, MAX_MANIFEST_BYTES)
    body = _json(path, data)
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a polyactor checkpoint")
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, made by polyactor {str(body.get('polyactor'))[:40]}, "
            f"and this polyactor reads up to {FORMAT_VERSION}: please upgrade"
        )
    digest = body.pop("sha256", None)
    if digest != _hash(_dump(body)) or data != _dump(body | {"sha256": digest}):
        raise CheckpointError(f"{path} is damaged: it does not match its own SHA-256")
    files = body.get("files")
    sizes: dict[str, tuple[int, str]] = {}
    for name in (STATE, META):
        entry = files.get(name) if isinstance(files, dict) else None
        size, file_digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not isinstance(size, int) or size < 0 or not isinstance(file_digest, str):
            raise CheckpointError(f"{path} does not list {name}")
        sizes[name] = (size, file_digest)
    if version != FORMAT_VERSION or sizes[META][0] > MAX_META_BYTES:
        raise CheckpointError(f"{path} is not a manifest that polyactor writes")
    return sizes


def _parse_state(path: Path, contents: Mapping[str, bytes]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialize

    header = int.from_bytes(contents[STATE][:8], "little")
    if header > MAX_HEADER_BYTES:  # a million tensors, or one of a million dimensions
        raise CheckpointError(f"{path} is not a safetensors file of ours: its header has {header} bytes")
    try:
        return dict(deserialize(contents[STATE]))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {_first_line(error)}") from error


def _parse_meta(path: Path, contents: Mapping[str, bytes]) -> dict[str, Any]:
    return _json(path, contents[META])


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value


def _read(path: Path, size: int, *, exactly: bool = False) -> bytes:
    """Return at most (or exactly) ``size`` bytes of a regular file; links and FIFOs are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    try:
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            found = status.st_size
            data = file.read(size) if (found == size if exactly else found <= size) else None
    except MemoryError:
        raise CheckpointError(f"{path} cannot be read: its {size} bytes do not fit into memory") from None
    except OSError as error:
        if not isinstance(error, IsADirectoryError):
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        raise CheckpointError(f"{path} is not a regular file") from error
    if data is None or (exactly and len(data) != size):
        wanted = f"the manifest says {size}" if exactly else f"at most {size} can be"
        problem = "truncated" if exactly and found < size else "too long"
        raise CheckpointError(f"{path} is {problem}: {found} bytes where {wanted}")
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _advice(path: Path) -> str:
    """Return the end of an error sentence: the newest good checkpoint of the run of ``path``, if there is one."""
    root = path if os.path.isdir(path / FOLDER) else path.parent.parent if path.parent.name == FOLDER else None
    good = newest_good(root) if root else None
    return f" (newest good checkpoint: {good})" if good else ""
