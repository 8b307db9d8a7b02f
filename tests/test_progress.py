"""What a person sees of a run while it goes on."""

from __future__ import annotations

import pytest

from polyactor.training.progress import Progress


@pytest.mark.parametrize("words", ["KeyError: [/obs/state]", "list[int] in runs/[exp]/1", "[bold]not bold[/bold]"])
def test_words_of_others_are_shown_as_they_are(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("a run", 100, quiet=False) as progress:
        progress.say(words)
    assert capsys.readouterr().out == words + "\n"
