"""Frozen values without `dataclasses`, whose import costs more (17 ms) than a whole ADD may.

Not a validator and not a serialiser: a `Value` only holds, compares and prints its fields.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_):  # noqa: ANN003, ANN201 - its own, true signature is above
        """Stand in for `typing.dataclass_transform`: importing typing costs 11 ms."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=True)
class Value:
    """A frozen record: fields are the annotations of the class, all passed by keyword.

    A field without a class attribute is required; a class attribute is its default.
    Raises `TypeError` for an unknown or missing field, `AttributeError` on assignment.
    """

    def __init__(self, **fields: "Any") -> None:
        for name in type(self).__annotations__:
            if name in fields:
                self.__dict__[name] = fields.pop(name)
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__}: field {name} is required")
        if fields:
            raise TypeError(f"{type(self).__name__}: unknown field {', '.join(sorted(fields))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def fields(self) -> "dict[str, Any]":
        """Return every field by name, defaults included, in the order of the class."""
        return {name: getattr(self, name) for name in type(self).__annotations__}

    def replace(self, **changes: "Any") -> "Self":
        """Return a copy with `changes`."""
        return type(self)(**{**self.__dict__, **changes})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.fields().values())))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.fields().items())
        return f"{type(self).__name__}({inner})"
