"""Settings: where they come from, and what is said of those that are wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcbox_agent.settings import (
    BUILT_IN,
    COMMAND_LINE,
    FILE_VARIABLE,
    Limits,
    Settings,
    SettingsError,
    attributes,
    load,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = [key for key, _ in attributes()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a settings file and returns its path."""

    def write_file(text: str) -> str:
        path = tmp_path / "agent.toml"
        path.write_text(text, "utf-8")
        return str(path)

    return write_file


def complaint(config: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config)
    return str(caught.value)


def test_without_any_file_all_settings_are_the_built_in_ones(tmp_path: Path) -> None:
    loaded = load(environ={}, default_file=tmp_path / "missing.toml")
    assert loaded.settings == Settings()
    assert loaded.path is None
    assert loaded.origins == dict.fromkeys(KEYS, BUILT_IN)


def test_the_built_in_ones_are_those_that_the_protocol_and_its_behaviour_name() -> None:
    settings = Settings()
    assert settings.listen == ("vsock:1024",)
    assert settings.limits == Limits(
        max_frame=16 * 2**20, max_connections=1024, frame_timeout=30.0, max_concurrent_requests=64
    )
    assert settings.vsock.allowed_cids == (2,)
    assert settings.clock.follow_host
    assert settings.power.off == "auto"
    assert settings.disk.trim_interval == 3600.0
    assert settings.shutdown_grace == 5.0


def test_a_file_replaces_what_it_names_and_leaves_the_rest(write: Callable[[str], str]) -> None:
    path = write('[limits]\nmax_frame = 65536\n[power]\noff = "disabled"\n')
    loaded = load(path)
    assert loaded.settings.limits == Limits(max_frame=65536)
    assert loaded.settings.power.off == "disabled"
    assert loaded.settings.clock == Settings().clock
    assert {key for key, origin in loaded.origins.items() if origin == path} == {"limits.max_frame", "power.off"}
    assert str(loaded.path) == path


def test_the_command_line_wins_over_the_environment_and_that_over_the_default_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("named", "environment", "default")]
    for number, file in enumerate(files):
        file.write_text(f"shutdown_grace = {number}")
    named, environment, default = files
    environ = {FILE_VARIABLE: str(environment)}
    assert load(str(named), environ=environ, default_file=default).settings.shutdown_grace == 0
    assert load(environ=environ, default_file=default).settings.shutdown_grace == 1
    assert load(environ={FILE_VARIABLE: ""}, default_file=default).settings.shutdown_grace == 2


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert complaint(missing) == f"{missing}: can't be read: No such file or directory (named by --config)"
    with pytest.raises(SettingsError, match=f"No such file or directory .named by {FILE_VARIABLE}"):
        load(environ={FILE_VARIABLE: missing})


def test_a_default_file_that_is_there_but_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't be read: Is a directory$"):
        load(environ={}, default_file=tmp_path)


def test_addresses_of_the_command_line_stand_in_for_those_of_the_file(write: Callable[[str], str]) -> None:
    path = write('listen = ["vsock:7"]')
    loaded = load(path, ["unix:/run/a.sock", "vsock:3:9", "unix:/run/a.sock"])
    assert loaded.settings.listen == ("unix:/run/a.sock", "vsock:3:9")
    assert loaded.origins["listen"] == COMMAND_LINE
    assert load(path).settings.listen == ("vsock:7",)


def test_a_bad_address_on_the_command_line_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^--listen: 'tcp:80' is not an address to listen on: use vsock:PORT"):
        load(None, ["tcp:80"], environ={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('limits.max_frame = "5"', 'limits.max_frame: expected a whole number of bytes from 4 to 4294967295, got "5"'),
        ("limits.max_frame = 1.0", "limits.max_frame: expected a whole number of bytes from 4 to 4294967295, got 1.0"),
        ("limits.max_connections = true", "limits.max_connections: expected a whole number, at least 1, got true"),
        ("limits.max_connections = 0", "limits.max_connections: expected a whole number, at least 1, got 0"),
        ("limits.frame_timeout = 0", "limits.frame_timeout: expected a number of seconds above 0, got 0"),
        ("limits.frame_timeout = nan", "limits.frame_timeout: expected a number of seconds above 0, got nan"),
        ("shutdown_grace = inf", "shutdown_grace: expected a number of seconds, at least 0, got inf"),
        ("shutdown_grace = true", "shutdown_grace: expected a number of seconds, at least 0, got true"),
        ("clock.follow_host = 1", "clock.follow_host: expected true or false, got 1"),
        ('power.off = "of"', 'power.off: expected one of "auto", "disabled", got "of"'),
        ("power.off = ['auto']", 'power.off: expected one of "auto", "disabled", got ["auto"]'),
        ('log.level = "INFO"', 'log.level: expected one of "debug", "info", "warning", "error", got "INFO"'),
        ('sandbox.data_dir = "here"', 'sandbox.data_dir: expected an absolute path, got "here"'),
        ('disk.trim_mounts = "/a"', 'disk.trim_mounts: expected a list of absolute paths, got "/a"'),
        ('disk.trim_mounts = "/"', 'disk.trim_mounts: expected a list of absolute paths, got "/"'),
        ("disk.trim_mounts = {'/a' = 1}", "disk.trim_mounts: expected a list of absolute paths, got a table"),
        ("disk.trim_mounts = ['/a', 1]", 'disk.trim_mounts: expected a list of absolute paths, got ["/a", 1]'),
        (
            "vsock.allowed_cids = [2, '3']",
            "vsock.allowed_cids: expected a list of CIDs, whole numbers below 4294967296",
        ),
        ("vsock.allowed_cids = [-1]", "vsock.allowed_cids: expected a list of CIDs, whole numbers below 4294967296"),
        (
            "listen = ['tcp:1']",
            "listen: expected a list of one or more different addresses, each vsock:PORT, vsock:CID:PORT or",
        ),
        ("listen = ['vsock:1', 'vsock:1']", "listen: expected a list of one or more different addresses"),
        ("limits = 5", "limits: expected a table, got 5"),
        ("log = [1]", "log: expected a table, got [1]"),
        (f"limits.max_connections = 0x{'f' * 6000}", "got a number of more than 64 bits"),
        (f"shutdown_grace = 0x{'f' * 6000}", "got a number of more than 64 bits"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_the_file_the_key_and_what_was_expected(
    write: Callable[[str], str], text: str, expected: str
) -> None:
    path = write(text)
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits.max_fram = 1", "limits.max_fram: unknown key; did you mean limits.max_frame?"),
        ("max_frame = 1", "max_frame: unknown key; did you mean limits.max_frame?"),
        ("power.follow_host = true", "power.follow_host: unknown key; did you mean clock.follow_host?"),
        ("[limit]\nmax_frame = 1", "limit: unknown key; did you mean limits?"),
        ("zebra = 1", "zebra: unknown key"),
        ('"a\\nb\\u001b[2J" = 1', r'"a\nb\u001b[2J": unknown key'),
    ],
)
def test_an_unknown_key_is_an_error_that_suggests_the_one_that_was_meant(
    write: Callable[[str], str], text: str, expected: str
) -> None:
    path = write(text)
    assert complaint(path) == f"{path}: {expected}"


def test_everything_that_is_wrong_with_a_file_is_said_at_once(write: Callable[[str], str]) -> None:
    path = write('zebra = 1\nlisten = 5\n[limits]\nmax_frame = "1"\nmax_connections = 0\n[clock]\nfollow = true\n')
    first, *lines = complaint(path).split("\n")
    assert first == f"{path}:"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "zebra",
        "listen",
        "limits.max_frame",
        "limits.max_connections",
        "clock.follow",
    ]


@pytest.mark.parametrize(
    "content",
    [b"limits = ", b"\xff\xfe", b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"[limits]\n[limits]\n"],
    ids=["half a line", "not UTF-8", "deeply nested", "a huge number", "a section twice"],
)
def test_a_file_that_is_no_toml_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    assert complaint(str(path)).startswith(f"{path}: is not ")


def test_whole_numbers_are_fine_where_seconds_are_expected(write: Callable[[str], str]) -> None:
    grace = load(write("shutdown_grace = 7")).settings.shutdown_grace
    assert (grace, type(grace)) == (7.0, float)


def test_settings_that_are_built_in_python_hold_to_the_same_ranges() -> None:
    with pytest.raises(ValueError, match="max_frame: expected a whole number of bytes"):
        Limits(max_frame=3)


SCALARS = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.datetimes().map(lambda moment: moment.isoformat()),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
SECTIONS = [key.partition(".")[0] for key in KEYS]
NAMES = st.one_of(st.sampled_from([part for key in KEYS for part in key.split(".")]), st.text(max_size=8))
JUNK = st.dictionaries(NAMES, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=4)), max_size=5)


def as_toml(value: object) -> str:
    """A value as TOML: strings are JSON's, but for their surrogates, and so are tables when they are inline."""
    match value:
        case dict():
            pairs = (f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case str():
            return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
        case bool():
            return str(value).lower()
        case _:
            return repr(value)


def problems(config: Path) -> list[str] | None:
    """The lines of the error that a file gives, if it gives one. Any other exception goes through."""
    try:
        load(str(config))
    except SettingsError as error:
        return str(error).split("\n")
    return None


@given(JUNK)
def test_any_junk_that_is_toml_gives_settings_or_a_settings_error(
    tmp_path_factory: pytest.TempPathFactory, junk: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.toml"
    path.write_text("".join(f"{as_toml(key)} = {as_toml(value)}\n" for key, value in junk.items()), "utf-8")
    lines = problems(path)
    assert lines is None or lines[0].startswith(f"{path}:")
    assert all(line.isprintable() for line in lines or ())


@given(st.binary(max_size=200))
def test_any_bytes_give_settings_or_a_settings_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.toml"
    path.write_bytes(junk)
    lines = problems(path)
    assert lines is None or lines[0].startswith(f"{path}:")


def test_long_values_are_shown_in_part() -> None:
    assert len(show("x" * 10_000)) < 200
    assert len(show(["/a"] * 10_000)) < 200


def test_an_agent_without_a_file_imports_nothing_that_it_takes_to_read_one() -> None:
    code = (
        "import sys, pathlib, arcbox_agent.settings, arcbox_agent.addresses\n"
        "arcbox_agent.settings.load(environ={}, default_file=pathlib.Path('/nonexistent'))\n"
        "print([name for name in ('cattrs', 'tomllib', 'trio') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    completed = subprocess.run(  # noqa: S603  our own interpreter
        command, capture_output=True, text=True, check=True, timeout=30
    )
    assert completed.stdout == "[]\n"
