"""Proof of equality with the official model: fixtures recorded from its code against what this project computes.

`certificate` recognises a fixture and hands it to its reader (`tokenizer`, `models`, `preprocess`, `sampling`,
`metrics`, `release`); `official` is the official text scheme, the one place where tags inside a text become markup.
"""
