"""Sparse beside dense."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import expect

from .conftest import DESKTOP, PHONE, Visit
from .stage import Script, refusal, sparsity_info

WORDS = [f"word{i} " for i in range(20)]


@pytest.mark.parametrize(
    "screen", [{"viewport": DESKTOP}, {"viewport": PHONE}], ids=["wide", "phone"]
)
def test_the_same_prompt_runs_twice_and_stands_side_by_side(visit: Visit, screen):
    visit.stage.scripts.extend([Script(WORDS, pause=0.001), Script([*WORDS, "more"], pause=0.002)])
    visit.open()
    visit.compare()
    visit.ask("Hi")
    sparse, dense = visit.stage.requests
    assert sparse.pop("sparsity", None) is None
    assert dense.pop("sparsity") is False
    assert sparse == dense
    assert isinstance(sparse["seed"], int)

    expect(visit.answers).to_have_text(["".join(WORDS).strip(), "".join([*WORDS, "more"])])
    verdict = visit.page.locator(".verdict")
    expect(verdict).to_contain_text("times as fast as dense.")
    expect(verdict).to_contain_text("The texts agree for 20 words, then differ.")
    expect(verdict).to_contain_text(f"Both with seed {sparse['seed']}.")
    assert visit.page.locator("mark").all_text_contents() == ["more"]
    for side in ("sparse", "dense"):
        expect(visit.page.locator(f"#speed-bars .{side} .value")).not_to_have_text("–")
    one, other = (it.bounding_box() for it in visit.page.locator(".answer").all())
    assert one is not None
    assert other is not None
    if screen["viewport"] is DESKTOP:
        assert one["y"] == other["y"]
        assert one["x"] + one["width"] < other["x"]
    else:
        assert one["x"] == other["x"]
        assert one["y"] + one["height"] < other["y"]


def test_a_greedy_answer_needs_no_seed_and_a_given_one_is_kept(visit: Visit):
    visit.open()
    visit.compare()
    visit.page.locator("#settings-button").click()
    visit.page.get_by_label("Temperature").fill("0")
    visit.ask("Hi")
    expect(visit.page.locator(".verdict")).to_have_text(
        "Too short to compare speed. Both texts are the same. Both greedy."
    )
    visit.page.get_by_label("Temperature").fill("1")
    visit.page.get_by_label("Seed").fill("0")
    visit.ask("Hi")
    assert [it.get("seed") for it in visit.stage.requests] == [None, None, 0, 0]


def test_the_conversation_goes_on_with_the_sparse_answer(visit: Visit):
    visit.stage.scripts.extend([Script(["sparse says"]), Script(["dense says"])])
    visit.open()
    visit.compare()
    visit.ask("Hi")
    expect(visit.page.locator(".verdict")).to_contain_text("differ from the first word on")
    assert visit.page.locator("mark").count() == 0
    visit.ask("And?")
    assert visit.stage.requests[2]["messages"][1]["content"] == "sparse says"


def test_the_side_that_runs_is_the_one_to_be_seen(visit: Visit):
    visit.stage.permits = threading.Semaphore(103)
    visit.stage.scripts.extend([Script(["long\n"] * 100), Script(["short"] * 4)])
    visit.open()
    visit.compare()
    visit.send("Hi")
    sparse, dense = visit.answers.first, visit.answers.last
    expect(dense).to_have_text("short" * 3)
    expect(dense).to_be_in_viewport()
    visit.stage.permits.release()
    expect(visit.page.locator(".verdict")).to_be_in_viewport()
    expect(sparse).to_be_in_viewport()
    expect(dense).not_to_be_in_viewport()


def test_stop_ends_both(visit: Visit):
    visit.stage.permits = threading.Semaphore(1)
    visit.open()
    visit.compare()
    visit.send("Hi")
    expect(visit.answers.first).to_have_text("Hello")
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator(".answer header")).to_have_text(["SparseStopped", "DenseDid not run"])
    assert len(visit.stage.requests) == 1


def test_a_model_whose_sparsity_cannot_be_switched_off(visit: Visit):
    visit.refusals = True
    visit.stage.scripts.append(Script())
    reason = "sparsity: this model has a ReLU, whose zeros are exact"
    visit.stage.scripts.append(refusal(400, reason, param="sparsity"))
    visit.open()
    visit.compare()
    visit.ask("Hi")
    expect(visit.answers.first).to_have_text("Hello there.")
    expect(visit.page.locator(".notice").last).to_have_text(
        f"Sparsity cannot be switched off here. {reason}."
    )
    expect(visit.page.get_by_role("switch")).to_be_disabled()
    expect(visit.page.locator("#compare-note")).to_contain_text("cannot be switched off")
    visit.ask("Hi")
    assert len(visit.stage.requests) == 3


def test_a_dense_model_has_nothing_to_compare(visit: Visit):
    visit.stage.sparsity = sparsity_info(
        active=1.0, method=None, calibrated=None, drift=None, bytes_per_token=269_000_000
    )
    visit.open()
    expect(visit.page.get_by_role("switch")).to_be_disabled()
    expect(visit.page.locator("#compare-note")).to_have_text(
        "This model is dense: there is no sparsity to switch off."
    )
    expect(visit.page.locator("#bytes-bars .sparse .value")).to_have_text("–")
    visit.ask("Hi")
    expect(visit.page.locator("#speed-bars .dense .value")).not_to_have_text("–")
    expect(visit.page.locator("#speed-bars .sparse .value")).to_have_text("–")


def test_where_two_texts_part(visit: Visit):
    visit.open()
    cases = [
        ("", "", 0),
        ("same", "same", 4),
        ("one two", "one three", 4),
        ("one two", "one twofold", 4),
        ("one two ", "one two three", 8),
        ("a 👩‍🚀", "a 👩‍🔬", 2),
        ("abc", "xyz", 0),
        ("one", "", 0),
    ]
    found = visit.page.evaluate(
        """async (cases) => {
            const { commonLength } = await import("/page/difference.js");
            return cases.map(([one, other]) => commonLength(one, other));
        }""",
        cases,
    )
    assert found == [length for _, _, length in cases]
