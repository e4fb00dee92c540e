"""Checkpoints: folders of facts, and tables that rename foreign weights into ours and back."""
