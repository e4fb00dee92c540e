"""Config, model, tokenizer and processor for transformers; `integrations.transformers` registers them."""
