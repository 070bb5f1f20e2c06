"""Options and profiles of the whole suite; nothing in it is imported by tests."""

from __future__ import annotations

import os

import hypothesis
import pytest

# Open MPI sleeps a second in each MPI_Init when it closes this component, which it then does not use.
os.environ.setdefault("OMPI_MCA_btl", "^ofi")

# Deterministic everywhere: a failure on one machine is the same failure on another.
hypothesis.settings.register_profile(
    "suite", deadline=None, max_examples=40, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile("slow", hypothesis.settings.get_profile("suite"), max_examples=250)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=12_500, database=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow, and more examples")


def pytest_configure(config: pytest.Config) -> None:
    suite = "slow" if config.getoption("--slow") else "suite"
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", suite))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have recorded with `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for title, text in report.user_properties:
            terminalreporter.write_line(f"{title}\n{text}")
