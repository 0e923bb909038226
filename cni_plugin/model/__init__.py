"""Values: what is said between the rooms. Nothing here reads a file, a socket or the clock."""
