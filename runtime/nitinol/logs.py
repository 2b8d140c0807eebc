"""Logs: structlog, quiet by default as a library should be.

Nitinol logs through the standard logger `nitinol`, which has no handler of its own: an application that configures
logging sees warnings and errors, one that does not sees nothing on its output. Pykka's own records go the same way.
Secrets never reach a record: values under telling names are replaced.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET = ("api_key", "authorization", "password", "secret", "token_value", "x-api-key", "arguments")


def redact(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: hide API keys and tool arguments."""
    for name in record:
        if name.lower() in _SECRET:
            record[name] = "[redacted]"
    return record


def _quiet(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.addHandler(logging.NullHandler())
    return logger


class _ThroughNitinol(logging.Handler):
    """Pykka's records become records of `nitinol.pykka`."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger("nitinol.pykka")
        if target.isEnabledFor(record.levelno):
            target.handle(record)


def get_logger(**bound: Any) -> Any:
    """A logger with fields bound to each record: `agent`, `key`, `run_id`, `turn`, `call_id`."""
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


_quiet("nitinol")
_pykka = logging.getLogger("pykka")
if not any(isinstance(handler, _ThroughNitinol) for handler in _pykka.handlers):
    _pykka.addHandler(_ThroughNitinol())
    _pykka.propagate = False
