"""Qwen-VL for transformers: configuration, model, tokenizer and processor; `integrations.transformers` registers them."""
