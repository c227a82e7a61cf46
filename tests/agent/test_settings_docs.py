"""docs/settings.md says what the settings are."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from arcbox_agent._settings_docs import PAGE, page, stale
from arcbox_agent.settings import Settings, attributes, load

if TYPE_CHECKING:
    from pathlib import Path


def test_the_page_is_fresh() -> None:
    assert stale(PAGE) == ""


def test_every_setting_has_a_row_with_its_meaning() -> None:
    rows = page().splitlines()
    for key, attribute in attributes():
        name = key.rpartition(".")[2]
        found = [row for row in rows if row.startswith(f"| `{name}` |")]
        assert any(row.endswith(f"| {attribute.metadata['meaning']} |") for row in found)


def test_a_page_that_is_not_fresh_is_shown_as_a_diff(tmp_path: Path) -> None:
    path = tmp_path / "settings.md"
    path.write_text(page().replace("| `1024` |", "| `7` |"))
    difference = stale(path)
    assert any(line.startswith("-| `max_connections`") for line in difference.splitlines())
    assert any(line.startswith("+| `max_connections`") for line in difference.splitlines())


def test_a_page_that_is_not_there_is_stale(tmp_path: Path) -> None:
    assert "+# Settings" in stale(tmp_path / "settings.md").splitlines()


def test_the_example_of_the_page_is_a_file_that_loads(tmp_path: Path) -> None:
    example = page().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "agent.toml"
    path.write_text(example)
    loaded = load(str(path))
    assert loaded.settings != Settings()
    assert loaded.settings.limits.max_connections == tomllib.loads(example)["limits"]["max_connections"]


def test_the_development_settings_leave_the_clock_and_the_power_alone() -> None:
    loaded = load(str(PAGE.parent.parent / "deploy" / "development.toml"))
    assert not loaded.settings.clock.follow_host
    assert loaded.settings.power.off == "disabled"
