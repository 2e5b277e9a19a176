"""What a request comes to once its model is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparseinfer.config import FinetuningRecord
from sparseinfer.errors import ConfigError, OutputError, UnsupportedError
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.request import (
    SHIFT_BUDGET,
    WARM_START_TOKENS,
    Request,
    check_request,
    open_subject,
    settle,
)
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings

RUN = RunSettings(tokens=1024, context=32, batch=8, micro_batch=4, precision="fp32")
RELU = ObjectiveSettings(act="relu")
ASKED = Request(RELU, RUN, texts=("pydoc",))


@pytest.fixture
def tuned(make_model, write_sparse, tmp_path):
    """A result of fine-tuning."""
    record = FinetuningRecord(
        objective="relu", texts=("pydoc",), text_sha256="0", text_tokens=9, tokens=9,
        layer_sparsity=(0.5, 0.5, 0.5), settings={},
    )  # fmt: skip
    return write_sparse(make_model(), tmp_path / "tuned", hidden_act="relu", finetuning=record)


def settled(model, request=ASKED):
    return settle(request, open_subject(str(model), request.objective))


def test_models_that_were_trained_with_silu_get_a_warm_start(make_model, make_sparse):
    assert settled(make_model()).warm_start == WARM_START_TOKENS
    assert settled(make_sparse((), hidden_act="relu")).warm_start == WARM_START_TOKENS
    assert settled(make_model(hidden_act="relu")).warm_start == 0


def test_a_relu_model_that_was_converted_gets_none(make_model, write_sparse, tmp_path):
    swapped = write_sparse(make_model(hidden_act="relu"), tmp_path / "same", hidden_act="relu")
    assert settled(swapped).warm_start == 0


def test_texts_of_earlier_fine_tunings_are_not_held_out(tuned):
    with pytest.raises(ConfigError, match="was fine-tuned on pydoc before"):
        settled(tuned, replace(ASKED, texts=("coqa",), test_text="pydoc"))


def test_a_test_text_that_is_trained_on_by_another_path(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    request = replace(ASKED, texts=("pydoc", "a.txt"), test_text=str(tmp_path / "a.txt"))
    with pytest.raises(ConfigError, match="would not be held out"):
        check_request(request, probes=False)


def test_what_was_tuned_is_not_begun_anew(tuned, make_model):
    assert settled(tuned).warm_start == 0
    with pytest.raises(UnsupportedError, match="fine-tuned already: a warm start would undo that"):
        settled(tuned, replace(ASKED, warm_start=2000))
    subject = open_subject(str(tuned), RELU)
    assert subject.dense.path == make_model()


def test_defaults_that_depend_on_the_model(make_model):
    found = settled(make_model())
    assert found.objective.schedule is not None
    assert found.shift_budget is None
    shifted = settled(make_model(), replace(ASKED, objective=ObjectiveSettings(act="fatrelu")))
    assert shifted.shift_budget == SHIFT_BUDGET


def test_fatrelu_without_a_way_to_run_the_model():
    request = replace(ASKED, objective=ObjectiveSettings(act="fatrelu"))
    check_request(request, probes=True)
    with pytest.raises(ConfigError, match="open_probe"):
        check_request(request, probes=False)


# ---- the folder of a run


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(tmp_path):
    folder = RunFolder(tmp_path / "out")
    assert not folder.claim({"run": {"rate": 1}})
    for kept in (folder.text, folder.generated, folder.warm_start):
        kept.mkdir()
    assert not folder.claim({"run": {"rate": 2}})
    assert folder.found() == {"run": {"rate": 2}}
    assert not folder.text.exists()
    assert folder.generated.exists()
    assert folder.warm_start.exists()


def test_memory_may_be_saved_in_a_run_that_was_begun(tmp_path):
    folder = RunFolder(tmp_path / "out")
    before = {"run": {"micro_batch": 8, "gradient_checkpointing": False}, "shift_budget": 0.01}
    folder.claim(before)
    (folder.of("tuned") / "state").mkdir(parents=True)
    (folder.of("tuned") / "state" / "state.json").write_text("{}")
    after = {"run": {"micro_batch": 2, "gradient_checkpointing": True}, "shift_budget": 0.05}
    assert folder.claim(after)


def test_a_result_is_known_by_what_it_was_made_with(tmp_path):
    folder = RunFolder(tmp_path / "out")
    settings = {"run": {"micro_batch": 8, "rate": 1.0}, "text": ("a",), "shift_budget": 0.01}
    folder.claim(settings)
    assert not folder.has_written("tuned", settings)
    folder.note_written("tuned", settings)
    assert folder.has_written("tuned", settings)
    assert not folder.has_written("dense", settings)
    assert folder.has_written("tuned", settings | {"run": {"micro_batch": 2, "rate": 1.0}})
    assert not folder.has_written("tuned", settings | {"shift_budget": 0.02})
    assert not folder.has_written("tuned", settings | {"text": ("b",)})


def fail_with(folder, error):
    with folder.tidied():
        raise error


def test_a_failure_leaves_what_there_is_to_go_on_with(tmp_path):
    folder = RunFolder(tmp_path / "out")
    folder.claim({})
    folder.text.mkdir()
    with pytest.raises(OutputError):
        fail_with(folder, OutputError("with a text"))
    assert folder.text.exists()
    folder.text.rmdir()
    with pytest.raises(KeyboardInterrupt):
        fail_with(folder, KeyboardInterrupt())
    assert folder.path.exists()
    with pytest.raises(OutputError):
        fail_with(folder, OutputError("with nothing"))
    assert not folder.path.exists()
