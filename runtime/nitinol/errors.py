"""Every error that Nitinol raises, in one tree.

    NitinolError
      ConfigurationError        a definition or an option is wrong; nothing was started
        UnknownModel            no provider has this prefix, or the string has none
        MissingKey              the provider's API key is not set
      AgentError                about one live agent
        AgentBusy               it runs, and `busy="reject"` or the queue is full
          InboxFull             as many messages wait for an actor as may
        AgentDown               the actor died before it handled this message
        AgentParked             the supervisor gave up restarting it; `ref.resume()`
        AgentStopped            it was stopped; `rt.start` starts it again
        KeyTaken                the key lives under another agent's name
      NotFound (LookupError)    no agent or run of this name
      AlreadyResolved           a run that has ended, or an approval that was decided
      ActorError                about an actor that rt.supervise started
        StartFailed             it did not come up: its start raised, or took too long
        SupervisorFailed        a supervisor has had enough of its children
      BadExport                 what was to be imported is no sound export of an agent; nothing was changed
      RunFailed                 `.result` says how; from `output` and `raise_for_status`
      RuntimeStopped            the runtime was stopped
        RuntimeDown             its root supervisor failed
      StorageFailed             the store cannot be read or written; agents wait until it can
        StoreInUse              another process owns it
        NewerSchema             a newer version wrote it
      ReadOnly                  a runtime with `read_only=True` was asked to change something; its store's owner can
      WouldDeadlock             a blocking call on one of the runtime's own loops
      SubscriptionClosed        no more events will come
      SubscriptionOverflow      a subscription with `overflow="close"` fell behind
      ToolError                 raised by a tool: its text is the model's answer
      ProviderError             one attempt failed; `.retryable`, `.status_code`, `.retry_after`, `.request_id`
        RateLimited, Overloaded, ServerError, ProviderTimeout, ConnectionFailed, MalformedResponse      retried
        ContextOverflow, AuthenticationFailed, InvalidRequest, ContentRefused                           not retried
        ScriptExhausted         a `ScriptedProvider` has no answer left
        ScriptFailed            its function raised
        NotRecorded             a request is not in the recording that stands for the network

A message names the thing with its `repr` and says what to do next. No message holds an API key.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NitinolError(Exception):
    """The base of every error here."""


class ConfigurationError(NitinolError, ValueError):
    """A definition or an option is wrong; nothing was started."""


class UnknownModel(ConfigurationError):
    """No installed provider serves this model string."""


class MissingKey(ConfigurationError):
    """The provider's API key is neither given nor in the environment."""


class AgentError(NitinolError):
    """Something about one live agent."""


class AgentBusy(AgentError):
    """A run is open and `busy="reject"`, the queue is full, or the call needs an idle agent."""


class InboxFull(AgentBusy):
    """As many messages wait for an actor as may; this one was not accepted."""


class AgentDown(AgentError):
    """The actor died before it handled this message; it was not accepted."""


class AgentParked(AgentError):
    """The supervisor gave up restarting this agent; `ref.resume()` tries again."""


class AgentStopped(AgentError):
    """The agent was stopped; `rt.start` starts it again."""


class KeyTaken(AgentError):
    """The key already lives under another agent's name."""


class NotFound(NitinolError, LookupError):
    """No agent or run is known by this name."""


class AlreadyResolved(NitinolError):
    """The run has ended, or the approval was decided: the first committed resolution won."""


class ActorError(NitinolError):
    """Something about an actor under a supervisor of yours."""


class StartFailed(ActorError):
    """A child did not come up: its start raised, or took too long."""


class SupervisorFailed(ActorError):
    """A supervisor has had enough of its children: too many crashes, or one too often."""


class BadExport(NitinolError, ValueError):
    """What was to be imported is no sound export of an agent, or cannot be exported; nothing was changed."""


class RunFailed(NitinolError):
    """A run did not complete; `result` is its `RunResult`."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class RuntimeStopped(NitinolError):
    """The runtime was stopped, or is stopping."""

    def __init__(self, message: str = "the runtime was stopped") -> None:
        super().__init__(message)


class RuntimeDown(RuntimeStopped):
    """The runtime's root supervisor failed; open a new runtime."""


class StorageFailed(NitinolError):
    """The store cannot be opened, read or written. Nothing is acknowledged that it does not hold."""


class StoreInUse(StorageFailed):
    """Another process owns the store; the message names it."""


class NewerSchema(StorageFailed):
    """A newer version of Nitinol wrote the store."""


class ReadOnly(NitinolError):
    """A runtime that only looks on, `Runtime(store, read_only=True)`, was asked to change something."""


class WouldDeadlock(NitinolError, RuntimeError):
    """A blocking call on a thread that must not block: one of the runtime's own loops."""


class SubscriptionClosed(NitinolError):
    """The subscription was closed, or its runtime stopped."""


class SubscriptionOverflow(NitinolError):
    """A subscription with `overflow="close"` fell behind and was closed."""


class ToolError(NitinolError):
    """Raise it in a tool: the model reads the text, and may try again."""


class ProviderError(NitinolError):
    """One attempt at a model failed.

    Args:
        message: What happened, in a sentence.
        status_code: The HTTP status, where there was one.
        retry_after: Seconds the provider asks to wait, or None.
        request_id: The provider's id of the request, for its support.
    """

    retryable: ClassVar[bool] = False
    summary: ClassVar[str] = "the provider failed"

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message or self.summary)
        self.status_code = status_code
        self.retry_after = retry_after
        self.request_id = request_id


class RateLimited(ProviderError):
    """Too many requests or tokens (429)."""

    retryable, summary = True, "the provider limits the rate of requests"


class Overloaded(ProviderError):
    """The provider has no capacity now (503, 529)."""

    retryable, summary = True, "the provider is overloaded"


class ServerError(ProviderError):
    """The provider failed (other 5xx, 408)."""

    retryable, summary = True, "the provider had an internal error"


class ProviderTimeout(ProviderError):
    """No byte came for `Retry(stall=)` seconds."""

    retryable, summary = True, "the provider sent nothing for too long"


class ConnectionFailed(ProviderError):
    """The connection was refused, reset, or cut in mid-stream."""

    retryable, summary = True, "the connection to the provider failed"


class MalformedResponse(ProviderError):
    """The answer is not what the protocol says, or the stream ended without its end."""

    retryable, summary = True, "the provider's answer could not be read"


class ContextOverflow(ProviderError):
    """The request is longer than the model's context window."""

    summary = "the conversation is longer than the model's context window"


class AuthenticationFailed(ProviderError):
    """The key was refused (401, 403)."""

    summary = "the provider refused the API key"


class InvalidRequest(ProviderError):
    """The provider refused the request (400, 404, 422)."""

    summary = "the provider refused the request"


class ContentRefused(ProviderError):
    """The provider's content policy refused the request or the answer."""

    summary = "the provider's content policy refused"


class ScriptExhausted(ProviderError):
    """A `ScriptedProvider` was asked for more answers than its script has."""

    summary = "the script has no answer left"


class ScriptFailed(ProviderError):
    """The function of a `ScriptedProvider` raised, or answered what is no answer."""

    summary = "the script's function failed"


class NotRecorded(ProviderError):
    """A request is not in the recording that stands for the network; the message names the difference."""

    summary = "the request is not in the recording"
