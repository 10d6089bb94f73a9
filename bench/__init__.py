"""What the harness costs, beside a bare loop and beside peers."""
