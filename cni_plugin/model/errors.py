"""Errors a runtime can read: one class, the CNI spec's codes, ours from 100.

Not for control flow inside a room: what reaches the runtime is a `CniError`, all else is a bug.
"""

# CNI spec 1.1.0, section 5 "Error", well-known codes.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_NETCONF = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51

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
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return CniError(code, f"{field}: {shown} is not valid, expected {expected}")
