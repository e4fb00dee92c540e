"""Our models inside vLLM: `plugin` is what vLLM calls, the rest is what it then finds."""
