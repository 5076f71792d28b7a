"""The ledger (what we know of every study) and the spool (the bytes we received)."""
