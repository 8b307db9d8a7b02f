"""README.md, CONTRIBUTING.md and docs/: links lead somewhere, and commands are ones that there are.

The command line reads every command with its own parser; a run directory that is taken, or is none, stops it before
anything is trained or played. What README shows is run as it is in the slow suite.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyactor.cli import main as cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("polyactor", "make", "python", "pytest", "pip")
MINE = {"my_file:MyEnv", "my_package:MyEnv-v0", "mymod:Env-v0"}
"""Environments of a reader's own."""
STANDS_FOR = {
    "TOTAL": "9", "N": "9", "S": "9", "ID": "CartPole-v1", "NAME": "pong-fast", "…": "a3c", "RUN…": "RUN",
    "mine.py:Mine": "a2c", **dict.fromkeys(MINE, "CartPole-v1"),
    **dict.fromkeys(("my.py:wrap", "my.py:shaped"), "gymnasium.wrappers:FlattenObservation"),
    "ray": "local",  # a command is read where there is neither a cluster nor the time to begin one
}  # fmt: skip
WRONG, ENVIRONMENT, NO_CHECKPOINT, TAKEN = 2, 3, 4, 5
"""Exit codes."""


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each block of code."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)


def commands(text: str) -> Iterator[str]:
    """Every command of the blocks and of the text; of a block that shows answers, too, those after its prompt."""
    lines = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_fences(text))
    for language, content in fences(text):
        prompted = [line.removeprefix("$ ") for line in content.splitlines() if line.startswith("$ ")]
        lines += [] if language else prompted or content.splitlines()
    for line in lines:
        command = re.split(r"\s+#", line.strip())[0]
        if command.split(" ")[0] in PROGRAMS and " " in command:
            yield command


def all_commands() -> list[str]:
    return sorted(set(itertools.chain.from_iterable(commands(path.read_text()) for path in DOCUMENTS)))


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_fences(path.read_text()), flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = without_fences(path.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        linked = re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", path.read_text())
        waiting += [target for link in linked if (target := (path.parent / link).resolve()) not in seen]
    assert set(DOCUMENTS) <= seen


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_one_that_there_is(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *args = shlex.split(command.replace("[", "").replace("]", "") if program_of(command) else command)
    if args[:2] == ["-m", "pytest"]:
        program, args = "pytest", args[2:]
    if program == "polyactor":
        monkeypatch.chdir(tmp_path)
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        read(args, capsys)
    else:
        {"make": check_make, "python": check_python, "pytest": check_pytest, "pip": check_pip}[program](args)
        for preset_and_flags in trained(args) if program == "python" else ():
            monkeypatch.chdir(tmp_path)
            read(["train", *preset_and_flags], capsys)


def program_of(command: str) -> bool:
    """Whether brackets are around what may be left out (and not around extras)."""
    return command.startswith("polyactor")


def read(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Let the command line read it, as far as to where something would be trained, played or drawn."""
    verb, *rest = [STANDS_FOR.get(arg, arg) for arg in args]
    if verb == "bench":  # reads the flags of train, and two of its own
        verb, rest = "train", dropped(rest, {"--seconds", "--schemes"})
    wanted = {"check": 0, "presets": 0, "train": TAKEN, "plot": WRONG, "compare": WRONG}.get(verb, NO_CHECKPOINT)
    if "--help" in rest or (not rest and verb != "presets"):
        rest, wanted = rest or ["--help"], 0
    elif verb == "train":
        Path("taken").mkdir()
        Path("taken", "config.json").touch()
        rest += ["--out", "taken"] + ["--env", "CartPole-v1"] * (rest[0] == "a3c" and "--env" not in rest)
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, *rest])
    said = capsys.readouterr().err
    not_installed = stopped.value.code == ENVIRONMENT and "pip install" in said
    assert stopped.value.code == wanted or not_installed, said
    assert wanted != WRONG or "json does not exist" in said or "jsonl does not exist" in said  # the run, and no flag


def dropped(args: list[str], flags: set[str]) -> list[str]:
    """Without these flags and their values."""
    return [arg for before, arg in zip(["", *args], args, strict=False) if not {before, arg} & flags]


def check_make(args: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert set(args) <= set(targets)


def check_python(args: list[str]) -> None:
    """A script of the repository and flags that it speaks of; what follows --flags is for train."""
    source = (ROOT / args[0]).read_text()
    own = itertools.takewhile(lambda arg: arg != "--flags", args[1:])
    for flag in own:
        assert not flag.startswith("--") or f'"{flag}"' in source, flag


def trained(args: list[str]) -> Iterator[list[str]]:
    """What a script that trains gives to the command line."""
    if args[0] == "benchmarks/learning.py":
        yield [args[1], *(args[args.index("--flags") + 1 :] if "--flags" in args else [])]


def check_pytest(args: list[str]) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    for before, arg in itertools.pairwise(["", *args]):
        if before == "-m":
            assert arg in [marker.split(":")[0] for marker in declared]
        elif arg.startswith("--"):
            assert f'"{arg}"' in (ROOT / "tests" / "conftest.py").read_text()
        elif not arg.startswith("-"):
            assert (ROOT / arg).exists()


def check_pip(args: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[(.*?)\]", " ".join(args)):
        assert set(named.split(",")) <= set(extras)


def python_blocks() -> list[str]:
    return [code for path in DOCUMENTS for language, code in fences(path.read_text()) if language == "python"]


def test_python_in_the_documents_is_python() -> None:
    assert python_blocks()
    for code in python_blocks():
        compile(code, "a document", "exec")


@pytest.mark.slow
def test_what_the_readme_shows_runs_as_it_is(tmp_path: Path) -> None:
    """Python, and then the commands, one after the other on the run that the first one made."""

    def run(*args: str) -> None:
        found = subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert found.returncode == 0, f"{args}: {found.stderr}"

    for code in python_blocks():
        run("-c", code)
    shutil.rmtree(tmp_path / "runs")
    shown = [code for _, code in fences((ROOT / "README.md").read_text()) if code.startswith("polyactor ")]
    assert shown
    for line in "".join(shown).splitlines():
        made = "".join(map(str, (tmp_path / "runs").glob("a3c-*")))
        run("-m", "polyactor", *shlex.split(line.replace("runs/…", made), comments=True)[1:])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
