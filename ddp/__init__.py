"""Everything that knows there is more than one process; the only importer of torch.distributed."""
