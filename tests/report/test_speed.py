"""The benchmark accounts for a worker's time and says what to change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.envs import EnvSpec
from polyactor.report.speed import ADVICE, Trained, advice, bench, training_rate
from polyactor.schemes import SCHEMES
from polyactor.settings.presets import base_config
from polyactor.shared.timing import Part

pytestmark = pytest.mark.alone


def test_every_scheme_accounts_for_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Trained] = []

    def noted(config: Config, spec: EnvSpec, seconds: float) -> Trained:
        measured.append(training_rate(config, spec, seconds))
        return measured[-1]

    monkeypatch.setattr("polyactor.report.speed.training_rate", noted)
    config = replace(base_config("a2c", env="CartPole-v1"), envs=4)
    configs = [
        replace(config, scheme=scheme(), workers=1 if scheme.single else 2, preset="") for scheme in SCHEMES.values()
    ]
    ratios = bench(configs, seconds=0.3, rounds=1)
    assert [len(own) for own in ratios] == [1] * len(SCHEMES)
    assert all(0 < ratio < 1 for (ratio,) in ratios)
    head, *lines = capsys.readouterr().out.split("Microseconds")[1].splitlines()[1:]
    assert head.split() == [part.value for part in Part]
    for name, table, hint, one in zip(SCHEMES, lines[::2], lines[1::2], measured, strict=True):
        assert table.split()[0] == name
        numbers = [float(number) for number in table.replace(",", "").split()[-len(Part) :]]
        assert numbers == pytest.approx([one.microseconds[part] for part in Part], abs=0.51)
        assert all(one.microseconds[part] > 0 for part in Part if part is not Part.WAIT)
        assert hint.strip()


def test_advice_is_about_the_largest_part() -> None:
    even = dict.fromkeys(Part, 10.0)
    assert "waits for nobody" in advice(even)
    assert "fewer letters" in advice(even, elsewhere=True)
    for part, hint in ADVICE.items():
        if part is not Part.WAIT:
            assert hint in advice({**even, Part.WAIT: 0.0, part: 20.0})
    assert "environments' own" in advice({**even, Part.EMULATE: 100.0})


@pytest.mark.parametrize("names", ["bogus", "sync,", ""])
def test_a_scheme_that_does_not_exist_is_refused(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", f"--schemes={names}"])
    assert stop.value.code == 2
    assert f"--schemes {names} is not allowed: each must be one of sync," in capsys.readouterr().err
