"""One checkpoint is one directory, and a reader finds either all of it or none.

::

    checkpoints/
      last.json                 {"checkpoint": "000000200000"}: which directory to resume from
      best.json                 the same, for the best score so far
      000000200000/             the agent steps it was taken at
        state.safetensors       every tensor
        meta.json               counters, config, versions: plain JSON
        manifest.json           size and SHA-256 of the two, and of itself

A save is written under a temporary name in the same folder, forced to disk, renamed, and only then pointed at; so a
crash, a full disk or a killed process leaves the previous checkpoint as it was. Neither torch nor safetensors notices
a flipped bit in a tensor, hence the hashes; nothing is parsed before they match. There is no pickle anywhere.

One process at a time saves into a run directory.
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
"""Before the names of what learning changes: parameters, running statistics, the optimizer's."""

MAX_META_BYTES = MAX_HEADER_BYTES = 1 << 20
MAX_MANIFEST_BYTES = MAX_POINTER_BYTES = 1 << 14

_NAME = re.compile(r"([0-9]{12,20})(?:\.([0-9]{1,6}))?")
"""Agent steps, and a count where the same step was saved again. No separator, no dots alone: never a way out."""
_TAG = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TEMPORARY = ".saving-"


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found.

    Attributes:
        path: the checkpoint's own directory.
        tensors: by name, on the CPU, each with its own memory.
        meta: what `save` was given, after a trip through JSON (tuples are lists, keys are strings).
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
    """Save a checkpoint of the run in ``root``, point the tags at it, drop the ones nothing points at.

    The directory `last` named before is kept as well, so that one damaged checkpoint is not the end of a run.
    The same step may be saved again; the second directory is called ``<steps>.2``.

    Args:
        root: the run directory; it and ``checkpoints/`` are made when missing.
        tensors: any dtype, shape and device; copied, so views of one flat vector are fine.
        meta: plain JSON: no NaN or infinity, at most 1 MiB once written.
        steps: agent steps so far.
        tags: the pointers to move, usually ``("last",)`` or ``("last", "best")``.

    Returns:
        The new checkpoint's directory.

    Raises:
        OutOfResources: the disk or the quota is full; the previous checkpoint is untouched.
        RunDirectoryError: the run directory cannot be written; the previous checkpoint is untouched.
        TypeError, ValueError: ``meta`` is not plain JSON or too long, or a tag or ``steps`` cannot be.
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
        for leftover in folder.glob(f"{_TEMPORARY}*"):  # of a save that was killed: make room first
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
            _prune(folder, keep=others)  # the new one alone, and only if no pointer names it yet
            raise
    if "last" in tags:
        _prune(folder, keep={previous, target.name})
    return target


def point(root: Path, tag: str, *, at: str) -> None:
    """Let ``tag`` name the checkpoint that the tag ``at`` names, in one step; nothing is copied or removed.

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
        path: a run directory, or one checkpoint's directory (then ``tag`` does not matter).
        tag: which of a run's pointers to follow.

    Raises:
        CheckpointError: something is missing, damaged, foreign, or written by a newer format; one sentence that names
            the file, what is wrong with it, and the run's newest good checkpoint if it has one.
    """
    path = Path(path)
    try:
        directory = _directory(path, tag)
        contents = _verified(directory)
        return Checkpoint(directory, _parse_state(directory / STATE, contents), _parse_meta(directory / META, contents))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_advice(path)}") from error.__cause__


def last(root: Path) -> Path | None:
    """The checkpoint directory that the run in ``root`` goes on from, if it has one. Says nothing of its health."""
    folder = Path(root) / FOLDER
    name = _named_or_none(folder, "last")
    return folder / name if name and (folder / name).is_dir() else None


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which parameters and statistics have numbers that are not finite: nobody can play or go on with those."""
    return [
        name
        for name, tensor in tensors.items()
        if name.startswith(LEARNED) and tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]


def exists(path: Path, *, tag: str = "last") -> bool:
    """Whether ``path`` is a run with that pointer, or a checkpoint. Says nothing of its health."""
    path = Path(path)
    return _pointer(path / FOLDER, tag).is_file() or (path / MANIFEST).is_file()


def newest_good(root: Path) -> Path | None:
    """The newest checkpoint directory of the run in ``root`` whose hashes match, pointed at or not."""
    for directory in sorted(_directories(Path(root) / FOLDER), key=_order, reverse=True):
        with suppress(CheckpointError):
            _verified(directory)
            return directory
    return None


# ---- writing ---------------------------------------------------------------------------------------------------


def _contents(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, bytes]:
    """The three files of a checkpoint, the manifest last."""
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
    """Write the files under a temporary name, force them to disk, then give the directory its name."""
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
    """A directory cannot be replaced in one step, so a step saved again gets a name and number of its own."""
    taken = [_order(directory)[1] for directory in _directories(folder) if _order(directory)[0] == steps]
    return folder / (f"{steps:012d}.{max(taken) + 1}" if taken else f"{steps:012d}")


def _prune(folder: Path, keep: Collection[str | None]) -> None:
    """Remove the checkpoints that no pointer names. Never fails: what it leaves, the next save removes."""
    try:
        named = {_named(folder, pointer.stem) for pointer in folder.glob("*.json")}
    except CheckpointError:
        return  # a pointer nobody can read may name any of them
    for directory in _directories(folder):
        if directory.name not in named | set(keep):
            _remove(directory)


def _remove(directory: Path) -> None:
    """A directory and all in it; of a link, the link. Never fails."""
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
    """Agent steps, then which save of that step."""
    match = _NAME.fullmatch(directory.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _directory(path: Path, tag: str) -> Path:
    """The checkpoint directory that ``path`` and ``tag`` mean."""
    if not _TAG.fullmatch(tag):
        raise CheckpointError(f"{tag!r} cannot name a checkpoint")
    if not path.is_dir():
        raise CheckpointError(f"{path} {'is not a directory' if os.path.lexists(path) else 'does not exist'}")
    if (path / FOLDER).is_dir():
        return path / FOLDER / _named(path / FOLDER, tag)
    if path.parent.name == FOLDER or any((path / name).exists() for name in (STATE, META, MANIFEST)):
        return path
    raise CheckpointError(f"{path} is neither a run directory with checkpoints nor a checkpoint")


def _named(folder: Path, tag: str) -> str:
    """The directory name in a pointer file; a plain name of ours or an error."""
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
    """The bytes of both files, once their sizes and hashes match the manifest."""
    if not directory.is_dir():
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
    """Size in bytes and SHA-256 of each file."""
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
    """A regular file's bytes, at most ``size`` (or exactly that many); no link is followed, no FIFO waited for."""
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
    """Where to turn instead: the run's newest good checkpoint, if ``path`` belongs to a run."""
    root = path if (path / FOLDER).is_dir() else path.parent.parent if path.parent.name == FOLDER else None
    good = newest_good(root) if root else None
    return f" (newest good checkpoint: {good})" if good else ""
