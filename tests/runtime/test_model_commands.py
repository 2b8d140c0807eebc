"""`nitinol models`: what is known of models, from the installed packages' lists."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from nitinol.cli import main
from nitinol.provider import CATALOGS, known_models

SHOP = """
from nitinol import Prices
from nitinol.provider import KnownModel, ModelInfo

def known_models(name=None):
    if name in (None, "tiny", "tiny-2026"):
        prices = Prices(input="0.5", output="2", cache_read="0.05", source="the shop's list (2026-11-01)")
        info = ModelInfo(context_window=4096, max_output_tokens=512, prices=prices)
        yield KnownModel(provider="shop", model=name or "tiny", info=info)
    if name is None:
        yield KnownModel(provider="shop", model="Secret", info=ModelInfo(context_window=8192))
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's package with a list of models, installed."""
    (tmp_path / "nitinol_shop.py").write_text(SHOP)
    installed = tmp_path / "nitinol_shop-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: nitinol-shop\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{CATALOGS}]\nshop = nitinol_shop:known_models\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return tmp_path


def models(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines it prints."""
    assert main(["models", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.splitlines()


def test_a_line_tells_window_limit_prices_and_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    """Under a head; what nobody knows is left out, or unknown."""
    head, tiny, secret = models(capsys, "shop:")
    assert re.split(r"  +", head) == ["model", "window", "output", "$ in", "$ cached", "$ out", "source of prices"]
    assert re.split(r"  +", tiny) == ["shop:tiny", "4,096", "512", "0.5", "0.05", "2", "the shop's list (2026-11-01)"]
    assert re.split(r"  +", secret) == ["shop:Secret", "8,192", "unknown", "unknown", "unknown"]


def test_json_is_a_line_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Money as text."""
    assert [json.loads(line) for line in models(capsys, "shop:", "--json")] == [
        {
            "provider": "shop",
            "model": "tiny",
            "context_window": 4096,
            "max_output_tokens": 512,
            "prices": {"input": "0.5", "cached": "0.05", "output": "2"},
            "prices_when_long": None,
            "source": "the shop's list (2026-11-01)",
        },
        {
            "provider": "shop",
            "model": "Secret",
            "context_window": 8192,
            "max_output_tokens": None,
            "prices": {"input": None, "cached": None, "output": None},
            "prices_when_long": None,
            "source": None,
        },
    ]


def test_the_vendors_models_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every provider whose vendor has a price list. parity: C4"""
    shown = {line.split(":")[0] for line in models(capsys)[1:]}
    assert {"anthropic", "deepseek", "gemini", "groq", "mistral", "openai", "openrouter", "together", "xai"} <= shown
    assert len(list(known_models())) > 1_000


def test_prices_that_rise_with_the_length_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """And both told in JSON."""
    (line,) = models(capsys, "openai:gpt-6-so?")[1:]
    assert re.search(r" 2\+ +0\.2\+ +10\+ +genai-prices .*\d{4}-\d{2}-\d{2}\)$", line)
    (data,) = [json.loads(line) for line in models(capsys, "openai:gpt-6-so?", "--json")]
    assert data["prices"] == {"input": "2", "cached": "0.2", "output": "10"}
    assert all(Decimal(price) > Decimal(data["prices"][name]) for name, price in data["prices_when_long"].items())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("HOP:TIN", ["shop:tiny"]),
        ("shop:*", ["shop:tiny", "shop:Secret"]),
        ("shop:[st]*y", ["shop:tiny"]),
        ("t?ny", ["shop:tiny"]),
        ("tiny-2026", ["shop:tiny-2026"]),
        ("shop:tiny-2026", ["shop:tiny-2026"]),
        ("anthropic:claude-opus-5-5-20261101", ["anthropic:claude-opus-5-5-20261101"]),
        ("gemini:models/gemini-2.5-pro", ["gemini:models/gemini-2.5-pro"]),
    ],
)
def test_a_pattern_chooses(pattern: str, found: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A part of a name, in any case; a shell pattern of all of it; or a name that no list has, but a provider takes."""
    assert [re.split(r"  +", line)[0] for line in models(capsys, pattern)[1:]] == found


@pytest.mark.parametrize("pattern", ["no-such-model", "shop:gpt-4o", "other:tiny-2026", "zzz*"])
def test_nothing_found_is_an_error_that_says_what_to_do(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr, and status 1."""
    assert main(["models", pattern]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"nitinol: nothing is known of a model {pattern!r}; `nitinol models` shows all")


def test_a_list_that_does_not_load_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than left out in silence."""
    (shop / "nitinol_shop-1.0.dist-info" / "entry_points.txt").write_text(f"[{CATALOGS}]\nshop = nitinol_shop:gone\n")
    assert main(["models"]) == 1
    assert capsys.readouterr().err.startswith("nitinol: the list of models 'nitinol_shop:gone' does not load: ")


def test_other_commands_import_no_prices() -> None:
    """`nitinol --help` names the command and stays quick."""
    code = (
        "import sys, nitinol.cli\n"
        "assert nitinol.cli.main(['--help']) == 0\n"
        "assert not {'genai_prices', 'nitinol_providers', 'httpx'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +models +show what is known of models", done.stdout, re.MULTILINE)
