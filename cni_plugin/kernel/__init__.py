"""The kernel's doors, one thin file each. No policy in here."""
