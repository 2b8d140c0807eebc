"""The yardstick of `cpu_per_run`: the same loop with nothing around it. Request, stream, JSON, tools, and again.

No types, no retry, no events, no journal, no supervisor, no bound on anything: what a careful engineer writes in an
afternoon. It splits the bytes itself, which costs less than httpx's `aiter_lines`; JSON is the standard library's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def add(a: int, b: int) -> int:
    return a + b


def make_client(transport: str) -> httpx.AsyncClient:
    """A client with its defaults, on httpx's own transport or on aiohttp's."""
    if transport == "aiohttp":
        from httpx_aiohttp import HttpxAiohttpClient

        return HttpxAiohttpClient(timeout=60.0)
    return httpx.AsyncClient(timeout=60.0)


async def run(client: httpx.AsyncClient, url: str, prompt: str) -> str:
    """A run of as many turns as it takes; its answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    while True:
        text, calls = await turn(client, url, messages)
        if not calls:
            return text
        messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
        for call in calls:
            value = add(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(value)})


async def turn(client: httpx.AsyncClient, url: str, messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """One request: the text and the tool calls of its answer."""
    body = {
        "model": "bench",
        "messages": messages,
        "tools": [TOOL],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces: list[str] = []
    calls: list[dict[str, Any]] = []
    async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in lines(response):
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            for choice in json.loads(line[6:])["choices"]:
                delta = choice["delta"]
                if delta.get("content"):
                    pieces.append(delta["content"])
                for part in delta.get("tool_calls", ()):
                    if part["index"] == len(calls):
                        calls.append({"id": part["id"], "type": "function", "function": dict(part["function"])})
                    else:
                        calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return "".join(pieces), calls


async def lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of an answer, as they come."""
    rest = b""
    async for chunk in response.aiter_raw():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
