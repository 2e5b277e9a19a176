import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from sparseinfer.errors import SourceError
from sparseinfer.sources.hub import fetch_hub_model

REPO = "org/name"
FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """An error as the client raises it; it takes the response of whichever HTTP library it has."""
    try:
        import httpx2 as http
    except ImportError:
        http = httpx
    request = http.Request("GET", "http://hub.invalid/")
    return kind("first line\nsecond line", response=http.Response(status, request=request))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for the hub: a list of files or an error, and a local cache or none."""
    snapshot = tmp_path / "snapshot"
    state = SimpleNamespace(answer=FILES, snapshot=snapshot, downloads=[], asked=0)

    def model_info(self, repo, **options):
        state.asked += 1
        assert options["timeout"] <= 10
        if isinstance(state.answer, Exception):
            raise state.answer
        files = [SimpleNamespace(rfilename=name) for name in state.answer]
        return SimpleNamespace(siblings=files)

    def snapshot_download(repo, **options):
        if not options.get("local_files_only"):
            state.downloads.append(options)
        elif not snapshot.exists():
            raise errors.LocalEntryNotFoundError("not\ncached")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def fill(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).touch()


def test_downloads_only_what_is_used(hub):
    assert fetch_hub_model(REPO) == hub.snapshot
    (options,) = hub.downloads
    assert set(options["allow_patterns"]) == {
        *("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja")
    }


@pytest.mark.parametrize("files", [["pytorch_model.bin", "config.json"], ["README.md"], []])
def test_without_safetensors_is_refused_before_download(hub, refuses, files):
    hub.answer = files
    with refuses(SourceError, REPO, "safetensors"):
        fetch_hub_model(REPO)
    assert hub.downloads == []


def test_gguf_only_says_how(hub, refuses):
    hub.answer = ["a.Q4.gguf"]
    with refuses(SourceError, REPO, ".gguf"):
        fetch_hub_model(REPO)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(errors.GatedRepoError, 403), ["gated", "hf auth login"]),
        (http_error(errors.RepositoryNotFoundError, 404), ["not on the hub", "spelling"]),
        (http_error(errors.HfHubHTTPError, 400), ["first line second line"]),
        (OSError(28, "No space left on device"), ["no space left", "HF_HOME"]),
        (ValueError("odd\nthing"), ["odd thing"]),
    ],
)
def test_answers_that_say_no(hub, refuses, error, words):
    hub.answer = error
    fill(hub.snapshot, "config.json", "model.safetensors")  # does not hide them
    with refuses(SourceError, REPO, *words):
        fetch_hub_model(REPO)


NO_ANSWER = [
    httpx.ConnectError("no\nroute"),
    ConnectionError("refused"),
    TimeoutError(),
    http_error(errors.HfHubHTTPError, 503),
    errors.OfflineModeIsEnabled("off"),
]


@pytest.mark.parametrize("error", NO_ANSWER, ids=repr)
def test_without_an_answer_the_cache_is_used(hub, error):
    hub.answer = error
    fill(hub.snapshot, "config.json", "model.safetensors")
    assert fetch_hub_model(REPO) == hub.snapshot


@pytest.mark.parametrize("error", NO_ANSWER, ids=repr)
def test_without_an_answer_and_cache_is_refused(hub, refuses, error):
    hub.answer = error
    with refuses(SourceError, REPO, "run once with a network", "another machine"):
        fetch_hub_model(REPO)


def test_offline_asks_nobody(hub, monkeypatch, refuses):
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with refuses(SourceError, REPO, "switched off", "HF_HUB_OFFLINE", "another machine"):
        fetch_hub_model(REPO)
    assert hub.asked == 0
    fill(hub.snapshot, "config.json", "model.safetensors")
    assert fetch_hub_model(REPO) == hub.snapshot


def test_interrupted_download_is_not_used(hub, monkeypatch, refuses):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fill(hub.snapshot, "config.json", "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (hub.snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with refuses(SourceError, REPO, "interrupted"):
        fetch_hub_model(REPO)
    (hub.snapshot / "model-2.safetensors").touch()
    assert fetch_hub_model(REPO) == hub.snapshot
