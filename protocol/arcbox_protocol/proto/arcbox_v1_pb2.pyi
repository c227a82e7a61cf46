from google.protobuf.internal import containers as _containers
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
    __slots__ = ("message", "version")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    message: str
    version: str
    def __init__(self, message: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

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
