from collections.abc import Mapping

class Context: ...

class Device:
    action: str | None
    subsystem: str | None
    sys_name: str
    device_path: str
    properties: Mapping[str, str]

class Monitor:
    @classmethod
    def from_netlink(cls, context: Context, source: str = ...) -> Monitor: ...
    def start(self) -> None: ...
    def fileno(self) -> int: ...
    def poll(self, timeout: float | None = ...) -> Device | None: ...
