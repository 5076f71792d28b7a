"""Signed model packs: sign, verify, open."""
