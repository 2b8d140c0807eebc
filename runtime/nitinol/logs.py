"""Logs: structlog, quiet by default as a library should be.

Nitinol logs through the standard logger `nitinol`, which has no handler of its own: an application that configures
logging sees warnings and errors, one that does not sees nothing on its output. Pykka's own records go the same way.
Secrets never reach a record: values under telling names are replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

_SECRET = ("api_key", "apikey", "authorization", "password", "secret", "access_token", "cookie", "arguments")
HIDDEN = "[redacted]"


def redact(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: hide API keys and tool arguments, also inside of mappings and lists."""
    for name, value in record.items():
        record[name] = HIDDEN if _is_secret(name) else _redacted(value)
    return record


def describe(error: BaseException) -> str:
    """An exception's text, fit for the journal. Never raises, whatever its `__str__` does."""
    try:
        text = str(error)
    except BaseException as second:  # an exception is a user's class, and may raise anything
        text = f"(its text raised {type(second).__name__})"
    return text.encode("utf-8", "replace").decode()


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and any(word in name.lower().replace("-", "_") for word in _SECRET)


def _redacted(value: Any) -> Any:
    mapping, items = cast("Mapping[Any, Any]", value), cast("list[Any]", value)
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key) else _redacted(item) for key, item in mapping.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in items]
    return value


class _ThroughNitinol(logging.Handler):
    """Pykka's records become records of `nitinol.pykka`."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger("nitinol.pykka")
        if target.isEnabledFor(record.levelno):
            target.handle(record)


def get_logger(**bound: Any) -> Any:
    """A logger with fields bound to each record: `agent`, `key`, `run_id`, `turn`, `call_id`."""
    import structlog  # not before somebody logs: it takes a fifth of the import, and tries to load rich

    return structlog.wrap_logger(
        logging.getLogger("nitinol"),
        processors=[
            structlog.stdlib.filter_by_level,
            redact,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
        **bound,
    )


logging.getLogger("nitinol").addHandler(logging.NullHandler())
_pykka = logging.getLogger("pykka")
if not any(isinstance(handler, _ThroughNitinol) for handler in _pykka.handlers):
    _pykka.addHandler(_ThroughNitinol())
    _pykka.propagate = False
