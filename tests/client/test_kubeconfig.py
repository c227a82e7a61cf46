"""Merging the guest's cluster into a kubeconfig of this machine."""

from __future__ import annotations

import textwrap
from difflib import ndiff
from typing import TYPE_CHECKING

import pytest
import yaml

from arcbox_client.kubeconfig import KubeconfigError, guest_entries, merge_file, merged

if TYPE_CHECKING:
    from pathlib import Path

K3S = textwrap.dedent("""\
    apiVersion: v1
    clusters:
    - cluster:
        certificate-authority-data: Q0E=
        server: https://127.0.0.1:6443
      name: default
    contexts:
    - context:
        cluster: default
        user: default
      name: default
    current-context: default
    kind: Config
    preferences: {}
    users:
    - name: default
      user:
        client-certificate-data: Q0VSVA==
    """)
"""As k3s writes it."""

ENTRIES = guest_entries(K3S, "arcbox", "https://127.0.0.1:16443")

OURS = textwrap.dedent("""\
    # written by hand
    kind: Config
    apiVersion: v1
    clusters:
      # production: careful
      - name: "prod"
        cluster: {server: https://prod.example, insecure-skip-tls-verify: false}   # flow, within

      - cluster:
          server: https://test.example
        name: test
    current-context: prod
    contexts:
    - {name: prod, context: {cluster: prod, user: me}}
    users:
    - name: me
      user:
        exec:
          command: "get-token"
          args: ["-x", '-y']
    # the end""")


def test_the_guests_entries_get_a_name_and_an_address_of_this_machine() -> None:
    assert ENTRIES["clusters"] == {
        "name": "arcbox",
        "cluster": {"certificate-authority-data": "Q0E=", "server": "https://127.0.0.1:16443"},
    }
    assert ENTRIES["contexts"] == {"name": "arcbox", "context": {"cluster": "arcbox", "user": "arcbox"}}


def test_nothing_that_was_there_changes_by_a_byte() -> None:
    after = merged(OURS, ENTRIES, use=False)
    assert not [line for line in ndiff(OURS.splitlines(), after.splitlines()) if line.startswith("- ")]
    config = yaml.safe_load(after)
    assert [cluster["name"] for cluster in config["clusters"]] == ["prod", "test", "arcbox"]
    assert config["current-context"] == "prod"


def test_an_entry_of_ours_is_replaced_where_it_stands_and_a_second_merge_changes_nothing() -> None:
    once = merged(OURS, guest_entries(K3S, "test", "https://127.0.0.1:1"), use=False)
    clusters = {cluster["name"]: cluster["cluster"] for cluster in yaml.safe_load(once)["clusters"]}
    assert list(clusters) == ["prod", "test"]
    assert clusters["test"]["server"] == "https://127.0.0.1:1"
    assert "# production: careful" in once
    again = merged(merged(once, ENTRIES, use=True), ENTRIES, use=True)
    assert again == merged(once, ENTRIES, use=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: null\nusers:\ncurrent-context: ''\n",
        "kind: Config\nusers: []  # none yet",
        K3S,
        OURS,
    ],
)
def test_the_context_is_the_current_one_only_when_asked_for(text: str) -> None:
    before = (yaml.safe_load(text) or {}).get("current-context")
    assert yaml.safe_load(merged(text, ENTRIES, use=False)).get("current-context") == before
    after = yaml.safe_load(merged(text, ENTRIES, use=True))
    assert after["current-context"] == "arcbox"
    assert "arcbox" in [user["name"] for user in after["users"]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"clusters": [{"name": "a", "cluster": {}}]}', "block style"),
        ("clusters: [{name: a, cluster: {}}]\n", "style of JSON"),
        ("clusters: text\n", "no list"),
        ("- a list\n", "mapping"),
        ("a: [\n", "no YAML"),
    ],
)
def test_what_can_not_be_edited_is_refused_and_stays_as_it_is(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(KubeconfigError, match=why):
        merge_file(tmp_path / "config", ENTRIES, use=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config", text)]


def test_a_file_is_replaced_whole_with_what_it_was_beside_it(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.write_text(OURS)
    real.chmod(0o640)
    link = tmp_path / "config"
    link.symlink_to(real)
    backup = merge_file(link, ENTRIES, use=False)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert yaml.safe_load(real.read_text())["clusters"][-1] == ENTRIES["clusters"]
    assert backup is not None
    assert backup.read_text() == OURS
    assert {path.name for path in tmp_path.iterdir()} == {"config", "elsewhere", backup.name}


def test_a_file_that_is_not_there_is_made_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / ".kube" / "config"
    assert merge_file(path, ENTRIES, use=False) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert "current-context" not in yaml.safe_load(path.read_text())


def test_a_file_that_somebody_else_writes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.lock").touch()
    with pytest.raises(KubeconfigError, match="lock exists"):
        merge_file(tmp_path / "config", ENTRIES, use=False)
    assert (tmp_path / "config.lock").exists()


@pytest.mark.parametrize("text", ["", "kind: Config\n", K3S.replace("user: default", "user: nobody"), "a: ["])
def test_a_guests_kubeconfig_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(KubeconfigError):
        guest_entries(text, "arcbox", "https://127.0.0.1:16443")
