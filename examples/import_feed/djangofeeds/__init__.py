"""Feeds and their entries, imported over HTTP."""
