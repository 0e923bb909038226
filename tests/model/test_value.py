"""`Value`: a frozen record without dataclasses."""

import pytest

from cni_plugin.model.value import Value


class Point(Value):
    """Two numbers and a name."""

    x: int
    y: int = 0
    name: str = "p"


def test_fields_and_defaults():
    """Red: a field is lost, or a default is not taken."""
    assert Point(x=1).fields() == {"x": 1, "y": 0, "name": "p"}
    assert list(Point(name="q", y=2, x=1).fields()) == ["x", "y", "name"]
    assert repr(Point(x=1)) == "Point(x=1, y=0, name='p')"


def test_equal_and_hash():
    """Red: two equal redirections differ, or two kinds of value are equal."""

    class Other(Value):
        """A field of the same name in another class."""

        x: int

    assert Point(x=1) == Point(x=1, y=0)
    assert hash(Point(x=1)) == hash(Point(x=1, y=0))
    assert Point(x=1) != Point(x=2)
    assert Other(x=1) != Point(x=1)
    assert Point(x=1) != Other(x=1)


def test_frozen():
    """Red: a redirection changes between deciding and acting."""
    point = Point(x=1)
    with pytest.raises(AttributeError, match=r"Point\.x is frozen"):
        point.x = 2
    assert point.replace(y=5) == Point(x=1, y=5)
    assert point == Point(x=1)


@pytest.mark.parametrize(("fields", "word"), [({}, "x is required"), ({"x": 1, "z": 1}, "unknown field z")])
def test_wrong_fields(fields, word):
    """Red: a misspelt field is silently ignored."""
    with pytest.raises(TypeError, match=word):
        Point(**fields)
