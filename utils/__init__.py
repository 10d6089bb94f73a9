"""Leaf tools: no import of ours, no process group, no run state, two users at least."""
