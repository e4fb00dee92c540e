"""The folder behind a name: one that is there, a shipped model, or a hub id with the keywords of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenvl.checkpoint.folder import resolve

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Keywords of `from_pretrained` that say how a file comes from the hub."""

FILES = ("*.json", "*.safetensors", "*.bin", "*.tiktoken")


def folder_of(name: Any, keywords: Mapping[str, Any], files: tuple[str, ...] = FILES) -> Path:
    """The folder of a checkpoint; `files` of a hub id are downloaded. Raises ValueError where there is none."""
    asked = {key: keywords[key] for key in HUB if keywords.get(key) is not None}
    if not asked or Path(name).is_dir() or str(name).count("/") != 1:
        return resolve(name) / (keywords.get("subfolder") or "")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files), **asked))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"the hub did not give {name} ({str(error).splitlines()[0]}); download it first."
        ) from None
