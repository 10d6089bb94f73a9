"""What a network is trained for: one file a task, chosen by name."""
