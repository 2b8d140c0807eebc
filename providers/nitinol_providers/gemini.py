"""Gemini, by its own API: `models/{model}:streamGenerateContent`, v1beta.

The key comes from `GOOGLE_API_KEY`, else `GEMINI_API_KEY`, the base URL from `GOOGLE_GEMINI_BASE_URL`, as for Google's SDK.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from urllib.parse import quote

from nitinol.errors import MissingKey, ProviderError
from nitinol.http import Http
from nitinol.provider import ModelInfo, ModelRequest, StreamPart
from nitinol_providers import catalog
from nitinol_providers.endpoint import check_options, checked_url, endpoint, lowered, variable
from nitinol_providers.gemini_answer import GeminiAnswer, classify, retry_delay
from nitinol_providers.gemini_request import NAME, body

_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
_SIGNED = {"authorization", "x-goog-api-key"}
_DEFAULT = "https://generativelanguage.googleapis.com"


class Gemini:
    """A Gemini model. Immutable; any number of agents may share one.

    `Agent.extra` takes what else the API takes, in its own words, such as
    `{"tools": [{"googleSearch": {}}], "generationConfig": {"topK": 40}, "safetySettings": […]}`. It is merged with what
    we send, object by object, and wins; tools are added to ours, and the lower `maxOutputTokens` holds. The API caches
    prompts by itself: `cache` changes nothing.

    Args:
        model: The name sent to Google, such as `gemini-2.5-pro`; `models/…` and `tunedModels/…` are taken as they are.
        api_key: None = from the environment. A base URL of one's own may need none.
        base_url: Up to but without `/v1beta`; None = from the environment, else Google's.
        headers: Sent with each request, after ours and over them.

    Raises:
        MissingKey: Google wants a key, and there is none.
        ConfigurationError: The model is empty, or the base URL is no http address.
    """

    name = NAME

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        check_options("gemini", "gemini:gemini-2.5-pro", model, headers, api_key=api_key, base_url=base_url)
        given = base_url if base_url is not None else os.environ.get("GOOGLE_GEMINI_BASE_URL", "").strip()
        key = api_key if api_key is not None else variable(*_KEYS)
        over = lowered(headers)
        if not key.strip() and not given and _SIGNED.isdisjoint(over):
            raise MissingKey(f"gemini needs a key: set {_KEYS[1]}, or give api_key=")
        self.model = model
        self.base_url = checked_url(given if base_url is not None else given or _DEFAULT, NAME)
        path = f"/v1beta/{'' if '/' in model else 'models/'}{quote(model)}:streamGenerateContent"
        signed = {**({"x-goog-api-key": key.strip()} if key.strip() else {}), **over}
        # Without alt=sse, the stream is one long JSON list.
        self._endpoint = endpoint(self.base_url, path, signed, query="alt=sse")
        self.account = self._endpoint.account

    def __repr__(self) -> str:
        return f"Gemini({self.model!r}, base_url={self._endpoint.shown!r})"

    def info(self) -> ModelInfo:
        """From the catalogue, which is imported once (0.2 s)."""
        return catalog.model_info(self.model.removeprefix("models/"), vendor="google")

    async def stream(self, request: ModelRequest, http: Http) -> AsyncGenerator[StreamPart, None]:
        """Ask the model; see `Provider.stream`."""
        delay: float | None = None

        def refused(status: int, text: str) -> type[ProviderError] | None:
            nonlocal delay
            delay = retry_delay(text)
            return classify(status, text)

        answer, sent = GeminiAnswer(self.model, request), body(self.model, request)
        parts = self._endpoint.ask(http, answer, sent, classify=refused, until=b"[DONE]")
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield part
        except ProviderError as error:
            if error.retry_after is None:
                error.retry_after = delay
            raise
