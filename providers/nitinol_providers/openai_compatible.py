"""Chat completions: the protocol of OpenAI's first chat API, which most vendors and every local server speak.

    model string            key                    base URL from
    openai-compatible:…     OPENAI_API_KEY         OPENAI_BASE_URL, else OpenAI's own
    ollama:…                OLLAMA_API_KEY (if)    OLLAMA_HOST
    openrouter:…            OPENROUTER_API_KEY
    deepseek:…              DEEPSEEK_API_KEY
    mistral:…               MISTRAL_API_KEY
    groq:…                  GROQ_API_KEY           GROQ_BASE_URL
    together:…              TOGETHER_API_KEY       TOGETHER_BASE_URL
    vllm:…                  VLLM_API_KEY (if)      VLLM_BASE_URL, else port 8000 of this machine
    llamacpp:…              LLAMA_API_KEY (if)     LLAMACPP_BASE_URL, else port 8080 of this machine

(if): sent if it is set. Any other server: `OpenAICompatible(model, base_url=…, api_key=…)`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from functools import partial

from nitinol.errors import ConfigurationError
from nitinol.http import Http
from nitinol.provider import ModelInfo, ModelRequest, StreamPart
from nitinol_providers import catalog
from nitinol_providers.chat_answer import ChatAnswer
from nitinol_providers.chat_request import body
from nitinol_providers.endpoint import authorization, check_options, checked_url, endpoint, lowered
from nitinol_providers.overflow import classify
from nitinol_providers.vendors import VENDORS, base_url_of


class OpenAICompatible:
    """A model behind a chat completions API. Immutable; any number of agents may share one.

    Args:
        model: The name sent to the server.
        name: The vendor. A prefix of model strings, such as `groq` or `llamacpp` (`help(nitinol_providers.openai_compatible)`
            lists them), brings its address, its key's variable and its dialect; any other is plain OpenAI with a name of
            its own, and needs `base_url`.
        base_url: Up to but without `/chat/completions`; None = from the vendor's variable, else its own address.
        api_key: None = from the vendor's variable.
        headers: Sent with each request, after ours and over them.

    Raises:
        MissingKey: The vendor wants a key, and there is none.
        ConfigurationError: The model is empty, or the base URL is no http address.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str = "openai-compatible",
        base_url: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        check_options(str(name), f"{name}:llama3.2", model, headers, name=name, base_url=base_url, api_key=api_key)
        if name not in VENDORS and base_url is None:
            raise ConfigurationError(f"{name!r} is no known vendor ({', '.join(sorted(VENDORS))}); give base_url=")
        vendor = VENDORS.get(name) or replace(VENDORS["openai-compatible"], name=name, key_variable=None)
        url, is_default = (base_url, False) if base_url is not None else base_url_of(vendor)
        # A server of one's own may want no key; OpenAI does.
        required = vendor.key_required and (bool(vendor.catalog) or is_default)
        given = lowered(headers)
        self.name = name
        self.model = model
        self.base_url = checked_url(url, name)
        self._vendor = vendor
        required = required and "authorization" not in given
        signed = {**authorization(api_key, vendor.key_variable, required, name), **given}
        self._endpoint = endpoint(self.base_url, "/chat/completions", signed)
        self.account = self._endpoint.account

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.model!r}, name={self.name!r}, base_url={self._endpoint.shown!r})"

    def info(self) -> ModelInfo:
        """From the catalogue, which is imported once (0.2 s). Of a local server nothing is known: None, not free."""
        url = self.base_url if self.name == "openai-compatible" else None
        return catalog.model_info(self.model, vendor=self._vendor.catalog, url=url)

    def stream(self, request: ModelRequest, http: Http) -> AsyncGenerator[StreamPart, None]:
        """Ask the model; see `Provider.stream`."""
        answer, sent = ChatAnswer(self.name, self.model, request), body(self._vendor, self.model, request)
        return self._endpoint.ask(http, answer, sent, classify=classify, until=b"[DONE]")


# The entry points of the vendors' prefixes.
deepseek = partial(OpenAICompatible, name="deepseek")
groq = partial(OpenAICompatible, name="groq")
llamacpp = partial(OpenAICompatible, name="llamacpp")
mistral = partial(OpenAICompatible, name="mistral")
ollama = partial(OpenAICompatible, name="ollama")
openrouter = partial(OpenAICompatible, name="openrouter")
together = partial(OpenAICompatible, name="together")
vllm = partial(OpenAICompatible, name="vllm")
openai_compatible = OpenAICompatible
"""What `openai-compatible:` means to an installation whose metadata are older."""
