"""The sentences of errors are said whatever they are about."""

from __future__ import annotations

import pytest

from polyactor.errors import UsageError, one_line, shown
from polyactor.fields import expect


class Mute:
    def __str__(self) -> str:
        raise TypeError("not a text")

    __repr__ = __str__


def test_an_object_that_cannot_be_shown_is_named_by_its_class() -> None:
    assert shown(Mute()) == shown(Mute(), repr) == one_line(Mute()) == "a Mute that cannot be shown (TypeError)"
    with pytest.raises(UsageError, match="steps a Mute that cannot be shown"):
        expect("steps", Mute(), int)
