"""Command-line flags, parsed to a config or to the options of a verb; a wrong flag is an error of one sentence."""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import io
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from polyactor.errors import UsageError, one_line, suggestion
from polyactor.fields import AUTO, KINDS, NameOrCode, OneOf, Setting, kind, replace_at, walk

if TYPE_CHECKING:
    from polyactor.config import Config
    from polyactor.envs import EnvSpec

READ_FIRST = """\
Read first, since they decide which flags there are:
--env ID (any Gymnasium id, module:name or file.py:name),
--env-kwargs NAME=VALUE…, --env-wrapper NAME…, --env-resize H W,
--scheme sync|hogwild|param-server|actor-learner,
--optimizer sgd|rmsprop|adam|kfac.
"""
KEEPS = "; a run goes on with its own settings, and train … --init-from RUN begins one with others at its parameters"
"""What to do for a flag that resume lacks."""
MADE_OF = {"env-kwargs": "env_kwargs", "env-wrapper": "env_wrappers", "env-resize": "env_resize"}
"""Flags of an environment with several values, and the setting of each."""
HELP = frozenset({"--help", "-h"})
"""Flags that ask for help."""
SHORT = {
    "--max-lag": "--scheme.max-lag", "--max-staleness": "--scheme.max-staleness", "--callback": "--callbacks"
}  # fmt: skip
"""Short names of flags, and the full name of each."""
SEVERAL = ("callbacks",)
"""Flags that may be given several times, each with one value."""


def read_config(args: list[str], look: Callable[..., EnvSpec] | None = None) -> Config:
    """Return the config that a preset and flags describe.

    Preset, algorithm, scheme, optimizer and environment are read first, since they decide which other flags exist.

    Args:
        args: the arguments after the verb.
        look: returns what an environment looks like; `env_spec` by default.

    Raises:
        UsageError: a flag does not exist or has a value that is not allowed.
    """
    from polyactor.envs import env_spec
    from polyactor.settings.presets import base_config

    if HELP.intersection(args):
        args = _example(args)
    name, args = positional(
        args, "train needs a preset or an algorithm, such as: polyactor train a3c --env CartPole-v1"
    )
    first: dict[str, Any] = {}
    for flag in ("env", "scheme", "optimizer"):
        first_value, args = take(args, flag)
        if first_value is not None:
            first[flag] = first_value
    several, args = take_several(args)
    first |= several
    noisy, _ = take(args, "model.noisy")
    base = base_config(name, look=look or env_spec, noisy=noisy, **first)
    return _parse(base, args, f"polyactor train {name}")


def _example(args: list[str]) -> list[str]:
    """Return arguments that `--help` can be shown for: A3C and CartPole where no method or environment is given."""
    from polyactor.settings.presets import PRESETS

    args = args if not args[0].startswith("-") else ["a3c", *args]
    known = args[0] in PRESETS or any(arg.partition("=")[0] == "--env" for arg in args)
    return args if known else [args[0], "--env", "CartPole-v1", *args[1:]]


def _parse(base: Config, args: list[str], prog: str) -> Config:
    """Parse flags with tyro, starting from a config; an error is a `UsageError` of one sentence."""
    import tyro

    known = _flags(base)
    args = [SHORT.get(name, name) + equals + value for name, equals, value in (arg.partition("=") for arg in args)]
    for arg in args:
        flag = arg.split("=")[0]
        if arg.startswith("--") and flag[2:].replace("_", "-") not in known and flag != "--help":
            near = difflib.get_close_matches(flag[2:], known, n=1, cutoff=0.5)
            hint = f" (did you mean '--{near[0]}'?)" if near else ""
            if re.match(r"--env(\.|[-_](kw)?(arg|option|param))", flag):
                from polyactor.envs.finding import OPTIONS

                hint = f": {OPTIONS}"
            raise UsageError(f"there is no flag {flag}{hint}")
    for arg, after in itertools.pairwise([*args, "--"]):
        flag, equals, value = arg.partition("=")
        name = flag.replace("_", "-")
        valued = name.startswith("--") and name[2:] in known and not _is_switch(name, known)
        if valued and not equals and after.startswith("--"):
            raise UsageError(f"{flag} needs a value")
        value = value if equals or after.startswith("-") else after
        if value and _is_switch(flag.replace("_", "-"), known):
            raise UsageError(f"{flag} {value} is not allowed: it takes no value, and no- before its name turns it off")
    args = _with_none(args, optional=[flag for flag, optional in known.items() if optional])
    shown = _grouped(base, with_help=bool(HELP.intersection(args)))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(shown, args=args, prog=prog, description=READ_FIRST, config=(tyro.conf.SuppressFixed,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_sentence(complaint.getvalue(), base, args)) from None
    for setting in walk(base):
        if setting.path not in ("env", *MADE_OF.values()):
            value = getattr(getattr(parsed, setting.group), _name(setting))
            base = base if value == setting.value else replace_at(base, setting.path, value)
    return base


def _grouped(base: Config, *, with_help: bool) -> type[Any]:
    """Return a dataclass for tyro: one field per heading of the help, which holds the settings of that group."""
    from tyro.conf import UseAppendAction, arg

    from polyactor.config import GROUPS

    documented = _texts(base) if with_help else {}
    groups: dict[str, list[Any]] = {group.name: [] for group in GROUPS}
    for setting in sorted(walk(base), key=lambda setting: "." in setting.path):  # the sections' settings come last
        if setting.path != "env":
            shown = arg(name=setting.flag, help=documented.get(setting.path, ""), prefix_name=False)
            hint: Any = tuple[str, ...] if setting.path == "env_wrappers" else _readable(setting)
            hint = Annotated[hint, UseAppendAction] if setting.path in SEVERAL else hint
            groups[setting.group].append((_name(setting), Annotated[hint, shown], _default(setting.value)))
    headings = []
    for name, flags in groups.items():
        heading = make_dataclass(name, flags)
        about = inspect.getdoc(type(getattr(base, name))) if with_help and hasattr(base, name) else ""
        headings.append((name, Annotated[heading, arg(help=about)], field(default_factory=heading)))
    return make_dataclass("Flags", headings)


def _readable(setting: Setting) -> Any:
    """Return the type of a setting for tyro: of one that may be code its names, and any other text."""
    code = [each for each in setting.declared.allowed if isinstance(each, NameOrCode)]
    if not code:
        return setting.declared.hint
    names: Any = Literal[tuple(code[0])] | str if code[0] else str
    return names | None if setting.optional else names


def _name(setting: Setting) -> str:
    """Return the name of a setting as an attribute."""
    return setting.path.replace(".", "__")


def _default(value: Any) -> Any:
    """Return a dataclass field with this default, which may be mutable."""
    return field(default_factory=lambda: value)


def _texts(part: Any, prefix: str = "") -> dict[str, str]:
    """Return the docstring of each field of a config by dotted path, read from the source of its classes."""
    found: dict[str, str] = {}
    for cls in reversed(type(part).__mro__):
        with contextlib.suppress(OSError, TypeError):  # a class without a source file
            definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
            for declared, text in itertools.pairwise(ast.iter_child_nodes(definition)):
                match declared, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                        found[prefix + name] = " ".join(words.split())
    for name in [f.name for f in fields(part)]:
        if is_dataclass(getattr(part, name)):
            found |= _texts(getattr(part, name), f"{prefix}{name}.")
    return found


def _is_switch(flag: str, known: Collection[str]) -> bool:
    """Whether a flag takes no value: it is on or off, and has a twin with no- before its name."""
    section, dot, name = flag.removeprefix("--").rpartition(".")
    return flag.startswith("--") and (name.startswith("no-") or f"{section}{dot}no-{name}" in known)


def _one_sentence(box: str, base: Config, args: list[str]) -> str:
    """Return an error message of tyro, which is drawn in a box, as one line that says what is allowed."""
    text = " ".join(re.sub(r"[╭╮╰╯│─]+|Value error", " ", box).split())
    flag = re.search(r"(?:Error parsing |invalid choice .* for argument ')--([\w.-]+)", text)
    for setting in walk(base):
        if flag and setting.flag == flag[1].replace("_", "-"):
            value = one_line(" ".join(_given(args, setting.flag)), most=80)
            return f"--{setting.flag} {value} is not allowed: it must be {_wanted(setting)}"
    stray = re.search(r"Unrecognized options:\s+(\S+)", text)
    if stray:
        return f"'{stray[1]}' is one word too many"
    text = re.split(r"Argument helptext|For full helptext|Got errors", text)[0]
    return " ".join(text.split()).removeprefix("Invalid choice ") or "the flags were not understood"


def _given(args: list[str], flag: str) -> list[str]:
    """Return the values of a flag where it is given last."""
    values: list[str] = []
    mine = False
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("--"):
            mine = name[2:].replace("_", "-") == flag
            values = [value] * bool(equals) if mine else values
        elif mine:
            values.append(arg)
    return values


def _wanted(setting: Setting) -> str:
    """Return in words what the text after a flag must be: one of the names, or of a type."""
    for names in setting.declared.allowed:
        if isinstance(names, OneOf):
            return str(names)
    hint = setting.declared.hint
    several = get_args(hint) if get_origin(hint) is tuple else ()
    return f"{kind(several[0])}, or several" if several else kind(hint) + " or auto" * (setting.flag in AUTO)


def _with_none(args: list[str], optional: Collection[str]) -> list[str]:
    """Return the arguments with ``none`` spelled as tyro wants it where it means no value, and not a lock or core."""
    flag, spelled = "", []
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("--"):
            flag = name[2:].replace("_", "-")
        said = value if equals and arg.startswith("--") else arg
        is_none = said.lower() == "none" and flag in optional
        spelled.append(arg.removesuffix(said) + "None" if is_none else arg)
    return spelled


def _flags(config: Config) -> dict[str, bool]:
    """Return each flag of a config, and whether its value may be none."""
    known: dict[str, bool] = {}
    for setting in walk(config):
        known[setting.flag] = setting.optional
        if isinstance(setting.value, bool):
            section, dot, name = setting.flag.rpartition(".")
            known[f"{section}{dot}no-{name}"] = False
    return known


def take_auto(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the settings given as ``auto``, of those that may be, and the other arguments."""
    wanted = []
    for flag in AUTO:
        value, rest = take(args, flag)
        if value == "auto":
            wanted.append(flag)
            args = rest
    return wanted, args


def take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Return the value of ``--flag value`` or ``--flag=value``, or None without the flag, and the other arguments."""
    values, rest = take_all(args, flag)
    return values[-1] if values else None, rest


def take_all(args: list[str], flag: str) -> tuple[list[str], list[str]]:
    """Return all values of a flag, which may be given several times, and the other arguments."""
    values, rest = [], []
    waiting = iter(args)
    for arg in waiting:
        if arg == f"--{flag}":
            value = next(waiting, None)
            if value is None:
                raise UsageError(f"--{flag} needs a value")
            values.append(value)
        elif arg.startswith(f"--{flag}="):
            values.append(arg.partition("=")[2])
        else:
            rest.append(arg)
    return values, rest


def take_several(args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of flags of `MADE_OF` by setting, which may be given again, and the other arguments."""
    from polyactor.envs.resizing import size_of

    found, rest, setting = dict[str, tuple[str, ...]](), list[str](), None
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("-") and not arg[1:2].isdigit():
            setting = MADE_OF.get(name[2:].replace("_", "-").replace("env.", "env-"))
            values = (value,) * bool(equals)
        else:
            values = (arg,)
        if setting is None:
            rest.append(arg)
        else:
            found[setting] = (*found.get(setting, ()), *values)
    for flag, setting in MADE_OF.items():
        if found.get(setting) == ():
            raise UsageError(f"--{flag} needs a value")
    return found | ({"env_resize": size_of(found["env_resize"])} if "env_resize" in found else {}), rest


def env_timeout(args: list[str]) -> float:
    """Return the value of ``--env-timeout`` in the flags of a run, or its default if it is missing or not allowed."""
    from polyactor.envs import ENV_TIMEOUT

    with contextlib.suppress(ValueError, UsageError):
        value, _ = take([arg.replace("--env_timeout", "--env-timeout") for arg in args], "env-timeout")
        seconds = ENV_TIMEOUT if value is None else float(value)
        return seconds if 0 < seconds < float("inf") else ENV_TIMEOUT
    return ENV_TIMEOUT


def positional(args: list[str], needed: str) -> tuple[str, list[str]]:
    """Return the first argument and the others; where it is a flag or missing, raise `UsageError` with `needed`."""
    if not args or args[0].startswith("-"):
        raise UsageError(needed)
    return args[0], args[1:]


def small_flags(
    args: list[str], kinds: Mapping[str, Callable[[str], Any]], usage: str, *, runs: bool = True, others: str = ""
) -> dict[str, Any]:
    """Return the options of a verb other than train: ``--name value``, or ``--name`` alone for a bool.

    A flag of the type list may be given several times; its option is the list of its values.

    Args:
        args: the arguments after the verb.
        kinds: the type of each flag by name.
        usage: the verb's usage, printed for ``--help`` and in errors.
        runs: whether run directories follow; they are in the option "runs".
        others: what to do for a flag that the verb lacks, said in the error.

    Raises:
        UsageError: a flag does not exist or has a wrong value, or a run directory is missing or one too many.
    """
    options: dict[str, Any] = {}
    if HELP.intersection(args):
        print(f"usage: polyactor {usage}")
        sys.exit(0)
    for name, type_ in kinds.items():
        if type_ is bool:
            options[name], args = f"--{name}" in args, [arg for arg in args if arg != f"--{name}"]
            continue
        if type_ is list:
            values, args = take_all(args, name)
            options |= {name: values} if values else {}
            continue
        value, args = take(args, name)
        if value is not None:
            try:
                options[name] = type_(value)
            except ValueError:
                raise UsageError(f"--{name} {value} is not allowed: it must be {KINDS[type_]}") from None
            zero = name == "seed"  # every other number must be above 0
            if type_ in (int, float) and not (0 < options[name] < float("inf") or (zero and options[name] == 0)):
                least = "at least" if zero else "above"
                raise UsageError(f"--{name} {value} is not allowed: it must be {least} 0")
    for arg in args:
        if arg.startswith("-"):
            near = suggestion(arg, [f"--{name}" for name in kinds])
            raise UsageError(f"there is no flag {arg}{near}{others}: {usage}")
    if args and not runs:
        raise UsageError(f"'{args[0]}' is one word too many: polyactor {usage}")
    if runs and not args:
        raise UsageError(f"a run directory is needed: polyactor {usage}")
    return options | {"runs": args}
