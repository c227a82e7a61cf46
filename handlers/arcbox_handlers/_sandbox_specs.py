"""From requests about sandboxes to what the guest calls them, with what makes no sense refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_guest.errors import InvalidArgumentError, NotSupportedError
from arcbox_guest.sandboxes.model import (
    MOST_MEMORY_MIB,
    MOST_VCPUS,
    BindMount,
    ExecSpec,
    NetworkMode,
    ResourceLimits,
    Spec,
    TerminalSize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from arcbox_protocol import arcbox_sandbox_v1, arcbox_v1, sandbox_v1

_LARGEST_TERMINAL = 0xFFFF
"""Columns or rows: TIOCSWINSZ has 16 bits for them."""


def spec(request: sandbox_v1.CreateSandboxRequest) -> Spec:
    """What a CreateSandboxRequest asks for. Its id is the manager's to judge.

    Raises:
        InvalidArgumentError: it asks for what nothing could be.
        NotSupportedError: it asks for what this agent has not got.
    """
    _check_supported(request)
    _check_text("rootfs", request.rootfs)
    if request.rootfs:
        _check_absolute("rootfs", request.rootfs)
    return Spec(
        id=request.id,
        rootfs=request.rootfs,
        image=_check_text("image", request.image),
        labels=dict(request.labels),
        limits=_limits(request.limits),
        cmd=_argv(request.cmd),
        env=_env(request.env),
        working_dir=_working_dir(request.working_dir),
        user=_check_text("user", request.user),
        mounts=tuple(map(_mount, request.mounts)),
        network=_network(request.network.mode),
        ttl=float(request.ttl_seconds),
    )


def command(
    request: sandbox_v1.RunRequest | sandbox_v1.ExecRequest | arcbox_sandbox_v1.StartExecutionRequest,
    terminal: TerminalSize,
) -> ExecSpec:
    """The process that a request asks for; `terminal` is the size of its terminal if it wants one.

    Raises:
        InvalidArgumentError: no process could be that.
    """
    if not request.cmd:
        raise InvalidArgumentError("cmd is empty: it needs at least the name of a program")
    return ExecSpec(
        argv=_argv(request.cmd),
        env=_env(request.env),
        working_dir=_working_dir(request.working_dir),
        user=_check_text("user", request.user),
        terminal=terminal if request.tty else None,
        timeout=float(request.timeout_seconds),
    )


def terminal_size(
    size: sandbox_v1.TerminalSize | arcbox_v1.TerminalSize | arcbox_sandbox_v1.TerminalSize,
) -> TerminalSize:
    """A terminal's size; 0 columns or rows stand for the usual 80 and 24.

    Raises:
        InvalidArgumentError: no terminal is as large as that.
    """
    if max(size.width, size.height) > _LARGEST_TERMINAL:
        raise InvalidArgumentError(f"a terminal has at most {_LARGEST_TERMINAL} columns and rows")
    usual = TerminalSize()
    return TerminalSize(size.width or usual.columns, size.height or usual.rows)


def _check_supported(request: sandbox_v1.CreateSandboxRequest) -> None:
    for name in ("kernel", "boot_args"):
        if getattr(request, name):
            raise NotSupportedError(f"{name} is not supported: sandboxes share the kernel of the guest")
    if request.ssh_public_key:
        raise NotSupportedError("ssh_public_key is not supported: use SandboxExecRequest to get into a sandbox")


def _network(mode: str) -> NetworkMode:
    try:
        return NetworkMode(mode)
    except ValueError:
        raise InvalidArgumentError(f"{mode[:80]!r} is no network mode: there are tap and none") from None


def _limits(limits: sandbox_v1.ResourceLimits) -> ResourceLimits:
    for name, most in (("vcpus", MOST_VCPUS), ("memory_mib", MOST_MEMORY_MIB)):
        if getattr(limits, name) > most:
            raise InvalidArgumentError(f"limits.{name} is {getattr(limits, name)}: it can be {most} at most")
    return ResourceLimits(vcpus=limits.vcpus, memory_mib=limits.memory_mib)


def _check_text(name: str, text: str) -> str:
    if "\0" in text:
        raise InvalidArgumentError(f"{name} has a NUL character in it")
    return text


def _check_absolute(name: str, path: str) -> str:
    if not _check_text(name, path).startswith("/"):
        raise InvalidArgumentError(f"{name} is not an absolute path: {path[:4096]!r}")
    return path


def _working_dir(path: str) -> str:
    return _check_absolute("working_dir", path) if path else ""


def _argv(arguments: Iterable[str]) -> tuple[str, ...]:
    argv = tuple(_check_text("cmd", argument) for argument in arguments)
    if argv and not argv[0]:
        raise InvalidArgumentError("cmd names no program: its first argument is empty")
    return argv


def _env(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name:
            raise InvalidArgumentError(f"{name[:80]!r} is no name of an environment variable")
        _check_text("env", name + value)
    return dict(env)


def _mount(mount: sandbox_v1.Mount) -> BindMount:
    return BindMount(
        source=_check_absolute("the source of a mount", mount.source),
        target=_check_absolute("the target of a mount", mount.target),
        readonly=mount.readonly,
    )
