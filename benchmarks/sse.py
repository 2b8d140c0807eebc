"""How fast the SSE parser is beside httpx-sse's: `python benchmarks/sse.py [megabytes]`.

Both parse the same bytes in the same run, twice: one event for each chunk, as providers send them, and in reads of
16 KiB, as they come from a fast network.
"""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from httpx_sse._decoders import SSEDecoder, SSELineDecoder

from nitinol.sse import SseParser

EVENT = (
    b'data: {"id":"chatcmpl-DgLaYGHK2rvWGBIg","object":"chat.completion.chunk","created":1795402469,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"na\xc3\xafve pieces"},"logprobs":null,"finish_reason":null}]}\n\n'
)


def ours(chunks: Iterable[bytes]) -> int:
    parser = SseParser()
    return sum(len(parser.feed(chunk)) for chunk in chunks)


def httpx_sse(chunks: Iterable[bytes]) -> int:
    text, lines, events = codecs.getincrementaldecoder("utf-8")(), SSELineDecoder(), SSEDecoder()
    return sum(events.decode(line) is not None for chunk in chunks for line in lines.decode(text.decode(chunk)))


def seconds(parse: Callable[[Iterable[bytes]], int], chunks: Sequence[bytes], expected: int) -> float:
    """The best of three."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        found = parse(chunks)
        times.append(time.perf_counter() - start)
        assert found == expected, f"{parse.__name__} found {found} events of {expected}"
    return min(times)


def main(megabytes: int) -> None:
    count = megabytes * 10**6 // len(EVENT)
    body = EVENT * count
    for title, chunks in {
        "one event a chunk": [EVENT] * count,
        "reads of 16 KiB": [body[at : at + 2**14] for at in range(0, len(body), 2**14)],
    }.items():
        mine, theirs = seconds(ours, chunks, count), seconds(httpx_sse, chunks, count)
        rates = f"nitinol {mine:.3f} s ({megabytes / mine:.0f} MB/s), httpx-sse {theirs:.3f} s ({megabytes / theirs:.0f} MB/s)"
        print(f"sse, {megabytes} MB, {title}: {rates}, ratio {theirs / mine:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
