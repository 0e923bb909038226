"""What every test has: the skips' accounting, Hypothesis's profiles, the fuzz marker. No topology in here."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.lab.need import lacking

# The kernel programs and probes take the time they take: no deadline, and no complaint about slowness.
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
# Explaining a failure would run a thousand more examples against the kernel.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
settings.register_profile(
    "normal", max_examples=300, deadline=None, print_blob=True, suppress_health_check=_SLOW, phases=_PHASES
)
settings.register_profile("fuzz", settings.get_profile("normal"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """CI names the features it knows its kernel lacks; any other skip, or one too few, fails the run."""
    parser.addoption("--lacking", default=None, metavar="A,B", help="features this kernel is known to lack")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker `make fuzz` selects by."""
    config.addinivalue_line(
        "markers", "fuzz: random redirections and probes; longer with HYPOTHESIS_PROFILE=fuzz"
    )


def _surprise(config: pytest.Config) -> str:
    known = config.getoption("--lacking")
    expected = set(known.split(",")) - {""} if known is not None else set(lacking)
    return ", ".join(sorted(expected ^ set(lacking)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose skips are not the expected ones."""
    if _surprise(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what this kernel lacks, and where that differs from --lacking."""
    for feature, reason in sorted(lacking.items()):
        terminalreporter.write_line(f"lacking: {feature}: {reason}", yellow=True)
    if _surprise(config):
        terminalreporter.write_line(f"not as --lacking says: {_surprise(config)}", red=True)
