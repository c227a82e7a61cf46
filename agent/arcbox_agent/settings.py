"""What can be set, and where settings come from: a TOML file, the command line, built-in defaults.

Each setting is described once, here: `docs/settings.md`, `arcbox-agent config` and error texts all come from it.
"""

from __future__ import annotations

import json
import math
import os
import re
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from attrs import Attribute, Factory, evolve, field, fields, frozen, has, resolve_types

from arcbox_agent.addresses import parse_address, parse_target
from arcbox_guest.sandboxes.model import MOST_MEMORY_MIB, MOST_PROCESSES, MOST_VCPUS
from arcbox_protocol import DEFAULT_MAX_FRAME, MAX_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DEFAULT_FILE: Final = Path("/etc/arcbox/agent.toml")
"""Read when no other file is named, and only if it is there."""

FILE_VARIABLE: Final = "ARCBOX_AGENT_CONFIG"
"""The environment variable that names a file in its place."""

BUILT_IN: Final = "default"
"""The origin of a setting that nobody set."""

COMMAND_LINE: Final = "--listen"
"""The origin of the addresses that the command line gave."""

_T = TypeVar("_T")


class SettingsError(Exception):
    """The settings can't be used. The text names every key that is wrong, the file, and what was expected."""


@frozen
class Rule:
    """An attrs validator that can say what it expects."""

    holds: Callable[[Any], bool]
    expected: str
    """As in "expected a whole number": of the whole value, its type included."""

    def __call__(self, _instance: object, attribute: Attribute[Any], value: object) -> None:
        if not self.holds(value):
            raise ValueError(f"{attribute.name}: expected {self.expected}, got {show(value)}")


def setting(default: _T, meaning: str, rule: Rule | None = None) -> _T:
    """An attribute that can be set; `meaning` says what it does, with its unit."""
    return field(default=default, validator=rule, metadata={"meaning": meaning})


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def _is_subnet(text: str) -> bool:
    try:
        return IPv4Network(text).prefixlen in range(8, 30)
    except ValueError:
        return False


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_target(text: str) -> bool:
    try:
        parse_target(text)
    except ValueError:
        return False
    return True


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and "\0" not in path


def _up_to(most: int) -> Rule:
    return Rule(lambda number: 1 <= number <= most, f"a whole number from 1 to {most}")


_COUNT = Rule(lambda number: number >= 1, "a whole number, at least 1")
_COUNT_OR_NONE = Rule(lambda number: number >= 0, "a whole number, at least 0")
_SECONDS = Rule(lambda number: 0 <= number < math.inf, "a number of seconds, at least 0")
_SECONDS_ABOVE_0 = Rule(lambda number: 0 < number < math.inf, "a number of seconds above 0")
_PATH = Rule(_is_absolute, "an absolute path")
_PATH_OR_NONE = Rule(lambda path: not path or _is_absolute(path), "an absolute path, or nothing")
_PATHS = Rule(lambda paths: all(map(_is_absolute, paths)), "a list of absolute paths")
_DEVICE = Rule(lambda name: name in ("auto", "none") or _is_absolute(name), "auto, none, or the path of a disk")
_PROXY_ADDRESSES = Rule(
    lambda texts: all(text == "auto" or _is_address(text) for text in texts),
    "a list of addresses, each auto, vsock:PORT, vsock:CID:PORT or unix:PATH",
)
_TARGET = Rule(_is_target, "unix:PATH or tcp:IP:PORT")
_TARGET_OR_NONE = Rule(lambda text: not text or _is_target(text), "unix:PATH, tcp:IP:PORT, or nothing")
_ARGUMENTS = Rule(lambda words: all("\0" not in word for word in words), "a list of strings")
_FRAME_SIZE = Rule(lambda size: 4 <= size <= MAX_LENGTH, f"a whole number of bytes from 4 to {MAX_LENGTH}")
_CIDS = Rule(lambda cids: all(0 <= cid < 2**32 for cid in cids), "a list of CIDs, whole numbers below 4294967296")
_INTERFACE = Rule(
    lambda name: re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name) is not None, "a network interface's name, at most 15 bytes"
)
_SUBNET = Rule(_is_subnet, "an IPv4 network with a prefix of 8 to 29 bits, as in 172.20.0.0/16")
_IP_ADDRESSES = Rule(lambda texts: all(map(_is_ip_address, texts)), "a list of IP addresses")
_ADDRESSES = Rule(
    lambda texts: len(texts) > 0 and len(set(texts)) == len(texts) and all(map(_is_address, texts)),
    "a list of one or more different addresses, each vsock:PORT, vsock:CID:PORT or unix:PATH",
)


@frozen(kw_only=True)
class Limits:
    """What peers may ask of the agent."""

    max_frame: int = setting(
        DEFAULT_MAX_FRAME,
        "The largest frame that a peer may send, in bytes, as its length field counts them. A larger one is"
        " answered with Error 413, and its connection is closed.",
        _FRAME_SIZE,
    )
    max_connections: int = setting(
        1024,
        "Connections at the same time. One more is accepted, answered with Error 503 and closed.",
        _COUNT,
    )
    frame_timeout: float = setting(
        30.0,
        "Seconds in which a peer must finish a frame that it began; it is disconnected otherwise."
        " Connections may be idle for as long as they like.",
        _SECONDS_ABOVE_0,
    )
    max_concurrent_requests: int = setting(
        64, "Slow requests that one connection may have running beside its other ones.", _COUNT
    )
    max_streams: int = setting(
        1024, "Streams that may run on one connection at the same time. One more is answered with Error 503.", _COUNT
    )


@frozen(kw_only=True)
class Vsock:
    """Who is served over AF_VSOCK."""

    allowed_cids: tuple[int, ...] = setting(
        (2,),
        "The CIDs whose connections are served; 2 is the host. Without this, any process of any container in"
        " the guest could reach the agent over the vsock loopback (CID 1).",
        _CIDS,
    )


@frozen(kw_only=True)
class Clock:
    """The clock of the guest."""

    follow_host: bool = setting(
        True,
        "Whether a ping that carries the host's time steps the guest's clock when that is off by a second or more.",
    )


@frozen(kw_only=True)
class Power:
    """The power of the guest."""

    off: Literal["auto", "disabled"] = setting(
        "auto",
        "How a Shutdown request powers the machine off. auto: through the kernel as PID 1, through systemd as"
        " one of its services, else not at all. disabled: never.",
    )


@frozen(kw_only=True)
class Machine:
    """What hosts may do to the guest itself, besides its sandboxes."""

    allow_exec: bool = setting(
        False, "Whether MachineExec requests run processes in the agent's own root: whoever may send them is root here."
    )
    allow_kill: bool = setting(
        False, "Whether a KillAgent request ends the agent, with status 1: for tests of what a host does then."
    )


@frozen(kw_only=True)
class Disk:
    """Telling the data disks which blocks are free, so that the host gets the space back."""

    trim_mounts: tuple[str, ...] = setting(
        ("/var/lib/docker", "/var/lib/containerd", "/run/arcbox/data"),
        "The mount points to trim. Those where nothing is mounted are left out; a file system that is there"
        " more than once is trimmed once.",
        _PATHS,
    )
    trim_interval: float = setting(
        3600.0,
        "Seconds between two trims in the background; 0 is never. DiskTrim requests always trim.",
        _SECONDS,
    )


@frozen(kw_only=True)
class Sandbox:
    """Sandboxes."""

    data_dir: str = setting(
        "/var/lib/arcbox/sandboxes",
        "The directory that holds their records, files and snapshots, on a file system that an overlay can write to.",
        _PATH,
    )
    rootfs: str = setting(
        "",
        "The root file system of sandboxes that name none: a directory, or an image file (ext4, squashfs, erofs)."
        " `arcbox-agent rootfs build` makes a small one.",
        _PATH_OR_NONE,
    )
    runtime: Literal["crun", "runc"] = setting("crun", "The OCI runtime that isolates them.")
    init: str = setting(
        "",
        "The program that is PID 1 in each: static, and reaping what is left behind when it is called with -P."
        " Empty for catatonit, which is looked for where programs are.",
        _PATH_OR_NONE,
    )
    stop_at_exit: bool = setting(
        False,
        "Whether sandboxes are stopped when the agent ends. Otherwise they go on running, and the next agent adopts"
        " them. Powering the machine off stops them in any case.",
    )
    default_vcpus: int = setting(1, "Processors for sandboxes that ask for no number of them.", _up_to(MOST_VCPUS))
    default_memory_mib: int = setting(
        512, "Memory for sandboxes that ask for no amount of it, in MiB.", _up_to(MOST_MEMORY_MIB)
    )
    max_processes: int = setting(
        1024, "Processes, and threads, that may run in a sandbox at the same time.", _up_to(MOST_PROCESSES)
    )
    kept_output_mib: int = setting(
        16,
        "Output that is kept of each channel of executions and initial commands, in MiB: the oldest goes first.",
        _up_to(1024),
    )
    max_file_mib: int = setting(
        256, "The largest file that a request may write into one of them, in MiB.", _up_to(MOST_MEMORY_MIB)
    )
    no_new_privileges: bool = setting(
        False,
        "Whether set-user-ID programs (sudo, su) and file capabilities give nothing in them. The default user in them"
        " is root, so it protects little.",
    )


@frozen(kw_only=True)
class Images:
    """OCI images for sandboxes. `skopeo` copies and `umoci` unpacks them."""

    pull_timeout: float = setting(600.0, "Seconds for which one image may be copied.", _SECONDS_ABOVE_0)
    keep_unused: float = setting(
        604800.0, "Seconds for which an image is kept that no sandbox has; 0 keeps all.", _SECONDS
    )
    policy: str = setting(
        "", "A file as in containers-policy.json(5): whose images are accepted. Empty accepts all.", _PATH_OR_NONE
    )


@frozen(kw_only=True)
class Network:
    """The network of sandboxes. Nothing of it is there before the first sandbox that has one."""

    enabled: bool = setting(True, "Whether sandboxes get an address; `false` leaves them loopback only.")
    bridge: str = setting("arcbox0", "The name of their bridge.", _INTERFACE)
    subnet: str = setting("172.20.0.0/16", "Their addresses. The first one is the bridge's.", _SUBNET)
    dns: tuple[str, ...] = setting(
        (), "The DNS servers that are asked for names that are no sandbox's; empty for the guest's own.", _IP_ADDRESSES
    )
    dns_server: bool = setting(
        True,
        "Whether the bridge's address answers DNS queries: names below `arcbox.local` by itself, other names by those"
        " servers.",
    )


@frozen(kw_only=True)
class Runtime:
    """The container runtime: containerd and dockerd, started when the host asks for them."""

    binary_dirs: tuple[str, ...] = setting(
        ("/arcbox/runtime/bin", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        "Where their programs are. Each daemon comes from the first that has all that it needs. One item may be several"
        " directories, joined by colons, which are looked through together.",
        _PATHS,
    )
    containerd_socket: str = setting("/run/containerd/containerd.sock", "The socket of containerd.", _PATH)
    docker_socket: str = setting("/run/docker.sock", "The socket of dockerd.", _PATH)
    containerd_args: tuple[str, ...] = setting((), "Further arguments of containerd.", _ARGUMENTS)
    dockerd_args: tuple[str, ...] = setting(
        (), "Further arguments of dockerd. It reads /etc/docker/daemon.json as well.", _ARGUMENTS
    )
    state_dir: str = setting(
        "/run/arcbox",
        "Pid files and logs of the daemons, and what they keep while the machine runs: a directory in memory.",
        _PATH,
    )
    data_base: str = setting(
        "/var/lib", "The directory with the data of the daemons: docker, containerd, rancher/k3s, kubelet, cni.", _PATH
    )
    data_device: str = setting(
        "auto",
        "The disk of the data volume, which is formatted if it is blank. auto: the one that the kernel command line"
        " names by arcbox.docker_data_device=, else /dev/arcboxhvc1, else /dev/vdb, else none. none: directories on the"
        " root file system.",
        _DEVICE,
    )
    data_mount: str = setting("/run/arcbox/data", "Where the whole of the data volume is mounted.", _PATH)
    hung_after_probes: int = setting(
        15,
        "How many probes in a row a daemon that answered before must not answer, for 2 s each, to be killed and started"
        " again: about a minute. 0: it is left as it is.",
        _COUNT_OR_NONE,
    )


@frozen(kw_only=True)
class Kubernetes:
    """Kubernetes: k3s, from `runtime.binary_dirs`, on the container runtime's containerd."""

    args: tuple[str, ...] = setting((), "Further arguments of `k3s server`.", _ARGUMENTS)


@frozen(kw_only=True)
class DockerProxy:
    """The Docker API for the host: connections are relayed to dockerd as they are."""

    listen: tuple[str, ...] = setting(
        ("auto",),
        "The addresses to listen on: vsock:PORT, vsock:CID:PORT, unix:PATH. auto: where the agent itself listens on"
        " vsock, vsock on the port that the environment variable ARCBOX_GUEST_DOCKER_VSOCK_PORT says, else"
        " arcbox.guest_docker_vsock_port= on the kernel command line, else 2375.",
        _PROXY_ADDRESSES,
    )
    target: str = setting(
        "", "What is connected to: unix:PATH or tcp:IP:PORT. Empty for `runtime.docker_socket`.", _TARGET_OR_NONE
    )


@frozen(kw_only=True)
class KubernetesProxy:
    """The Kubernetes API for the host: connections are relayed as they are."""

    listen: tuple[str, ...] = setting(
        ("auto",),
        "The addresses to listen on, as above. auto: where the agent itself listens on vsock, vsock:16443.",
        _PROXY_ADDRESSES,
    )
    target: str = setting("tcp:127.0.0.1:6443", "What is connected to: unix:PATH or tcp:IP:PORT.", _TARGET)


@frozen(kw_only=True)
class Proxy:
    """APIs that the host reaches through the agent. Over vsock, `vsock.allowed_cids` holds for them as well."""

    docker: DockerProxy = Factory(DockerProxy)
    kubernetes: KubernetesProxy = Factory(KubernetesProxy)


@frozen(kw_only=True)
class Log:
    """The log, on standard error. Payloads of requests are never in it."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "The least serious records to write.")
    format: Literal["auto", "json", "console"] = setting(
        "auto",
        "json: one JSON object per line. console: for people, in colour on a terminal."
        " auto: console on a terminal, else json.",
    )


@frozen(kw_only=True)
class Settings:
    """The agent itself."""

    listen: tuple[str, ...] = setting(
        ("vsock:1024",),
        "The addresses to listen on: vsock:PORT (on any CID of this guest), vsock:CID:PORT, unix:PATH."
        " The option --listen replaces them.",
        _ADDRESSES,
    )
    shutdown_grace: float = setting(
        5.0, "Seconds in which requests that are running may finish after SIGTERM.", _SECONDS
    )
    limits: Limits = Factory(Limits)
    vsock: Vsock = Factory(Vsock)
    clock: Clock = Factory(Clock)
    power: Power = Factory(Power)
    machine: Machine = Factory(Machine)
    disk: Disk = Factory(Disk)
    sandbox: Sandbox = Factory(Sandbox)
    images: Images = Factory(Images)
    network: Network = Factory(Network)
    runtime: Runtime = Factory(Runtime)
    kubernetes: Kubernetes = Factory(Kubernetes)
    proxy: Proxy = Factory(Proxy)
    log: Log = Factory(Log)


@frozen
class LoadedSettings:
    """Settings, and how they came to be so."""

    settings: Settings
    origins: Mapping[str, str]
    """Where each came from, by dotted key: the path of a file, `BUILT_IN` or `COMMAND_LINE`."""

    path: Path | None
    """The file that was read, if any."""


def attributes(section: type = Settings, prefix: str = "") -> Iterator[tuple[str, Attribute[Any]]]:
    """Every setting's dotted key and attrs attribute, in the order of the classes."""
    for attribute in fields(resolve_types(section)):
        key = f"{prefix}{attribute.name}"
        if has(attribute.type):
            yield from attributes(attribute.type, f"{key}.")
        else:
            yield key, attribute


def values(settings: Settings) -> dict[str, Any]:
    """Every setting's value by dotted key."""
    found = {}
    for key, _ in attributes():
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name)
        found[key] = value
    return found


def expected(attribute: Attribute[Any]) -> str:
    """What a setting's value has to be, as in "a whole number"."""
    if isinstance(attribute.validator, Rule):
        return attribute.validator.expected
    if attribute.type is bool:
        return "true or false"
    return "one of " + ", ".join(map(show, get_args(attribute.type)))


def show(value: object) -> str:
    """A value as TOML writes it, on one line, and no more of it than a person would read."""
    match value:
        case str():
            return json.dumps(value[:100], ensure_ascii=not value.isprintable())
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list() | tuple():
            items = ["…" if isinstance(item, list | dict) else show(item) for item in value[:10]]
            return f"[{', '.join([*items, '…'] if len(value) > 10 else items)}]"
        case int() if value.bit_length() > 64:
            return "a number of more than 64 bits"
        case _:
            return str(value)


def load(
    config: str | None = None,
    listen: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    default_file: Path = DEFAULT_FILE,
) -> LoadedSettings:
    """Read the settings from where they are.

    Args:
        config: the file that the command line named; else the one that the environment names is read, else
            `default_file` if it is there.
        listen: the addresses that the command line gave, in place of all others.
        environ: the environment.
        default_file: the file that need not be there.

    Raises:
        SettingsError: a named file can't be read, or something in it or in `listen` is wrong.
    """
    path, named_by = _find(config, environ.get(FILE_VARIABLE), default_file)
    settings, origins = Settings(), dict.fromkeys(values(Settings()), BUILT_IN)
    if path is not None:
        from arcbox_agent._settings_file import read  # noqa: PLC0415  most agents run without a file, and start the sooner

        settings, keys = read(path, named_by)
        origins |= dict.fromkeys(keys, str(path))
    if listen:
        settings = evolve(settings, listen=_checked(listen))
        origins["listen"] = COMMAND_LINE
    return LoadedSettings(settings, origins, path)


def _find(config: str | None, variable: str | None, default: Path) -> tuple[Path | None, str]:
    """The file to read, and who named it, for errors."""
    if config is not None:
        return Path(config), "--config"
    if variable:
        return Path(variable), FILE_VARIABLE
    return (default if os.path.lexists(default) else None), ""


def _checked(listen: Sequence[str]) -> tuple[str, ...]:
    for text in listen:
        try:
            parse_address(text)
        except ValueError as error:
            raise SettingsError(f"{COMMAND_LINE}: {error}") from error
    return tuple(dict.fromkeys(listen))
