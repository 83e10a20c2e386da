"""Command line: arguments only."""
