"""The lab: run trials, keep what they measured, compare methods, and report it."""
