#!/usr/bin/env bash
# Baseline and steered evaluation of one model: lm-evaluation-harness on each task, without and with one SAE feature set
# at every token. As it stands it has the paper's model, tasks, feature and strength (46379 at 2 × 5.84), in vLLM; it
# steers and grades better than the published code (docs/differences.md), and with AS_PUBLISHED=1 as that code does.
# It wants a GPU of 48 GB or more; a trial takes minutes:
#
#     LIMIT=4 GEN_KWARGS=max_gen_toks=512 TASKS=math-500 bash evaluation/evaluate.sh
#
# Every run writes <OUTPUT_DIR>/<model>-<task>[-sae-<feature>]/ (results_*.json, samples_*.jsonl) when it is complete.
# Started again, finished runs are skipped; those of other settings, or of a local model, SAE, scores, problems or judge
# that changed since, are refused; what an interrupted one had generated is not generated again. Where the judge stopped
# answering, the exit status is 3, and started again the run asks it what was left open.
# Everything is set by environment variables; an empty one counts as unset, but where "" has a meaning of its own:
#
#     MODEL            Hub id or folder            SAE_PATH          folder of the SAE, or
#     DTYPE            of the model                SAE_RELEASE, SAE_ID  Hub repository and folder in it
#     BACKEND          vllm, or hf (transformers)  FEATURE           index of the feature
#     TASKS            separated by spaces or ,    STRENGTH          times the maximal activation
#     RUNS             plain steered               MAX_ACTIVATION    a number, or auto with SAE_STATS=<scores folder>
#     BATCH_SIZE       sequences at once           SAE_MODE          set, clamp, add, published or published_clamp
#     GEN_KWARGS       of generation, may be ""    SAE_UNITS         folded or raw
#     LIMIT            questions per task          INTERVENTION      file of several features, in place of those
#     SEED             of sampling                 CHAT_TEMPLATE     1 or 0
#     OUTPUT_DIR       where runs go               FRESH             1 runs again what is finished
#     MODEL_ARGS       more model arguments        PYTHON            interpreter
#
# With BACKEND=vllm also TENSOR_PARALLEL_SIZE, DATA_PARALLEL_SIZE and GPU_MEMORY_UTILIZATION (share of GPU memory, may
# be ""); with BACKEND=hf also DEVICE (auto, cpu, cuda, cuda:1). AS_PUBLISHED=1 steers and grades as the published code
# does: it makes SAE_MODE published, SAE_UNITS raw and, with PROCESSOR, JUDGE published, unless they are set. The same
# question many times, for coverage and majority:
# TASKS="aime2024_nofigures_self_consistency math-500_self_consistency openai_gpqa_diamond_self_consistency". A language
# model judges the answers that the checker cannot decide where PROCESSOR names one (lm-evaluation-harness/README.md).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

fail() {
    echo "error: $*" >&2
    exit 2
}

if (($#)); then
    if [[ $1 == -h || $1 == --help ]]; then
        sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
        exit 0
    fi
    fail "unknown argument '$1': evaluate.sh is set by environment variables, see evaluate.sh --help"
fi

# ---- what is set, and whether it fits together --------------------------------------------------------------------
set_among() { # set_among <name>…: the first of them that is set and not empty
    local name
    for name; do
        if [[ -n "${!name:-}" ]]; then
            echo "$name"
            return
        fi
    done
}

BACKEND="${BACKEND:-vllm}"
RUNS="${RUNS:-plain steered}"
[[ $BACKEND == vllm || $BACKEND == hf ]] || fail "BACKEND is '$BACKEND', expected vllm or hf"
for kind in $RUNS; do
    [[ $kind == plain || $kind == steered ]] || fail "RUNS has '$kind', expected plain and steered"
done
for variable in CHAT_TEMPLATE FRESH AS_PUBLISHED; do
    [[ "${!variable:-0}" == [01] ]] || fail "$variable is '${!variable}', expected 1 or 0"
done
of_feature=(FEATURE STRENGTH MAX_ACTIVATION SAE_STATS SAE_MODE SAE_UNITS)
of_sae=(SAE_PATH SAE_RELEASE SAE_ID)
of_vllm=(TENSOR_PARALLEL_SIZE DATA_PARALLEL_SIZE GPU_MEMORY_UTILIZATION)
if [[ -n "${SAE_PATH:-}" && -n "${SAE_RELEASE:-}${SAE_ID:-}" ]]; then
    fail "both SAE_PATH and SAE_RELEASE/SAE_ID are set; expected one of them"
fi
if [[ -n "${INTERVENTION:-}" ]]; then
    other="$(set_among "${of_feature[@]}")"
    [[ -z $other ]] || fail "both INTERVENTION and $other are set; everything else belongs into the file: unset one"
fi
if [[ $BACKEND == hf ]]; then
    other="$(set_among "${of_vllm[@]}")"
    [[ -z $other ]] || fail "$other is for BACKEND=vllm, but BACKEND is hf; unset one"
elif [[ ${DEVICE:-auto} != auto ]]; then
    fail "DEVICE is for BACKEND=hf; vLLM takes the GPUs of CUDA_VISIBLE_DEVICES"
fi

# ---- settings: the paper's, each overridable -------------------------------------------------------------------------
MODEL="${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Llama-8B}"
named_sae="$(set_among "${of_sae[@]}")"
SAE_RELEASE="${SAE_RELEASE:-andreuka18/deepseek-r1-distill-llama-8b-lmsys-openthoughts}"
SAE_ID="${SAE_ID:-blocks.19.hook_resid_post}"
FEATURE="${FEATURE:-46379}"
STRENGTH="${STRENGTH:-2.0}"
MAX_ACTIVATION="${MAX_ACTIVATION:-5.84}"
if [[ ${AS_PUBLISHED:-0} == 1 ]]; then
    SAE_MODE="${SAE_MODE:-published}"
    SAE_UNITS="${SAE_UNITS:-raw}"
    if [[ -n "${PROCESSOR:-}" ]]; then export JUDGE="${JUDGE:-published}"; fi
fi
SAE_MODE="${SAE_MODE:-set}"
if [[ $SAE_MODE == published* ]]; then SAE_UNITS="${SAE_UNITS:-raw}"; else SAE_UNITS="${SAE_UNITS:-folded}"; fi
TASKS="${TASKS:-aime2024_nofigures math-500 openai_gpqa_diamond}"
DTYPE="${DTYPE:-bfloat16}"
DEVICE="${DEVICE:-auto}"
TENSOR_PARALLEL_SIZE="${TENSOR_PARALLEL_SIZE:-1}"
DATA_PARALLEL_SIZE="${DATA_PARALLEL_SIZE:-1}"
# On a CPU it would be a share of all memory.
if nvidia-smi >/dev/null 2>&1; then utilization=0.85; else utilization=; fi
GPU_MEMORY_UTILIZATION="${GPU_MEMORY_UTILIZATION-$utilization}"
GEN_KWARGS="${GEN_KWARGS-max_gen_toks=32768,cutoff_token=128014}"
SEED="${SEED:-1234}"
LIMIT="${LIMIT:-}"
CHAT_TEMPLATE="${CHAT_TEMPLATE:-1}"
OUTPUT_DIR="${OUTPUT_DIR:-$here/results}"
FRESH="${FRESH:-0}"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON="$root/.venv/bin/python"
    [[ -x "$PYTHON" ]] || PYTHON="$(command -v python3 || true)"
fi

# lm-eval's "auto" tries batches of the model's longest context, here 131,072 tokens.
if [[ $BACKEND == hf ]]; then BATCH_SIZE="${BATCH_SIZE:-8}"; else BATCH_SIZE="${BATCH_SIZE:-auto}"; fi
[[ -n "$PYTHON" ]] || fail "no python3 found; set PYTHON"
for variable in MODEL SAE_PATH SAE_STATS INTERVENTION; do
    [[ "${!variable:-}" != *,* ]] || fail "$variable is '${!variable}': a comma separates model arguments; rename it"
done

sae_args="sae_release=$SAE_RELEASE,sae_id=$SAE_ID"
if [[ -n "${SAE_PATH:-}" ]]; then sae_args="sae_path=$SAE_PATH"; fi
READ_INTERVENTION='
import sys
from lm_eval_sae.errors import run
from lm_eval_sae.steering.arguments import read_steering
run(lambda: print(read_steering(dict(pair.split("=", 1) for pair in sys.argv[1].split(","))).record()))'
if [[ -n "${INTERVENTION:-}" && $RUNS == *steered* ]]; then
    intervention_args="sae_intervention_path=$INTERVENTION"
    # The published form of the file does not name its SAE.
    if [[ -n $named_sae || (${AS_PUBLISHED:-0} == 1 && $INTERVENTION == *.pt) ]]; then intervention_args+=",$sae_args"; fi
    intervention="$("$PYTHON" -c "$READ_INTERVENTION" "$intervention_args")" || exit
fi

# ---- what may change behind a path -----------------------------------------------------------------------------------
# Weights are gigabytes: their size and time stand for them.
size_and_time() { stat -L -c '%s %Y' "$1" 2>/dev/null || stat -L -f '%z %m' "$1"; } # GNU, BSD
changeable() { # changeable <task> <plain|steered>
    local sae="${SAE_PATH:-}" problems="${QUICKSTART_PROBLEMS:-}" file
    sae="${sae/#\~\//$HOME/}"
    for file in "$MODEL"/*.safetensors; do
        if [[ -f "$file" ]]; then printf ' model=%s' "$(size_and_time "$file")"; fi
    done
    if [[ $1 == quickstart_problems ]]; then
        printf ' problems=%s' "$problems"
        problems="${problems/#\~\//$HOME/}"
        for file in "$problems" "${problems:-.}"/*.{jsonl,json,parquet}; do # a file, or the folder of one
            if [[ -n "$problems" && -f "$file" ]]; then printf ' %s' "$(cksum <"$file")"; fi
        done
    fi
    if [[ -n "${PROCESSOR:-}" ]]; then printf ' judge=%s' "$PROCESSOR ${PROCESSOR_BASE_URL:-} ${JUDGE:-}"; fi
    if [[ $2 == plain ]]; then return; fi
    if [[ -n "${INTERVENTION:-}" ]]; then # with the rows of its SAEs, and what its scores say
        printf ' intervention=%s' "$(cksum <<<"$intervention")"
    fi
    if [[ -f "${SAE_STATS:-}/feature_stats.safetensors" ]]; then
        printf ' scores=%s' "$(cksum <"$SAE_STATS/feature_stats.safetensors")"
    fi
    if [[ -f "$sae/cfg.json" && -f "$sae/sae_weights.safetensors" ]]; then
        printf ' cfg=%s weights=%s' "$(cksum <"$sae/cfg.json")" "$(size_and_time "$sae/sae_weights.safetensors")"
    fi
}

JUDGE_STOPPED=3
OPEN_QUESTIONS=judge-stopped
UNFINISHED=.unfinished
ended=0

# ---- one run ---------------------------------------------------------------------------------------------------------
run_task() { # run_task <task> <plain|steered>
    local task="$1" kind="$2" name folder settings started
    local model_args="pretrained=$MODEL,dtype=$DTYPE"
    if [[ $BACKEND == vllm ]]; then
        model_args+=",tensor_parallel_size=$TENSOR_PARALLEL_SIZE,data_parallel_size=$DATA_PARALLEL_SIZE"
        if [[ -n "$GPU_MEMORY_UTILIZATION" ]]; then model_args+=",gpu_memory_utilization=$GPU_MEMORY_UTILIZATION"; fi
    fi
    if [[ -n "${MODEL_ARGS:-}" ]]; then model_args+=",$MODEL_ARGS"; fi
    name="$(basename "$MODEL")-$task"
    if [[ $kind == steered && -n "${INTERVENTION:-}" ]]; then
        name+="-sae-$(basename "${INTERVENTION%.*}")"
        model_args+=",$intervention_args"
    elif [[ $kind == steered ]]; then
        name+="-sae-$FEATURE"
        model_args+=",sae_feature_idx=$FEATURE,sae_strength=$STRENGTH,sae_max_activation=$MAX_ACTIVATION"
        model_args+=",sae_mode=$SAE_MODE,sae_units=$SAE_UNITS,$sae_args"
        if [[ -n "${SAE_STATS:-}" ]]; then model_args+=",sae_stats=$SAE_STATS"; fi
    fi
    folder="$OUTPUT_DIR/$name"

    local arguments=(--model "$BACKEND" --model_args "$model_args" --tasks "$task" --batch_size "$BATCH_SIZE")
    arguments+=(--seed "$SEED")
    if [[ $DEVICE != auto ]]; then arguments+=(--device "$DEVICE"); fi
    if [[ -n "$GEN_KWARGS" ]]; then arguments+=(--gen_kwargs "$GEN_KWARGS"); fi
    if [[ -n "$LIMIT" ]]; then arguments+=(--limit "$LIMIT"); fi
    if [[ $CHAT_TEMPLATE == 1 ]]; then arguments+=(--apply_chat_template); fi
    arguments+=(--log_samples)
    local inputs # apart from its assignment, which would hide that it failed
    inputs="$(changeable "$task" "$kind")"
    settings="${arguments[*]}$inputs"

    mkdir -p "$OUTPUT_DIR"
    lock="$OUTPUT_DIR/.$name.lock"
    exec 9<>"$lock" # open, and so locked, until the run has ended, or all its processes are gone
    "$PYTHON" -m transformer_lens_r1.shared.locks "$folder" 9 $$ || exit
    if [[ -e "$folder" && $FRESH != 1 ]]; then
        if [[ "$(cat "$folder/settings.txt" 2>/dev/null)" == "$settings" ]]; then
            if [[ ! -e "$folder/$OPEN_QUESTIONS" ]]; then
                echo "== $name: finished before, skipped (FRESH=1 runs it again)"
                return
            fi
            echo "== $name: the judge had stopped answering; its completions are there, it is asked again"
            # Its results stay until there are better ones: the judge may not answer now either.
            rm -rf "$folder.partial"
            mkdir "$folder.partial"
            if [[ -d "$folder/$UNFINISHED" ]]; then cp -a "$folder/$UNFINISHED" "$folder.partial/"; fi
        else
            fail "$folder holds a run with other settings or another SAE (see settings.txt); set OUTPUT_DIR, or FRESH=1"
        fi
    fi
    echo "== $name: $kind, into $folder"
    started=$SECONDS
    if [[ $FRESH == 1 ]]; then rm -rf "$folder.partial"; fi
    if [[ -d "$folder.partial" ]]; then # what an interrupted run had generated is not generated again
        find "$folder.partial" -mindepth 1 -maxdepth 1 ! -name "$UNFINISHED" -exec rm -rf {} +
    fi
    # In a condition, so that the exit status is kept: 2 for a mistake, with its one line on stderr; 3 where the judge
    # stopped answering, and the results are written.
    local status=0
    "$PYTHON" -m lm_eval_sae run "${arguments[@]}" --output_path "$folder.partial" || status=$?
    ((status == 0 || status == JUDGE_STOPPED)) || exit "$status"
    [[ -n "$(find "$folder.partial" -mindepth 2 -maxdepth 2 -name 'results_*.json' -print -quit)" ]] ||
        fail "$name ended without results"
    echo "$settings" >"$folder.partial/settings.txt"
    if ((status == JUDGE_STOPPED)); then
        touch "$folder.partial/$OPEN_QUESTIONS"
        ended=$JUDGE_STOPPED
    else
        rm -rf "$folder.partial/$UNFINISHED" # of other settings
    fi
    rm -rf "$folder"
    mv "$folder.partial" "$folder"
    echo "== $name: done in $((SECONDS - started)) s"
}

for task in ${TASKS//,/ }; do
    for kind in $RUNS; do
        run_task "$task" "$kind"
        rm -f "$lock"
        exec 9>&-
    done
done
echo "== the table: python evaluation/summarize.py --results $OUTPUT_DIR --output_dir $OUTPUT_DIR/report"
((ended == 0)) || echo "error: the judge stopped answering in a run, see above; start again once it answers" >&2
exit "$ended"
