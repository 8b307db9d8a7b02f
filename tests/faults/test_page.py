"""The table of faults is complete: each has tests, and the page says what they measured."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.faults import FAULTS, Found, write

ROOT = Path(__file__).parents[2]


def test_every_fault_has_a_test_and_every_test_a_known_fault() -> None:
    marks = re.compile(r"@pytest\.mark\.fault\(([^)]*)\)")
    found = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for mark in marks.findall(path.read_text())
        for name in re.findall(r'"([A-Z]\d+)"', mark)
    }
    assert found == set(FAULTS)


def test_the_page_has_every_fault_and_all_hold() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| [PDFSM]\d", line)]
    assert [(row[0].removeprefix("| "), row[1], row[2]) for row in rows] == [
        (name, fault, promise) for name, (fault, promise) in FAULTS.items()
    ]
    for row in rows:
        assert "holds" in row[3], row
        assert "FAILS" not in row[3], row


def test_what_is_written_of_a_fault(tmp_path: Path) -> None:
    found = Found()
    found.add("test_a[1]", "passed", [("noticed, s", 0.5), ("words", "no number")])
    found.add("test_a[2]", "passed", [("noticed, s", 1.5)])
    assert found.measured() == "noticed, s: 1 [0.5–1.5]; holds, 2 cases"
    found.add("test_b", "skipped", [])
    found.add("test_c", "failed", [])
    assert found.measured().endswith("**FAILS**, 4 cases, 1 skipped")
    write(tmp_path / "page.md", {"P1": found})
    page = (tmp_path / "page.md").read_text()
    assert "`test_a`, `test_b`, `test_c`" in page
    assert page.count("not tested") == len(FAULTS) - 1
