"""What was counted is said at the end of the run: a count of none would prove nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

Count = Callable[[str, str], None]
_KEY = pytest.StashKey[dict[str, Counter[str]]]()


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> Count:
    """``count(what, verdict)``: one more of them in the summary."""
    tallies = request.config.stash.setdefault(_KEY, {})

    def add(what: str, verdict: str) -> None:
        tallies.setdefault(what, Counter())[verdict] += 1

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for what, tally in sorted(config.stash.get(_KEY, {}).items()):
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in tally.most_common())
        terminalreporter.write_line(f"{what}: {tally.total()} = {verdicts}")
