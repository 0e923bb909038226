"""The JSON reader without `json`: equal where JSON is sound, a plain `ValueError` where it is not."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.model import minijson

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
# What is wrong, and a word its error must have.
BROKEN = [
    (b"", "expected"),
    (b" ", "expected"),
    (b"{", "Expecting"),
    (b"[1,", "expected"),
    (b'{"a"}', "Expecting"),
    (b"{1:2}", "Expecting"),
    (b'"\x01"', "control character"),
    (b'"\\u12', "escape"),
    (b'"abc', "Unterminated"),
    (b"tru", "expected"),
    (b"{} {}", "extra"),
    (b"\xff", "UTF-8"),
    (b"\xef\xbb\xbf{}", "expected"),
    (b"NaN", "NaN"),
    (b"[-Infinity]", "Infinity"),
    (b"1e999", "1e999"),
    (b"[" * 100_000, "deep"),
    (b'{"a":' * 100_000, "deep"),
    (b"9" * 5000, "digits"),
    (b'{"a":1,"b":2,"a":3}', "'a' appears twice"),
]


@given(DOCUMENTS)
def test_round_trip(document):
    """Red: a value changes between stdin and stdout, or another JSON reader sees another value."""
    text = minijson.dumps(document)
    assert json.loads(text) == document
    assert minijson.loads(text.encode("utf-8", "backslashreplace")) == document
    assert minijson.loads(json.dumps(document, indent=1).encode()) == document


@pytest.mark.parametrize(("data", "word"), BROKEN)
def test_broken(data, word):
    """Red: broken JSON is read as something, or raises what nobody expects."""
    with pytest.raises(ValueError, match=word):
        minijson.loads(data)


def test_broken_in_a_bare_interpreter():
    """Red: without the json module, which pytest has imported and the plugin has not, the C scanner's error is lost."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cni_plugin.model import minijson\n"
        "for text in sys.stdin.read().split('|'):\n"
        "    try: print('read', minijson.loads(text.encode()))\n"
        "    except ValueError as error: print('refused', error)\n"
    )
    texts = [data.decode() for data, _ in BROKEN if data.isascii() and len(data) < 100]
    command = [sys.executable, "-IS", "-c", script, ROOT]
    done = subprocess.run(command, input="|".join(texts), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * len(texts)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_only_json_is_printed(value):
    """Red: something that is not JSON reaches a runtime or a record."""
    with pytest.raises((TypeError, ValueError)):
        minijson.dumps(value)


def test_many_keys():
    """Red: a large object takes quadratic work (the suite's timeout), duplicate or not."""
    pairs = ",".join(f'"{at}":1' for at in range(200_000))
    assert len(minijson.loads(f"{{{pairs}}}".encode())) == 200_000
    with pytest.raises(ValueError, match="twice"):
        minijson.loads(f'{{{pairs},"199999":1}}'.encode())
