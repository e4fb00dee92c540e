"""An OpenAI-compatible server: bytes and text come in through checks, answers and boxes go out (docs/SERVING.md)."""
