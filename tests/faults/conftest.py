"""The full sets run only where they are asked for: `pytest -m crash tests/faults`. A table sums them up."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "crash" in config.getoption("markexpr"):
        return
    full = [item for item in items if item.get_closest_marker("crash")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in ("passed", "xpassed") for report in terminalreporter.stats.get(group, [])]
    properties = [found for report in reports for found in report.user_properties]
    points = [row for name, row in properties if name == "crash points"]
    cuts = [row for name, row in properties if name == "power cuts"]
    if points or cuts:
        terminalreporter.section("what went wrong on purpose, and lost nothing")
    for row in points:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
        tried = f"{row['effects']} effects, {row['tried']} of {row['points']} faults"
        terminalreporter.write_line(f"{row['scenario']}: {tried}: {outcomes}")
    for row in cuts:
        terminalreporter.write_line(f"{row['scenario']}: {row['cuts']} different disks")
    if points:
        tried, all_points = (sum(row[key] for row in points) for key in ("tried", "points"))
        terminalreporter.write_line(f"faults: {tried} of {all_points}")
    if cuts:
        terminalreporter.write_line(f"disks after a power cut: {sum(row['cuts'] for row in cuts)}")
