"""The contract between the runtime and a provider: one request in, a stream of deltas and one response out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from nitinol.errors import ConfigurationError, UnknownModel
from nitinol.http import Http
from nitinol.messages import DeltaKind, Message, StopReason
from nitinol.prices import PriceList
from nitinol.tool_spec import Tool
from nitinol.usage import Usage

Thinking = int | Literal["low", "medium", "high"]

ENTRY_POINTS = "nitinol.providers"
"""The entry-point group that maps the part of a model string before its first colon to a provider."""
CATALOGS = "nitinol.models"
"""The entry-point group of lists of models: each a `Catalog`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a provider knows of its model."""

    context_window: int | None = None
    """Tokens of input and output together; `None` = unknown."""
    max_output_tokens: int | None = None
    """Tokens of one answer; `None` = unknown."""
    prices: PriceList | None = None
    """`None` = unknown, so the cost is unknown; never free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that a package with a list of models knows."""

    provider: str
    """What stands before the colon of its model string."""
    model: str
    """What stands behind it."""
    info: ModelInfo


Catalog = Callable[[str | None], Iterable[KnownModel]]
"""All models that a package knows; given a name, what each provider serves under it, be it an alias or a dated name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What a model is sent. Hooks may change it with `replace`."""

    messages: tuple[Message, ...]
    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    output_schema: Mapping[str, Any] | None = None
    """JSON schema the answer must follow."""
    max_output_tokens: int | None = None
    temperature: float | None = None
    thinking: Thinking | None = None
    cache: bool = True
    """Whether the provider may cache the prompt."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The vendor's own options, sent as they are."""
    stall: float = 60.0
    """Seconds without a byte after which the attempt is a `ProviderTimeout`."""
    timeout: float | None = None
    """Seconds until the run's deadline; `None` = no deadline."""
    purpose: Literal["answer", "compact"] = "answer"
    """`"compact"`: it asks for a summary of the conversation, which then stands for its older messages."""
    key: str = ""
    run_id: str = ""
    turn: int = 0
    attempt: int = 0

    def replace(self, **changes: Any) -> ModelRequest:
        """A copy with other fields."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer, as it comes."""

    kind: DeltaKind
    text: str
    index: int = 0
    """Which part of the answer; for `tool_args`, which call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """A whole answer; the last thing a stream yields."""

    message: Message
    usage: Usage | None
    """`None` where the provider did not say; then it is unknown, not zero."""
    stop_reason: StopReason
    raw_model: str | None = None
    """The model that answered, by the provider's own name."""
    response_id: str | None = None

    def replace(self, **changes: Any) -> ModelResponse:
        """A copy with other fields."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class UsageSoFar:
    """Usage that a provider tells before its answer ends; what a cut stream is billed by."""

    usage: Usage


StreamPart: TypeAlias = Delta | UsageSoFar | ModelResponse


@runtime_checkable
class Provider(Protocol):
    """Speaks one vendor's wire format for one model.

    Contract: it keeps no client, no loop and no state between calls, and may be used by any number of agents at once.

    It may have one attribute more: `account`, a string that tells whose key it uses without telling the key, such as
    `account_of(base_url, key)`. Instances of the same name, model and account share one rate limit: when one of them meets
    a 429, the agents of all slow down. Without it, those made from the same model string share, and an instance is alone.
    """

    name: str
    """The vendor, in lower case."""
    model: str
    """The name sent to the vendor."""

    def info(self) -> ModelInfo:
        """What is known of the model. Does no I/O."""
        ...

    def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        """Ask the model.

        Contract: runs on the runtime's I/O loop; yields deltas, then exactly one `ModelResponse`, last. Raises a
        `ProviderError` or nothing; a stream that ends without the vendor's own end is `MalformedResponse`.
        """
        ...


ProviderFactory = Callable[[str], Provider]


def resolve(model: str | Provider) -> Provider:
    """The provider of a model string, such as `"ollama:llama3.2:3b"`; a provider is returned as it is.

    Raises:
        UnknownModel: The string has no prefix, or no installed package serves it.
        ConfigurationError: The provider refuses it, for want of a key for instance.
    """
    if not isinstance(model, str):
        # Not isinstance: a runtime check of a protocol costs as much as ten events.
        named = isinstance(getattr(model, "name", None), str) and isinstance(getattr(model, "model", None), str)
        if not named or not callable(getattr(model, "stream", None)) or not callable(getattr(model, "info", None)):
            raise ConfigurationError(
                f"model={model!r} is neither a model string nor a provider (name, model, info, stream)"
            )
        return model
    prefix, colon, name = model.partition(":")
    if not colon or not prefix or not name:
        raise UnknownModel(
            f"model {model!r} must be 'provider:model', for instance 'ollama:llama3.2'; known providers: {_known()}"
        )
    found = _entry_points().get(prefix)
    if found is None:
        raise UnknownModel(
            f"no provider {prefix!r} for model {model!r}; known: {_known()}; a package adds one with an entry point in {ENTRY_POINTS!r}"
        )
    try:
        factory: ProviderFactory = found.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"provider {prefix!r} ({found.value}) does not load: {error}") from error
    return factory(name)


def known_models(name: str | None = None) -> Iterator[KnownModel]:
    """What the installed packages know of models: of all, or of those that providers serve under a name.

    Raises:
        ConfigurationError: A package's list does not load.
    """
    for point in entry_points(group=CATALOGS):
        try:
            catalog: Catalog = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"the list of models {point.value!r} does not load: {error}") from error
        yield from catalog(name)


def account_of(*parts: str) -> str:
    """A digest for a provider's `account`: it tells accounts apart, within this process, and gives no key away."""
    return hashlib.blake2s("\0".join(parts).encode("utf-8", "replace"), digest_size=8, key=_SALT).hexdigest()


def overridden() -> Provider | None:
    """The provider that `nitinol.testing.override_model` has put in the place of all others."""
    return _overrides[-1] if _overrides else None


def push_override(provider: Provider) -> None:
    """For `nitinol.testing` only."""
    _overrides.append(provider)


def pop_override(provider: Provider) -> None:
    """For `nitinol.testing` only."""
    _overrides.remove(provider)


def _entry_points() -> dict[str, EntryPoint]:
    global _cached
    if _cached is None:
        _cached = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return _cached


def _known() -> str:
    return ", ".join(sorted(_entry_points())) or "none (is nitinol installed?)"


_SALT = os.urandom(16)
_cached: dict[str, EntryPoint] | None = None
_overrides: list[Provider] = []
