"""Loading an artifact: what is imported, what is read, and where the weights then are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseinfer.engine import load
from sparseinfer.errors import ConfigError
from sparseinfer.packed import Packed
from sparseinfer.packed.pipeline import pack_model

from .conftest import FORMATS

IDS = [5, 70, 101, 9, 44, 200, 31]


@pytest.mark.parametrize("weights", FORMATS)
def test_a_packed_model_computes_what_its_checkpoint_computes(make_model, packed, weights):
    expected = load(make_model(), weights=weights, threads=1)
    for huge_pages in (False, True):
        found = load(packed(weights), threads=1, huge_pages=huge_pages)
        assert found.formats == expected.formats
        for by in ("prefill", "decode"):
            assert torch.equal(found.logits(IDS, by=by), expected.logits(IDS, by=by))
    assert list(found.generate(IDS, max_tokens=9)) == list(expected.generate(IDS, max_tokens=9))


def test_thresholds_act_in_a_packed_model(converted, packed):
    dense, sparse = load(packed("int8"), threads=1), load(packed("int8", converted), threads=1)
    counts = []
    for model in (dense, sparse):
        model.logits(IDS, by="decode")
        counts.append(sum(model.sparsity("decode").up_rows))
    assert counts[0] == 3 * 112 * len(IDS)
    assert counts[1] < 0.8 * counts[0]
    assert sparse.record.method == "chess"


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int4"])
def test_an_artifact_has_one_type_only(packed, weights):
    with pytest.raises(ConfigError, match=f"packed as int8.*to have {weights}"):
        load(packed("int8"), weights=weights)
    for own in ("auto", "int8"):
        assert load(packed("int8"), weights=own, threads=1).weight_type == "int8"


def _python(code: str, *arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_and_raw_text_import_no_transformers(packed):
    found = _python(
        """
import json, sys
import sparseinfer
model = sparseinfer.load(sys.argv[1], threads=1)
tokenizer = sparseinfer.load_tokenizer(sys.argv[1])
ids = tokenizer.encode("hello")
text = tokenizer.decode(list(model.generate(ids, max_tokens=3)))
print(json.dumps([sorted(m for m in sys.modules if m in ("transformers", "huggingface_hub")), ids]))
""",
        packed("int4"),
    )
    assert found == [[], [ord(c) - 33 + 3 for c in "hello"]]


def test_an_artifact_stays_mapped_and_opening_it_reads_no_matrix(packed):
    mapped = Packed.open(packed("bf16")).weights()
    begin = mapped.embedding.data.data_ptr()
    regions = Path("/proc/self/maps").read_text().splitlines()
    names = [line for line in regions if _holds(line, begin)]
    assert len(names) == 1
    assert names[0].endswith("packed.safetensors")
    assert " r--s " in names[0]  # shared, and never written to


@pytest.mark.parametrize("sparse", [True, False])
def test_only_rows_that_may_rest_are_read_without_reading_ahead(make_model, packed, sparse):
    """The kernel marks such ranges of the mapping with `rr`."""
    changes = {"hidden_act": "relu"} if sparse else {}
    folder = make_model(hidden_size=256, intermediate_size=512, **changes)
    weights = Packed.open(packed("fp32", folder)).weights()
    layer = weights.layers[1]
    # The middle of each: ranges begin and end on pages.
    assert ("rr" in mapping_flags(layer.ffn.up.data[256])) == sparse
    assert "rr" in mapping_flags(weights.embedding.data[150])
    for matrix in (layer.ffn.gate, layer.qkv, layer.o, weights.head):
        assert "rr" not in mapping_flags(matrix.data[matrix.rows // 2])


def mapping_flags(row: torch.Tensor) -> list[str]:
    """Flags of the mapping that holds a row."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = _holds(line, row.data_ptr())
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("this memory is not mapped")


def _holds(line: str, address: int) -> bool:
    first, last = (int(part, 16) for part in line.split()[0].split("-"))
    return first <= address < last


def test_copied_weights_lie_in_huge_pages(packed, make_model):
    if not re.search(r"\[(madvise|always)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled")):
        pytest.skip("this system has no transparent huge pages")
    folder = packed("fp32", make_model(hidden_size=512, intermediate_size=4096))
    weights = Packed.open(folder).weights(huge_pages=True)
    address = weights.layers[1].ffn.gate.data.data_ptr()
    assert _smaps(lambda line: _holds(line, address))["AnonHugePages"] > 0


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _smaps(wanted) -> dict[str, int]:
    """Kilobytes by name of the mappings whose first lines are wanted, added up."""
    total: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = wanted(line)
        elif inside and line.endswith(" kB"):
            name, value, _ = line.split()
            total[name.rstrip(":")] = total.get(name.rstrip(":"), 0) + int(value)
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")
def test_resident_memory_grows_with_the_neurons_that_fire(make_model, tmp_path):
    """Decode alone touches the bundles of active neurons: the others never come into memory."""
    folder = make_model(
        dtype="bfloat16", hidden_size=512, intermediate_size=8192, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=8, hidden_act="relu",
    )  # fmt: skip
    out = pack_model(str(folder), "bf16", out=tmp_path / "packed").out
    bundle_kilobytes = 2 * 8192 * 512 * 2 // 1024
    resident = []
    fractions = (0.0, 0.25, 0.5, 1.0)
    for active in fractions:
        threshold = torch.full((8192,), torch.inf)
        threshold[: int(active * 8192)] = 0
        model = load(out, threads=1)
        model.set_thresholds([threshold])
        list(model.generate(IDS[:1], max_tokens=12, stop_ids=()))
        resident.append(_smaps(lambda line: str(out) in line)["Rss"])
        del model
    grown = [(value - resident[0]) / bundle_kilobytes for value in resident]
    for active, found in zip(fractions, grown, strict=True):
        # Of what is in the page cache the system also maps some pages around those touched.
        assert active - 0.02 <= found <= min(1, active + 0.15) + 0.02, resident
