"""Models on the Hugging Face hub. Knows huggingface_hub's errors and says what to do about them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from sparseinfer.errors import SourceError
from sparseinfer.sources.cache import OFFLINE_VARIABLES, offline

_WANTED = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
# Second copies of the same weights, in other layouts.
_UNWANTED = ["original/*", "consolidated*"]
_TIMEOUT = 5.0  # seconds for a first answer, not for the download


def fetch_hub_model(repo: str) -> Path:
    """The local snapshot folder of the hub model `repo` ("org/name"), downloaded where needed.

    Raises:
        SourceError: the repository is missing, gated or without safetensors; there is no network
            (or it is switched off) and it is not in the hub's cache; the disk is full.
    """
    if offline():
        return _cached(repo, f"the network is switched off ({'/'.join(OFFLINE_VARIABLES)})")
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(repo, timeout=_TIMEOUT)
        _check_files(repo, [sibling.rfilename for sibling in found.siblings or ()])
        folder = snapshot_download(
            repo, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, etag_timeout=_TIMEOUT
        )
    except SourceError:
        raise
    except Exception as error:
        if _is_no_answer(error):
            return _cached(repo, "the hub cannot be reached")
        raise _hub_error(repo, error) from error
    return Path(folder)


def _check_files(repo: str, files: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in files):
        return
    advice = "choose a model with safetensors weights (other formats can carry code)"
    if any(name.endswith(".gguf") for name in files):
        advice = "it has .gguf files: download one and give its path"
    raise SourceError(f"{repo} has no .safetensors weights: {advice}")


def _cached(repo: str, why: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=_WANTED, local_files_only=True))
    except Exception as error:
        raise _not_cached(repo, why) from error
    if not _is_complete(folder):
        raise _not_cached(repo, f"{why} and its download was interrupted")
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether config and all shards are there: an interrupted download leaves a snapshot too."""
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False
    return all((folder / name).is_file() for name in {"config.json", *shards})


def _not_cached(repo: str, why: str) -> SourceError:
    return SourceError(
        f"{repo} is not in the local cache and {why}: run once with a network, or download it on "
        "another machine and give the folder"
    )


def _is_no_answer(error: BaseException) -> bool:
    """No network or a hub that is down, as against an answer that says no."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # what kept snapshot_download from asking the hub
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status == 429 or status >= 500
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return True
    library = type(error).__module__.partition(".")[0]  # it differs by version of the hub's client
    return isinstance(error, (ConnectionError, TimeoutError)) or library in (
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
        "urllib3",
    )


def _hub_error(repo: str, error: Exception) -> SourceError:
    from huggingface_hub import errors

    if isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{repo} is gated: accept its licence on the hub's page, then log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceError(
            f"{repo} is not on the hub: check the spelling; if it is private, log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from huggingface_hub import constants

        return SourceError(
            f"no space left on the disk of the hub's cache {constants.HF_HUB_CACHE} while "
            f"fetching {repo}: free some space or set HF_HOME"
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SourceError(f"cannot fetch {repo} from the hub: {reason}")
