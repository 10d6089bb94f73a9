"""Networks by name, their pretrained weights, and their export."""
