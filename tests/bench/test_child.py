"""Worker processes: answers, refusals, deaths, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparseinfer.bench import child as child_module
from sparseinfer.bench.child import Child, WorkerError, children
from sparseinfer.bench.worker import Worker

ECHO = """
import sys, json
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps({"result": question}), flush=True)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(happened) -> None:
    """Waits for something that must happen within half a minute."""
    for _ in range(600):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_questions_and_answers_are_json_lines():
    child = Child("echo", python(ECHO))
    assert child.call("decode", steps=3) == {"call": "decode", "arguments": {"steps": 3}}
    assert child.cpu_seconds is not None
    child.close()


def test_a_refusal_is_one_line_under_the_name_of_the_side():
    child = Child("llama.cpp", python('print(\'{"error": "no such file"}\', flush=True); input()'))
    with pytest.raises(WorkerError, match=r"^llama\.cpp: no such file$"):
        child.call("open")
    child.close()


def test_a_death_tells_the_end_of_its_log():
    code = "import sys; sys.stderr.write('first\\n' * 50 + 'out of luck\\n'); sys.exit(3)"
    child = Child("llama.cpp", python(code))
    with pytest.raises(WorkerError) as caught:
        child.call("decode")
    message = str(caught.value)
    assert "ended with status 3 during 'decode'" in message
    assert message.endswith("out of luck")
    assert "\n" not in message
    child.close()


def test_a_killed_worker_is_named_with_its_signal():
    child = Child("sparseinfer", python("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(WorkerError, match=r"signal 9 \(out of memory\?\).*no message"):
        child.call("decode")
    child.close()


def test_a_worker_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(child_module, "_PATIENCE_SECONDS", 0.2)
    child = Child("stubborn", python("import time; time.sleep(600)"))
    process = child._process.pid
    child.close()
    assert not alive(process)


def test_all_workers_end_with_the_block_even_by_ctrl_c(monkeypatch):
    monkeypatch.setattr(child_module, "Child", lambda name: Child(name, python(ECHO)))
    processes: list[int] = []

    def interrupted() -> None:
        with children() as group:
            started = [group.start("a"), group.start("b")]
            processes.extend(one._process.pid for one in started)
            assert all(alive(process) for process in processes)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(processes) == 2
    assert not any(alive(process) for process in processes)


def test_ctrl_c_of_the_terminal_does_not_reach_a_worker():
    child = Child("echo", python(ECHO))
    assert os.getsid(child._process.pid) != os.getsid(0)
    child.close()


def test_what_libraries_print_stays_out_of_the_answers():
    code = (
        "import sys, threading\n"
        "from sparseinfer.bench import jobs, worker\n"
        "def noisy(): print('chatter'); import os; os.write(1, b'raw chatter'); return 7\n"
        "jobs.JOBS['noisy'] = noisy\n"
        "worker.main()\n"
    )
    child = Child("noisy", python(code))
    assert child.call("noisy") == 7
    child.close()


def test_a_worker_ends_when_its_parent_is_gone():
    child = Child("sparseinfer")
    process = child._process.pid
    child._process.stdin.close()
    until(lambda: not alive(process))
    assert child._process.wait() == 0
    child._process.stdin = None
    child.close()


def test_a_busy_worker_ends_when_its_parent_is_killed(tmp_path):
    busy = (
        "import pathlib, os, sys, time\n"
        "from sparseinfer.bench import jobs, worker\n"
        "def long():\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "jobs.JOBS['long'] = long\n"
        "worker.main()\n"
    )
    parent = (
        "import sys\n"
        "from sparseinfer.bench.child import Child\n"
        f"Child('busy', [sys.executable, '-c', {busy!r}]).call('long')\n"
    )
    process = subprocess.Popen(python(parent))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert alive(worker)
    process.kill()
    process.wait()
    until(lambda: not alive(worker))


def test_refusals_of_a_side_are_answers_and_mistakes_of_ours_are_not():
    worker = Worker()
    question = '{"call": "open", "arguments": {"engine": "sparseinfer", "model": "./nowhere", '
    answer = worker.answer(question + '"weights": "bf16", "threads": 1}}')
    assert '"error"' in answer
    assert "nowhere" in answer
    with pytest.raises(ValueError, match="unknown question"):
        worker.answer('{"call": "decode", "arguments": {}}')


def test_interrupting_a_benchmark_leaves_no_process(without_tokenizer):
    command = python("from sparseinfer.cli import main; main()")
    options = ["--baseline", "dense", "--weights", "bf16", "--sparsity", "0", "--pairs", "1000"]
    options += ["--quality-tokens", "0", "--prefill", "0", "--tokens", "90"]
    bench = subprocess.Popen(
        [*command, "bench", str(without_tokenizer), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert bench.stderr is not None
    assert "loading" in bench.stderr.readline()
    until(lambda: descendants(bench.pid))
    workers = descendants(bench.pid)
    bench.send_signal(signal.SIGINT)
    out, err = bench.communicate(timeout=30)
    assert (bench.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert not any(alive(process) for process in workers)


def descendants(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found
