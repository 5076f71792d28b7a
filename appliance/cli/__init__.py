"""The command line `insite`."""
