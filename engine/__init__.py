"""One optimizer step, one evaluation, and what a person is told of them."""
