"""Durable work in progress, on DBOS."""
