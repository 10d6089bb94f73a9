"""Which samples, when and for whom; how they are read, and what is done to them before the network."""
