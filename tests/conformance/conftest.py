"""Prints the totals of the random histories at the end of a run, with those of other workers."""

import pytest

from conformance.tables import HISTORIES, PLAIN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = [
        f"{name}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name in {HISTORIES, PLAIN}
    ]
    if found:
        terminalreporter.section("random histories, with the protocol and without it (plain)")
        terminalreporter.write_line("\n".join(sorted(found)))
