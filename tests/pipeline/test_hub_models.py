"""R1 distills come from the Hub by their names, as a bridge, as a HookedTransformer and in SAELens."""

import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hub_server import HubServer  # noqa: E402

COMPARE = """
import sys, torch
from transformers import AutoModelForCausalLM
from sae_lens.load_model import load_model as load_model_of_saelens
from transformer_lens import HookedTransformer
from transformer_lens_r1 import UserError, load_model, load_tokenizer, register_r1_distills
register_r1_distills()
tokens = torch.arange(5, 60)[None]
with torch.no_grad():
    expected = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)(tokens).logits
    for model in (
        load_model("DeepSeek-R1-Distill-Qwen-1.5B"),
        HookedTransformer.from_pretrained_no_processing("DeepSeek-R1-Distill-Qwen-1.5B", device="cpu"),
        load_model_of_saelens("HookedTransformer", "DeepSeek-R1-Distill-Qwen-1.5B", device="cpu"),
    ):
        print(type(model).__name__, ((model(tokens) - expected).abs().max() / expected.abs().max()).item() < 1e-5)
print(load_tokenizer("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", revision="main").vocab_size)
try:
    load_model("deepseek-ai/DeepSeek-R1-Distill-Qwen-1B")
except UserError as error:
    print(error)
"""


def test_a_distill_loads_from_the_hub_by_its_name(tmp_path: Path, tiny_llama: Path) -> None:
    config = Qwen2Config(
        vocab_size=327, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path / "model"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.architectures == ["Qwen2ForCausalLM"]
    with HubServer() as hub:
        hub.add(
            "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            {file.name: file.read_bytes() for file in folder.iterdir()},
        )
        done = subprocess.run(
            [sys.executable, "-c", COMPARE, str(folder)], capture_output=True, text=True, timeout=300,
            env={**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home")},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Loaded pretrained model")]
    assert lines[:4] == ["CheckedBridge True", "HookedTransformer True", "HookedTransformer True", "327"]
    assert lines[4].startswith("cannot load the model deepseek-ai/DeepSeek-R1-Distill-Qwen-1B: ")
    assert "; did you mean 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1" in lines[4] and len(lines) == 5
