"""How often each row decided, from the counters of rules: which rules decide, and which only lead there.

Pure. eBPF's programs count rows themselves.
"""

# In the order of the contract's tables.
ROWS = (*(f"O{number}" for number in range(1, 12)), "udp443", *(f"I{number}" for number in range(1, 6)))
# Chains whose rules decide, with their table. In the others a packet meets rows again that it has met or will
# meet in these: to get a zone, a mark, or a second hook.
DECIDING = {
    "nat_prerouting": "nat",
    "guest": "nat",
    "nat_output": "nat",
    "proxy": "nat",
    "captured": "nat",
    "inbound": "mangle",
    "quic_captured": "filter",
    "quic_guest": "filter",
}


def tally(counted: "list[tuple[str, str, int]]") -> "dict[str, int]":
    """Return hits by row, those of none left out, from (chain, comment, packets) of every rule."""
    found = dict.fromkeys(ROWS, 0)
    for chain, comment, packets in counted:
        row = _decided(chain, comment.partition(" ")[0])
        if row:
            found[row] += packets
    # Both were another row's on their way, in table nat: no rule there is about QUIC, and in tproxy mode none
    # is about a call of the proxy's to its own pod.
    found["O11"] -= found["udp443"]
    if any(chain == "inbound" for chain, _, _ in counted):
        found["O5"] -= found["O4"]
    return {row: packets for row, packets in found.items() if packets > 0}


def _decided(chain: str, row: str) -> str:
    """Return the row that a rule's packets are to be counted for, or "" if it does not decide."""
    if DECIDING.get(chain) == "filter":
        return "udp443" if row in ("O9", "O10") else ""
    return row if chain in DECIDING and row in ROWS else ""
