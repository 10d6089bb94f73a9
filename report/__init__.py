"""A run folder as one page: reads files only, and knows nothing of training."""
