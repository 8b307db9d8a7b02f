"""No command is silent for long."""

from __future__ import annotations

import threading

import pytest

from polyactor.system import notices


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SILENT_FOR", 0.01)


def heard_by(what: str | None) -> list[str]:
    said, spoken = list[str](), threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        spoken.set()

    with notices.noticing(say), notices.waiting(lambda: what):
        assert spoken.wait(5)
    return said


@pytest.mark.fault("P17")
@pytest.mark.usefixtures("impatient")
def test_what_is_waited_for_is_said() -> None:
    assert heard_by("the environments are made")[0] == "the environments are made"
    assert heard_by(None)[0].startswith("still at work, ")


@pytest.mark.fault("S2")
@pytest.mark.usefixtures("impatient")
def test_what_is_being_done_is_said_as_it_changes_and_for_how_long() -> None:
    said, spoken = list[str](), threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith(doing.words):
            spoken.set()

    doing = notices.Doing("making an environment")
    with notices.noticing(say), notices.waiting(doing):
        assert spoken.wait(5)
        assert said[0] == "making an environment, after 0 s"
        spoken.clear()
        doing.words = "playing"
        assert spoken.wait(5)


def test_who_is_heard_is_not_spoken_for_until_a_signal_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    said, spoken = list[str](), threading.Event()
    with notices.noticing(lambda sentence: (said.append(sentence), spoken.set()), lambda: "stopping"):
        assert not spoken.wait(0.5)
        notices.hasten()
        assert spoken.wait(5)
    assert said == ["stopping"]


@pytest.mark.usefixtures("impatient")
def test_the_quiet_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()
    with notices.noticing(None):
        notices.tell("a word")
        over.wait(0.3)
    assert capsys.readouterr() == ("", "")
