"""Generation: a KV cache, a grammar for boxes, sampling, and an engine that streams and batches."""
