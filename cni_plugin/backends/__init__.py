"""Backends of one meaning: each makes a Redirection true in a network namespace."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from cni_plugin.backends.common import Placement
    from cni_plugin.model.redirection import Redirection

    class Backend(Protocol):
        """What a backend does, always in the network namespace the process is in.

        `families` are the IP versions to program: (4,), (6,) or (4, 6).
        """

        name: str

        def probe(self, redirection: Redirection, families: tuple[int, ...]) -> None:
            """Raise `Unsupported` if this kernel or host cannot; cheap, called before each `add`."""

        def add(self, redirection: Redirection, families: tuple[int, ...]) -> None:
            """Make it so, replacing what is there. Raises `Unsupported` or `OSError`, nothing changed."""

        def check(self, redirection: Redirection, families: tuple[int, ...]) -> list[str]:
            """Return what is missing, changed or added, a line each."""

        def counters(self) -> dict[str, int]:
            """Return how often each row decided since the last `add`; rows that never did are left out."""

        def delete(
            self,
            redirection: Redirection = ...,
            kept: Redirection | None = ...,
            families: tuple[int, ...] = ...,
        ) -> None:
            """Remove what `redirection` made; what is not there is no error. Raises `OSError`.

            The rules go; addresses and routes go unless `kept`, for `families`, needs them too.
            """

        def forget(self, cookie: int) -> None:
            """Remove what is left outside a network namespace that is gone. Raises `OSError`."""


NAMES = ("nftables", "iptables", "ebpf")


def load(name: str, cache_dir: str = "/run/mesh-redirect", placement: "Placement | None" = None) -> "Backend":
    """Return the backend `name`; only its own modules are imported.

    `cache_dir` keeps what it found out; `placement` is where eBPF programs are pinned and attached.
    """
    if name == "ebpf":
        from cni_plugin.backends.ebpf import Ebpf  # noqa: PLC0415 - only what is used is imported

        return Ebpf(placement)
    if name == "nftables":
        from cni_plugin.backends.nftables import Nftables  # noqa: PLC0415 - same

        return Nftables()
    from cni_plugin.backends.iptables import Iptables  # noqa: PLC0415 - same

    return Iptables(cache_dir)
