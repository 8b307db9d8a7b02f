"""The output of ``polyactor presets``: all methods and presets, or one of them in full."""

from __future__ import annotations

import textwrap
from typing import Any

from polyactor.errors import UsageError, suggestion
from polyactor.settings.presets import METHODS, PRESETS
from polyactor.settings.published import Values


def show(name: str | None = None) -> None:
    """Print each method and preset with its settings, published and measured result; or one of them in full.

    Raises:
        UsageError: there is no such method or preset.
    """
    from polyactor.system.console import Lasting

    console = Lasting()

    def say(text: str, indent: int = 0, style: str = "") -> None:
        """Print text, wrapped to the width of the console."""
        lines = textwrap.wrap(text, console.width - indent, break_on_hyphens=False, break_long_words=False)
        console.print(textwrap.indent("\n".join(lines), " " * indent), style=style, soft_wrap=True)

    if name is not None:
        console.print("\n".join(_in_full(name)), soft_wrap=True)
        return
    say("methods: polyactor train NAME --env ID", style="bold")
    for each, method in METHODS.items():
        say(f"{each}: {method.about} ({method.algorithm} under {method.scheme})", 2)
    source = None
    for each, preset in PRESETS.items():
        if preset.source != source:
            source = preset.source
            console.print()
            say(f"presets from {source}" if source else "presets: polyactor train NAME", style="bold")
        say(f"{each}: {preset.about}", 2, "cyan")
        say(f"{preset.env}, {preset.method}; {_settings(preset.values)}".rstrip("; "), 6, "dim")
        if preset.claim:
            say(f"published: {preset.claim}", 6)
        say(f"measured:  {preset.measured or 'not yet'}", 6)
    console.print()
    say("polyactor presets NAME shows one in full; docs/presets.md says where a published row had to differ.")


def _in_full(name: str) -> list[str]:
    """Return the lines that describe a method or preset with all its settings."""
    if name in PRESETS:
        preset = PRESETS[name]
        about, settings = preset.about, {"settings": preset.values}
        says = {"environment": preset.env, "method": preset.method, "source": preset.source}
        says |= {"published": preset.claim, "measured": preset.measured}
    elif name in METHODS:
        method = METHODS[name]
        about, settings = method.about, {f"settings, {kind}": values for kind, values in method.values.items()}
        says = {"algorithm": method.algorithm, "scheme": method.scheme}
    else:
        raise UsageError(f"there is no preset {name}{suggestion(name, [*METHODS, *PRESETS])}")
    lines = [f"{name}: {about}", *(f"  {key}: {value}" for key, value in says.items() if value)]
    for heading, values in settings.items():
        lines += [heading, *(f"  --{_setting(path, value, ' ')}" for path, value in values.items())]
    return lines


def _settings(values: Values) -> str:
    """Return settings in one line, section by section; those of no section come first."""
    sections: dict[str, list[str]] = {"": []}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        sections.setdefault(section, []).append(_setting(name, value, "="))
    return "; ".join(
        f"{section}: {', '.join(names)}".removeprefix(": ") for section, names in sections.items() if names
    )


def _setting(path: str, value: Any, joint: str) -> str:
    """Return a setting as its flag is spelled, with `joint` before the value."""
    section, dot, name = path.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"{section}{dot}{'' if value else 'no-'}{name}"
    return f"{section}{dot}{name}{joint}{_text(value)}"


def _text(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:_}" if isinstance(value, int) else str(value).replace("None", "none")
