"""Print what quickstart.sh must know of a model: its width, its bos and eos ids, and whether it has a bos at all.

    python quickstart/describe_model.py --model_path quickstart-run/model --layer 19

For instance `576 1,2 true`. Ends with exit status 2 where the model has no such layer.
"""

from collections.abc import Sequence

from transformer_lens_r1.architectures import SUPPORTED
from transformer_lens_r1.shared.arguments import ArgumentParser, non_negative_int
from transformer_lens_r1.shared.errors import UserError, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", required=True, help=f"Hub id or local folder of a {SUPPORTED} checkpoint")
    parser.add_argument("--layer", type=non_negative_int, required=True, help="the layer whose output the SAE reads")
    args = parser.parse_args(argv)

    from transformer_lens_r1 import load_config, load_tokenizer

    config = load_config(args.model_path)
    if args.layer >= config.num_hidden_layers:
        raise UserError(
            f"LAYER is {args.layer}, but {args.model_path} has layers 0 to {config.num_hidden_layers - 1}; set LAYER"
        )
    tokenizer = load_tokenizer(args.model_path)
    special_ids = [index for index in (tokenizer.bos_token_id, tokenizer.eos_token_id) if index is not None]
    has_bos = str(tokenizer.bos_token_id is not None).lower()
    print(config.hidden_size, ",".join(map(str, dict.fromkeys(special_ids))), has_bos)


if __name__ == "__main__":
    run(main)
