"""A run as a file: half precision with what it lost, a digest, a safe reader, a durable store."""
