from typing import Any

class LazyConfig:
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...

config: LazyConfig
