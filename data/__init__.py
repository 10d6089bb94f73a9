"""Which samples, when and for whom; how they are read, and what the network gets of them."""
