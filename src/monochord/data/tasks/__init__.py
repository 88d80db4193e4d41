"""Synthetic tasks with a known truth: one file a task, each an entry of the catalog of data."""
