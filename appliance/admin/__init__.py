"""The status site: server-rendered pages for a hospital's own network, nothing without a log-in."""
