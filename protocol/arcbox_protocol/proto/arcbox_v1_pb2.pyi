from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PortBinding(_message.Message):
    __slots__ = ("container_port", "host_port", "protocol", "host_ip")
    CONTAINER_PORT_FIELD_NUMBER: _ClassVar[int]
    HOST_PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_IP_FIELD_NUMBER: _ClassVar[int]
    container_port: int
    host_port: int
    protocol: str
    host_ip: str
    def __init__(self, container_port: _Optional[int] = ..., host_port: _Optional[int] = ..., protocol: _Optional[str] = ..., host_ip: _Optional[str] = ...) -> None: ...

class AgentPingRequest(_message.Message):
    __slots__ = ("message", "timestamp_secs")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_SECS_FIELD_NUMBER: _ClassVar[int]
    message: str
    timestamp_secs: int
    def __init__(self, message: _Optional[str] = ..., timestamp_secs: _Optional[int] = ...) -> None: ...

class AgentPingResponse(_message.Message):
    __slots__ = ("message", "version", "protocol_version")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    message: str
    version: str
    protocol_version: int
    def __init__(self, message: _Optional[str] = ..., version: _Optional[str] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class SystemInfo(_message.Message):
    __slots__ = ("kernel_version", "os_name", "os_version", "arch", "total_memory", "available_memory", "cpu_count", "load_average", "hostname", "uptime", "ip_addresses")
    KERNEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OS_NAME_FIELD_NUMBER: _ClassVar[int]
    OS_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MEMORY_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOAD_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    IP_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    kernel_version: str
    os_name: str
    os_version: str
    arch: str
    total_memory: int
    available_memory: int
    cpu_count: int
    load_average: _containers.RepeatedScalarFieldContainer[float]
    hostname: str
    uptime: int
    ip_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kernel_version: _Optional[str] = ..., os_name: _Optional[str] = ..., os_version: _Optional[str] = ..., arch: _Optional[str] = ..., total_memory: _Optional[int] = ..., available_memory: _Optional[int] = ..., cpu_count: _Optional[int] = ..., load_average: _Optional[_Iterable[float]] = ..., hostname: _Optional[str] = ..., uptime: _Optional[int] = ..., ip_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class RuntimeEnsureRequest(_message.Message):
    __slots__ = ("start_if_needed",)
    START_IF_NEEDED_FIELD_NUMBER: _ClassVar[int]
    start_if_needed: bool
    def __init__(self, start_if_needed: _Optional[bool] = ...) -> None: ...

class RuntimeEnsureResponse(_message.Message):
    __slots__ = ("ready", "endpoint", "message", "status")
    READY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    endpoint: str
    message: str
    status: str
    def __init__(self, ready: _Optional[bool] = ..., endpoint: _Optional[str] = ..., message: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class RuntimeStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RuntimeStatusResponse(_message.Message):
    __slots__ = ("containerd_ready", "docker_ready", "endpoint", "detail", "services")
    CONTAINERD_READY_FIELD_NUMBER: _ClassVar[int]
    DOCKER_READY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    containerd_ready: bool
    docker_ready: bool
    endpoint: str
    detail: str
    services: _containers.RepeatedCompositeFieldContainer[ServiceStatus]
    def __init__(self, containerd_ready: _Optional[bool] = ..., docker_ready: _Optional[bool] = ..., endpoint: _Optional[str] = ..., detail: _Optional[str] = ..., services: _Optional[_Iterable[_Union[ServiceStatus, _Mapping]]] = ...) -> None: ...

class ServiceStatus(_message.Message):
    __slots__ = ("name", "status", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: str
    detail: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class PortBindingsChanged(_message.Message):
    __slots__ = ("container_id", "bindings")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    BINDINGS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    bindings: _containers.RepeatedCompositeFieldContainer[PortBinding]
    def __init__(self, container_id: _Optional[str] = ..., bindings: _Optional[_Iterable[_Union[PortBinding, _Mapping]]] = ...) -> None: ...

class PortBindingsRemoved(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class KubernetesStartRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesStopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesDeleteRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesKubeconfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesStartResponse(_message.Message):
    __slots__ = ("running", "api_ready", "endpoint", "detail")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    API_READY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    running: bool
    api_ready: bool
    endpoint: str
    detail: str
    def __init__(self, running: _Optional[bool] = ..., api_ready: _Optional[bool] = ..., endpoint: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class KubernetesStopResponse(_message.Message):
    __slots__ = ("stopped", "detail")
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stopped: bool
    detail: str
    def __init__(self, stopped: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class KubernetesDeleteResponse(_message.Message):
    __slots__ = ("detail",)
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    detail: str
    def __init__(self, detail: _Optional[str] = ...) -> None: ...

class KubernetesStatusResponse(_message.Message):
    __slots__ = ("running", "api_ready", "endpoint", "detail", "services")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    API_READY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    running: bool
    api_ready: bool
    endpoint: str
    detail: str
    services: _containers.RepeatedCompositeFieldContainer[ServiceStatus]
    def __init__(self, running: _Optional[bool] = ..., api_ready: _Optional[bool] = ..., endpoint: _Optional[str] = ..., detail: _Optional[str] = ..., services: _Optional[_Iterable[_Union[ServiceStatus, _Mapping]]] = ...) -> None: ...

class KubernetesKubeconfigResponse(_message.Message):
    __slots__ = ("kubeconfig", "context_name", "endpoint")
    KUBECONFIG_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_NAME_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    kubeconfig: str
    context_name: str
    endpoint: str
    def __init__(self, kubeconfig: _Optional[str] = ..., context_name: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("timeout_seconds",)
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: int
    def __init__(self, timeout_seconds: _Optional[int] = ...) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    def __init__(self, accepted: _Optional[bool] = ...) -> None: ...

class MmapReadFileRequest(_message.Message):
    __slots__ = ("path", "offset", "length")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    path: str
    offset: int
    length: int
    def __init__(self, path: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class MmapReadFileResponse(_message.Message):
    __slots__ = ("data", "bytes_read")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    bytes_read: int
    def __init__(self, data: _Optional[bytes] = ..., bytes_read: _Optional[int] = ...) -> None: ...

class DiskTrimRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiskTrimResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: str
    def __init__(self, result: _Optional[str] = ...) -> None: ...

class WatchReadinessRequest(_message.Message):
    __slots__ = ("start_runtime_if_needed", "timeout_ms")
    START_RUNTIME_IF_NEEDED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    start_runtime_if_needed: bool
    timeout_ms: int
    def __init__(self, start_runtime_if_needed: _Optional[bool] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ReadinessEvent(_message.Message):
    __slots__ = ("kind", "endpoint", "detail", "services")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[ReadinessEvent.Kind]
        AGENT_READY: _ClassVar[ReadinessEvent.Kind]
        RUNTIME_STARTING: _ClassVar[ReadinessEvent.Kind]
        RUNTIME_READY: _ClassVar[ReadinessEvent.Kind]
        RUNTIME_FAILED: _ClassVar[ReadinessEvent.Kind]
    KIND_UNSPECIFIED: ReadinessEvent.Kind
    AGENT_READY: ReadinessEvent.Kind
    RUNTIME_STARTING: ReadinessEvent.Kind
    RUNTIME_READY: ReadinessEvent.Kind
    RUNTIME_FAILED: ReadinessEvent.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    kind: ReadinessEvent.Kind
    endpoint: str
    detail: str
    services: _containers.RepeatedCompositeFieldContainer[ServiceStatus]
    def __init__(self, kind: _Optional[_Union[ReadinessEvent.Kind, str]] = ..., endpoint: _Optional[str] = ..., detail: _Optional[str] = ..., services: _Optional[_Iterable[_Union[ServiceStatus, _Mapping]]] = ...) -> None: ...

class WatchMemoryPressureRequest(_message.Message):
    __slots__ = ("timeout_ms", "min_available_bytes", "max_refault_rate", "keepalive_ms", "psi_full_stall_us")
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REFAULT_RATE_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_MS_FIELD_NUMBER: _ClassVar[int]
    PSI_FULL_STALL_US_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    min_available_bytes: int
    max_refault_rate: int
    keepalive_ms: int
    psi_full_stall_us: int
    def __init__(self, timeout_ms: _Optional[int] = ..., min_available_bytes: _Optional[int] = ..., max_refault_rate: _Optional[int] = ..., keepalive_ms: _Optional[int] = ..., psi_full_stall_us: _Optional[int] = ...) -> None: ...

class MemoryPressureEvent(_message.Message):
    __slots__ = ("reason", "available_bytes", "refault_rate")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KEEPALIVE: _ClassVar[MemoryPressureEvent.Reason]
        LOW_AVAILABLE: _ClassVar[MemoryPressureEvent.Reason]
        REFAULT_SPIKE: _ClassVar[MemoryPressureEvent.Reason]
        WINDOW_ELAPSED: _ClassVar[MemoryPressureEvent.Reason]
        SETTLED: _ClassVar[MemoryPressureEvent.Reason]
    KEEPALIVE: MemoryPressureEvent.Reason
    LOW_AVAILABLE: MemoryPressureEvent.Reason
    REFAULT_SPIKE: MemoryPressureEvent.Reason
    WINDOW_ELAPSED: MemoryPressureEvent.Reason
    SETTLED: MemoryPressureEvent.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFAULT_RATE_FIELD_NUMBER: _ClassVar[int]
    reason: MemoryPressureEvent.Reason
    available_bytes: int
    refault_rate: int
    def __init__(self, reason: _Optional[_Union[MemoryPressureEvent.Reason, str]] = ..., available_bytes: _Optional[int] = ..., refault_rate: _Optional[int] = ...) -> None: ...

class WatchStatsRequest(_message.Message):
    __slots__ = ("timeout_ms", "interval_ms")
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    interval_ms: int
    def __init__(self, timeout_ms: _Optional[int] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class MachineStats(_message.Message):
    __slots__ = ("monotonic_ms", "cpu_busy_ticks", "cpu_total_ticks", "online_cpus", "loadavg1", "memory_total_bytes", "memory_available_bytes", "memory_psi_full_avg10", "disk_read_bytes", "disk_written_bytes", "net_rx_bytes", "net_tx_bytes", "containers")
    MONOTONIC_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_BUSY_TICKS_FIELD_NUMBER: _ClassVar[int]
    CPU_TOTAL_TICKS_FIELD_NUMBER: _ClassVar[int]
    ONLINE_CPUS_FIELD_NUMBER: _ClassVar[int]
    LOADAVG1_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PSI_FULL_AVG10_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    NET_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NET_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    monotonic_ms: int
    cpu_busy_ticks: int
    cpu_total_ticks: int
    online_cpus: int
    loadavg1: float
    memory_total_bytes: int
    memory_available_bytes: int
    memory_psi_full_avg10: float
    disk_read_bytes: int
    disk_written_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    containers: _containers.RepeatedCompositeFieldContainer[ContainerStats]
    def __init__(self, monotonic_ms: _Optional[int] = ..., cpu_busy_ticks: _Optional[int] = ..., cpu_total_ticks: _Optional[int] = ..., online_cpus: _Optional[int] = ..., loadavg1: _Optional[float] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., memory_psi_full_avg10: _Optional[float] = ..., disk_read_bytes: _Optional[int] = ..., disk_written_bytes: _Optional[int] = ..., net_rx_bytes: _Optional[int] = ..., net_tx_bytes: _Optional[int] = ..., containers: _Optional[_Iterable[_Union[ContainerStats, _Mapping]]] = ...) -> None: ...

class ContainerStats(_message.Message):
    __slots__ = ("id", "name", "cpu_usage_usec", "memory_current_bytes", "memory_limit_bytes", "disk_read_bytes", "disk_written_bytes", "pids", "net_rx_bytes", "net_tx_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CPU_USAGE_USEC_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CURRENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    NET_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NET_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    cpu_usage_usec: int
    memory_current_bytes: int
    memory_limit_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    pids: int
    net_rx_bytes: int
    net_tx_bytes: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., cpu_usage_usec: _Optional[int] = ..., memory_current_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., disk_read_bytes: _Optional[int] = ..., disk_written_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., net_rx_bytes: _Optional[int] = ..., net_tx_bytes: _Optional[int] = ...) -> None: ...

class TerminalSize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class MachineExecRequest(_message.Message):
    __slots__ = ("id", "cmd", "working_dir", "user", "env", "tty", "tty_size", "attach_stdin", "login", "output_window")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    TTY_SIZE_FIELD_NUMBER: _ClassVar[int]
    ATTACH_STDIN_FIELD_NUMBER: _ClassVar[int]
    LOGIN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    id: str
    cmd: _containers.RepeatedScalarFieldContainer[str]
    working_dir: str
    user: str
    env: _containers.ScalarMap[str, str]
    tty: bool
    tty_size: TerminalSize
    attach_stdin: bool
    login: bool
    output_window: int
    def __init__(self, id: _Optional[str] = ..., cmd: _Optional[_Iterable[str]] = ..., working_dir: _Optional[str] = ..., user: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ..., tty: _Optional[bool] = ..., tty_size: _Optional[_Union[TerminalSize, _Mapping]] = ..., attach_stdin: _Optional[bool] = ..., login: _Optional[bool] = ..., output_window: _Optional[int] = ...) -> None: ...

class MachineExecOutput(_message.Message):
    __slots__ = ("stream", "data", "exit_code", "done", "exit_signal")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    EXIT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    stream: str
    data: bytes
    exit_code: int
    done: bool
    exit_signal: str
    def __init__(self, stream: _Optional[str] = ..., data: _Optional[bytes] = ..., exit_code: _Optional[int] = ..., done: _Optional[bool] = ..., exit_signal: _Optional[str] = ...) -> None: ...
