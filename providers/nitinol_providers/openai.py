"""The Responses API, of OpenAI and of xAI.

    model string    key               base URL from
    openai:…        OPENAI_API_KEY    OPENAI_BASE_URL, else OpenAI's own
    xai:…           XAI_API_KEY

Nothing is stored at the vendor: each request holds the whole conversation, and a model's own thinking goes back to it
encrypted, as it came. Any other model gets the words alone.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from functools import partial

from nitinol.errors import ConfigurationError
from nitinol.http import Http
from nitinol.provider import ModelInfo, ModelRequest, StreamPart
from nitinol_providers import catalog
from nitinol_providers.endpoint import authorization, check_options, checked_url, endpoint, lowered, variable
from nitinol_providers.overflow import classify
from nitinol_providers.responses_answer import ResponsesAnswer
from nitinol_providers.responses_request import DIALECTS, OPENAI, body


class OpenAI:
    """A model behind the Responses API. Immutable; any number of agents may share one.

    `thinking=` is sent as a level of effort (tokens become one), and summaries of the thinking are asked for.
    `temperature=` is left out for models that think, which refuse it, and `thinking=` for models that do not, so that a
    fallback does not fail on an option of the first model. `extra=` is sent as it is, whatever the model: its `tools`
    (the vendor's own, such as `{"type": "web_search"}`) and `include` are added to ours, its objects (`reasoning`,
    `text`) merged, of two `max_output_tokens` the lower one holds, and the rest replaces ours. A schema is strict, for a tool and for `output=`, where strict mode can
    say it.

    Args:
        model: The name sent to the vendor.
        api_key: None = from `OPENAI_API_KEY`. A server of one's own may want none.
        base_url: Up to but without `/responses`; None = from `OPENAI_BASE_URL`, else OpenAI's own.
        headers: Sent with each request, after ours and over them.
        organization: None = from `OPENAI_ORG_ID`.
        project: None = from `OPENAI_PROJECT_ID`.
        name: The vendor: `"openai"`, `"xai"` (which brings its own address, variable and dialect), or another, which
            speaks as OpenAI does and needs `base_url`.

    Raises:
        MissingKey: The vendor wants a key, and there is none.
        ConfigurationError: The model is empty, or the base URL is no http address.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        organization: str | None = None,
        project: str | None = None,
        name: str = "openai",
    ) -> None:
        texts = {
            "api_key": api_key,
            "base_url": base_url,
            "organization": organization,
            "project": project,
            "name": name,
        }
        check_options(str(name), f"{name}:gpt-5.4", model, headers, **texts)
        if name not in DIALECTS and base_url is None:
            raise ConfigurationError(f"{name!r} is no known vendor ({', '.join(sorted(DIALECTS))}); give base_url=")
        dialect = DIALECTS.get(name) or replace(OPENAI, name=name, key_variable=None, catalog=None)
        given = base_url if base_url is not None else os.environ.get(dialect.url_variable or "", "").strip()
        self.name = name
        self.model = model
        self.base_url = checked_url(dialect.base_url if base_url is None and not given else given, name)
        self._dialect = dialect
        told = {"openai-organization": organization, "openai-project": project}
        if name == "openai":
            told["openai-organization"] = organization or variable("OPENAI_ORG_ID")
            told["openai-project"] = project or variable("OPENAI_PROJECT_ID")
        over = lowered(headers)
        signed = {
            **authorization(api_key, dialect.key_variable, not given and "authorization" not in over, name),
            **{header: value for header, value in told.items() if value},
            **over,
        }
        self._endpoint = endpoint(self.base_url, "/responses", signed)
        self.account = self._endpoint.account

    def __repr__(self) -> str:
        return f"OpenAI({self.model!r}, name={self.name!r}, base_url={self._endpoint.shown!r})"

    def info(self) -> ModelInfo:
        """From the catalogue, which is imported once (0.2 s), by the vendor's name, wherever its API is."""
        return catalog.model_info(self.model, vendor=self._dialect.catalog)

    def stream(self, request: ModelRequest, http: Http) -> AsyncGenerator[StreamPart, None]:
        """Ask the model; see `Provider.stream`."""
        answer, sent = ResponsesAnswer(self.name, self.model, request), body(self._dialect, self.model, request)
        return self._endpoint.ask(http, answer, sent, classify=classify)


xai = partial(OpenAI, name="xai")
"""The entry point of `xai:`."""
