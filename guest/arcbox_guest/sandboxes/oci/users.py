"""Who a process runs as, by the sandbox's own passwd and group files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.oci.root_files import read

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST: Final = 2**32 - 2
"""Of uids and gids; one more stands for none, in chown(2) and the like."""


@frozen
class Identity:
    """A user, by numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def find(root: int, user: str) -> Identity:
    """The identity of a user.

    Args:
        root: the open root directory of the sandbox.
        user: name or uid, then perhaps a colon with the group's name or gid; empty is root.

    Raises:
        InvalidArgumentError: there is no such user, or group.
    """
    name, colon, group = (user or "0").partition(":")
    if not name or (colon and not group):
        raise InvalidArgumentError(f"{user!r} is no user: name or uid, then perhaps :group or :gid")
    uid, gid, login, home = _account(root, name)
    if group:
        return Identity(uid, _gid(root, group), (), home)
    return Identity(uid, gid, tuple(_supplementary(root, login)) if login else (), home)


def _account(root: int, name: str) -> tuple[int, int, str, str]:
    """uid, gid, login name and home directory. A uid needs no entry; a name does."""
    number = _number(name)
    for fields in _entries(root, "/etc/passwd", 6):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (fields[0] == name or uid == number):
            return uid, gid, fields[0], fields[5] or "/"
    if number is None:
        raise InvalidArgumentError(f"there is no user {name!r} in the sandbox's /etc/passwd")
    return number, 0, "", "/"


def _gid(root: int, name: str) -> int:
    number = _number(name)
    if number is not None:
        return number
    for fields in _entries(root, "/etc/group", 3):
        gid = _number(fields[2])
        if fields[0] == name and gid is not None:
            return gid
    raise InvalidArgumentError(f"there is no group {name!r} in the sandbox's /etc/group")


def _supplementary(root: int, login: str) -> Iterator[int]:
    for fields in _entries(root, "/etc/group", 4):
        gid = _number(fields[2])
        if gid is not None and login in fields[3].split(","):
            yield gid


def _entries(root: int, path: str, length: int) -> Iterator[list[str]]:
    """The lines of a passwd-like file that have enough fields; none if there is no such file."""
    for line in read(root, path).split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= length:
            yield fields


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    return number if (number := int(text)) <= _LARGEST else None
