"""The pytest plugin: ``@meanflow_checks(loss)`` makes one test a check; ``--meanflow-loss pkg.mod:loss`` needs no file.

Loaded at every start of pytest where the package is installed: it imports nothing heavy until a check runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meanflow_ref import __version__
from meanflow_ref.kit.config import Settings, read_config
from meanflow_ref.kit.diagnosis import ORACLE, Report
from meanflow_ref.kit.names import LOSS_CHECKS

if TYPE_CHECKING:
    from meanflow_ref.kit.diagnosis import CheckResult

# A pseudo-check: fails unless every check of the oracle ran or says why not, and the loss could be judged.
CONCLUSIVE = "conclusive"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--meanflow-loss`` and ``--meanflow-call``."""
    group = parser.getgroup("meanflow-ref")
    group.addoption(
        "--meanflow-loss", action="append", default=[], metavar="PKG.MOD:LOSS", help="check this MeanFlow loss"
    )
    group.addoption("--meanflow-call", default=None, metavar="TEXT", help='how it calls its network, e.g. "z, t, h"')


def pytest_report_header(config: pytest.Config) -> str:
    """Version, oracle and the number of checks."""
    targets = config.getoption("--meanflow-loss")
    shown = f", {', '.join(targets)}" if targets else ""
    return f"meanflow-ref {__version__} oracle {ORACLE} ({len(LOSS_CHECKS)} checks{shown})"


def pytest_collection(session: pytest.Session) -> None:
    """Nothing: the hook below adds the items."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the items of ``--meanflow-loss``."""
    targets = config.getoption("--meanflow-loss")
    if not targets:
        return
    configured = {settings.target: settings for settings in read_config(Path(config.rootpath))}
    for target in targets:
        settings = configured.get(target) or Settings(target=target, call=config.getoption("--meanflow-call"))
        collector = LossCollector.from_parent(session, name=f"meanflow-ref::{target}", nodeid=f"meanflow-ref::{target}")
        collector.settings = settings
        items.extend(collector.collect())


class LossCollector(pytest.Collector):
    """The checks of one loss."""

    settings: Settings

    def collect(self) -> Iterator[pytest.Item]:
        """One item a check."""
        for name in (*LOSS_CHECKS, CONCLUSIVE):
            item = CheckItem.from_parent(self, name=name)
            item.settings = self.settings
            yield item


class CheckItem(pytest.Item):
    """One check of one loss."""

    settings: Settings

    def runtest(self) -> None:
        """Judge the check by the report, which is made once."""
        judge_check(
            _report(self.settings.target or "", self.settings.call, repr(self.settings)),
            self.name,
            self.user_properties,
        )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The finding, without a traceback of the kit."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Name in the summary."""
        return self.path, None, f"{self.settings.target}: {self.name}"


_SETTINGS: dict[str, Settings] = {}


@cache
def _cached(key: str) -> Report:
    from meanflow_ref.kit.command import run_settings

    return run_settings(_SETTINGS[key])[0]


def _report(target: str, call: str | None, key: str) -> Report:
    _SETTINGS.setdefault(key, Settings(target=target, call=call))
    return _cached(key)


def judge_check(report: Report, name: str, properties: list[tuple[str, object]] | None = None) -> None:
    """Pass, skip or fail a test by one check of a report."""
    if properties is not None:
        properties += [("meanflow_oracle", report.oracle), ("meanflow_verdict", report.verdict)]
    if name == CONCLUSIVE:
        _require_conclusive(report)
        return
    result: CheckResult | None = next((check for check in report.checks if check.name == name), None)
    if result is None:
        pytest.fail(f"the check {name!r} of oracle {report.oracle} was not run", pytrace=False)
    if result.status == "skipped":
        pytest.skip(result.detail or "not measured")
    if result.status == "failed":
        from meanflow_ref.kit.output.formats import explained

        said = [
            explained(found)
            for found in report.diagnoses
            if found.severity == "wrong" and found.observed == result.detail
        ]
        pytest.fail("\n\n".join(said) or result.detail, pytrace=False)


def _require_conclusive(report: Report) -> None:
    """Fail where a loss could not be judged, or where fewer checks were made than the oracle lists."""
    missing = sorted(set(LOSS_CHECKS) - {check.name for check in report.checks})
    extra = [check for check in report.checks if check.name.startswith("xfail ") and check.status == "failed"]
    if missing or extra:
        pytest.fail(f"not run: {missing}; {'; '.join(check.detail for check in extra)}", pytrace=False)
    if report.verdict == "inconclusive":
        from meanflow_ref.kit.output.formats import explained

        pytest.fail("\n\n".join(map(explained, report.diagnoses)), pytrace=False)


def meanflow_checks(loss: Callable[..., Any], call: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """Make a test one test a check of a loss; the test's body, with a parameter ``check``, may be empty.

    Args:
        loss: As for :func:`meanflow_ref.check_loss`.
        call: How the loss calls its network.
        options: Further options of ``check_loss``.

    Returns:
        A decorator for a function ``test(check)``; ``check()`` passes, skips or fails.

    """
    made: list[Report] = []

    def report() -> Report:
        if not made:
            from meanflow_ref.kit.loss.check import check_loss

            made.append(check_loss(loss, call, **options))
        return made[0]

    def one(name: str) -> Callable[[], None]:
        return lambda: judge_check(report(), name)

    names = (*LOSS_CHECKS, CONCLUSIVE)

    def decorate(test: Any) -> Any:
        import functools

        @functools.wraps(test)
        def run(*args: Any, check: Callable[[], None], **kwargs: Any) -> Any:
            check()
            return test(*args, check=check, **kwargs)

        return pytest.mark.parametrize("check", [one(name) for name in names], ids=names)(run)

    return decorate
