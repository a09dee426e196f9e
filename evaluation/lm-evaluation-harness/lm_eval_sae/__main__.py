"""python -m lm_eval_sae --model hf-sae --model_args pretrained=MODEL,sae_path=SAE,... --tasks math-500"""

from lm_eval_sae.cli import main
from lm_eval_sae.errors import run

if __name__ == "__main__":
    run(main)
