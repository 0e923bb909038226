"""Errors a runtime can read: one class, the CNI spec's codes, ours from 100.

Not for control flow inside a room: what reaches the runtime is a `CniError`, all else is a bug.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# CNI spec 1.1.0, section 5 "Error": those of the well-known codes that we have a use for.
INCOMPATIBLE_VERSION = 1
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_NETCONF = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50

# Ours. They are documented in the README; a number is never given a new meaning.
APPLY_FAILED = 100
NETNS_FAILED = 101
BAD_POD = 102
REJECTED = 103
CHECK_FAILED = 104
NO_BACKEND = 105
STATE_FAILED = 106
INTERNAL = 199


class CniError(Exception):
    """A failure as the runtime prints it: `code` of the table above, `msg` one line, `details` more."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def bad_field(field: str, value: object, expected: str, code: int = INVALID_NETCONF) -> CniError:
    """Name the field, its value (cut at 80 characters) and what was expected of it."""
    return CniError(code, f"{field}: {_shown(value)} is not valid, expected {expected}")


def no_field(where: str, key: str, value: object, known: "Iterable[str]") -> CniError:
    """Say that the object `where` has no field `key`, and which one is meant, or else all it has."""
    meant = near(key, known)
    expected = f"perhaps {meant}" if meant else "one of " + ", ".join(known)
    return CniError(
        INVALID_NETCONF, f"{where}.{key}: no such field (its value: {_shown(value)}), expected {expected}"
    )


def near(word: str, known: "Iterable[str]") -> str:
    """Return that of `known` which `word` is but for case, underscores and one slip, or ""."""
    plain = word.replace("_", "").lower()
    best, fewest = "", 3
    for candidate in known:
        other = candidate.lower()
        same = _common(plain, other)
        same += _common(plain[same:][::-1], other[same:][::-1])
        # One slip changes at most two neighbours: all else is the same from the one end or the other.
        different = max(len(plain), len(other)) - same
        if different < fewest and same >= 4:
            best, fewest = candidate, different
    return best


def _common(one: str, other: str) -> int:
    """Return how many characters two words have in common from their beginning on."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _shown(value: object) -> str:
    # JSON's words: whoever reads this wrote JSON.
    words = ((None, "null"), (True, "true"), (False, "false"))
    shown = next((word for constant, word in words if value is constant), repr(value))
    return shown if len(shown) <= 80 else shown[:77] + "..."
