"""Anthropic's Messages API: `anthropic:claude-sonnet-4-6`. Local servers speak it too, by `base_url=`.

`ANTHROPIC_API_KEY`, else `ANTHROPIC_AUTH_TOKEN` (as a bearer token), and `ANTHROPIC_BASE_URL`, as the vendor's SDK reads
them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

from nitinol.errors import ContextOverflow, MissingKey, ProviderError
from nitinol.http import Http
from nitinol.provider import ModelInfo, ModelRequest, StreamPart
from nitinol_providers import catalog, overflow
from nitinol_providers.anthropic_answer import MessagesAnswer
from nitinol_providers.anthropic_models import abilities
from nitinol_providers.anthropic_output import output
from nitinol_providers.anthropic_request import PROVIDER, body, headers
from nitinol_providers.endpoint import check_options, checked_url, endpoint, lowered, variable

_URL = "https://api.anthropic.com"


class Anthropic:
    """A model behind the Messages API. Immutable; any number of agents may share one.

    What the options of an agent mean here:

    - `thinking`: a level is an effort for models that weigh by themselves how much to think (4.6 and later), and 2,048,
      8,192 or 24,576 tokens for the others. A number of tokens is a budget, of 1,024 at least and less than the answer's
      limit; for models that take none (4.7 and later) it is the effort nearest to it.
    - `temperature`: at most 1. Models that take none (4.7 and later), or think, are sent none. It makes the request one of
      the API's version of 2023, the last that takes one.
    - `max_output_tokens`: the API wants a limit: by default the model's own, or 4,096 tokens if that is not known.
    - `output`: the vendor's JSON schema format (4.5 and later), or a forced tool where that has no words for the schema.
    - `cache`: up to four breakpoints: the tools, the system prompt, and the last two messages of the user.
    - `extra`: goes over the body; `tools` (the vendor's own, such as web search) and `output_config` join ours; `betas` are
      sent in their header; of its `max_tokens` and ours the lower one holds.

    Args:
        model: The name sent to the server.
        api_key: None = from the environment.
        base_url: Up to but without `/v1`; None = from the environment, else the vendor's own address. Only that one wants a
            key.
        headers: Sent with each request, after ours and over them; betas join those that a request needs.

    Raises:
        MissingKey: The vendor wants a key, and there is none.
        ConfigurationError: The model is empty, or the base URL is no http address.
    """

    name = PROVIDER

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        check_options("anthropic", "anthropic:claude-sonnet-4-6", model, headers, api_key=api_key, base_url=base_url)
        url = base_url if base_url is not None else os.environ.get("ANTHROPIC_BASE_URL", "").strip() or _URL
        self.model = model
        self.base_url = checked_url(url, self.name)
        signed = {**_authorization(api_key), **lowered(headers)}
        if self.base_url == _URL and not signed.keys() & {"x-api-key", "authorization"}:
            raise MissingKey("anthropic needs a key: set ANTHROPIC_API_KEY, or give api_key=")
        self._endpoint = endpoint(self.base_url, "/v1/messages", signed)
        self.account = self._endpoint.account

    def __repr__(self) -> str:
        return f"Anthropic({self.model!r}, base_url={self._endpoint.shown!r})"

    def info(self) -> ModelInfo:
        """From the catalogue, which is imported once (0.2 s); of a model too new for it, from its generation."""
        known = catalog.model_info(self.model, vendor=self.name)
        return replace(known, max_output_tokens=known.max_output_tokens or abilities(self.model).max_output_tokens)

    def stream(self, request: ModelRequest, http: Http) -> AsyncGenerator[StreamPart, None]:
        """Ask the model; see `Provider.stream`."""
        held = output(self.model, request)
        sent = body(self.model, request, held)
        said = headers(sent, request.extra, self._endpoint.headers)
        return self._endpoint.ask(
            http, MessagesAnswer(self.model, request, held), sent, classify=_classify, headers=said
        )


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (api_key if api_key is not None else variable("ANTHROPIC_API_KEY")).strip()
    if key or api_key is not None:
        return {"x-api-key": key} if key else {}
    token = variable("ANTHROPIC_AUTH_TOKEN")
    return {"authorization": f"Bearer {token}"} if token else {}


def _classify(status: int, text: str) -> type[ProviderError] | None:
    return overflow.classify(status, text) or (ContextOverflow if status == 413 else None)
