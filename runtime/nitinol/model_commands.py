"""The verb of the command line that says what is known of models: models. It asks no server and needs no key."""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from nitinol.errors import UnknownModel

if TYPE_CHECKING:
    from nitinol.prices import PriceList
    from nitinol.provider import KnownModel

_SHORT, _LONG = 1000, 1_000_000
"""Tokens of a request that no tier of prices is for; and of a long one, where the window is not known."""
_Rates = dict[str, Decimal | None]
"""Of a million tokens: `input`, `cached`, `output`; `None` = unknown."""


def add_commands(commands: Any) -> None:
    """Add the verb to the parser's."""
    models = cast(
        "argparse.ArgumentParser",
        commands.add_parser(
            "models",
            help="show what is known of models: windows, limits and prices",
            description="Prices are US dollars per million tokens; + marks those that rise with the length of the request.",
        ),
    )
    models.set_defaults(command=_models)
    models.add_argument(
        "pattern",
        nargs="?",
        default="",
        help="a part of provider:model, a shell pattern of it or of the model, or a name that a provider takes",
    )
    models.add_argument("--json", action="store_true", help="print a line of JSON for each model")


def _models(options: argparse.Namespace) -> int:
    found = _find(options.pattern)
    if not found:
        raise UnknownModel(
            f"nothing is known of a model {options.pattern!r}; `nitinol models` shows all that are known, and"
            " Agent(prices=, context_window=) takes what you know of another"
        )
    if options.json:
        for known in found:
            print(json.dumps(_data(known), ensure_ascii=False))
        return 0
    from nitinol import terminal

    header = ("model", "window", "output", "$ in", "$ cached", "$ out", "source of prices")
    for line in terminal.table([header, *map(_cells, found)], right=(1, 2, 3, 4, 5)):
        print(line)
    return 0


def _find(pattern: str) -> list[KnownModel]:
    from nitinol.provider import known_models

    wanted = pattern.lower()
    globs = any(sign in wanted for sign in "*?[")
    whole = wanted if ":" in wanted else f"*:{wanted}"
    listed = [
        known for known in known_models() if (fnmatchcase(_name(known), whole) if globs else wanted in _name(known))
    ]
    if listed or globs:
        return listed
    # No list has dated names and aliases; they are asked for as an agent would.
    provider, colon, model = pattern.partition(":")
    named = known_models(model if colon else pattern)
    return [known for known in named if not colon or known.provider == provider]


def _name(known: KnownModel) -> str:
    return f"{known.provider}:{known.model}".lower()


def _cells(known: KnownModel) -> tuple[str, ...]:
    info = known.info
    limits = ("" if tokens is None else f"{tokens:,}" for tokens in (info.context_window, info.max_output_tokens))
    short, long = _rates(info.prices, _SHORT), _rates(info.prices, info.context_window or _LONG)
    rates = (
        "unknown" if rate is None else f"{_plain(rate)}{'+' if rate != long[name] else ''}"
        for name, rate in short.items()
    )
    return (f"{known.provider}:{known.model}", *limits, *rates, info.prices.source if info.prices is not None else "")


def _data(known: KnownModel) -> dict[str, Any]:
    info = known.info
    short, long = _rates(info.prices, _SHORT), _rates(info.prices, info.context_window or _LONG)
    return {
        "provider": known.provider,
        "model": known.model,
        "context_window": info.context_window,
        "max_output_tokens": info.max_output_tokens,
        "prices": _texts(short),
        "prices_when_long": _texts(long) if long != short else None,
        "source": info.prices.source if info.prices is not None else None,
    }


def _rates(prices: PriceList | None, length: int) -> _Rates:
    """What a million tokens cost now in a request of this length, whatever kind of price list it is."""
    from nitinol.usage import Usage

    def rate(usage: Usage, without: Usage) -> Decimal | None:
        cost, base = (prices.cost(usage), prices.cost(without)) if prices is not None else (None, None)
        return None if cost is None or base is None else (cost - base) * 1_000_000 / length

    read = Usage(input_tokens=length)
    return {
        "input": rate(read, Usage()),
        "cached": rate(Usage(input_tokens=length, cache_read_tokens=length), Usage()),
        "output": rate(Usage(input_tokens=length, output_tokens=length), read),
    }


def _plain(amount: Decimal) -> str:
    """As few digits as say it all, and no exponent."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _texts(rates: _Rates) -> dict[str, str | None]:
    return {name: None if rate is None else _plain(rate) for name, rate in rates.items()}
