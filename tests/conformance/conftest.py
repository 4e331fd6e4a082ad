"""Shows in each run which lives were lived, also where they ran on another worker."""

import pytest

from conformance.tables import LIVES, PLAIN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = [
        f"{name}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name in {LIVES, PLAIN}
    ]
    if found:
        terminalreporter.section("random lives, with the protocol and without it (plain)")
        terminalreporter.write_line("\n".join(sorted(found)))
