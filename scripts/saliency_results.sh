#!/usr/bin/env bash
# What the trained cells look at: bash scripts/saliency_results.sh [CELLS [TASK ...]]
# Writes results/saliency-TASK-nano. Encoders and seeds that are not there yet are left out: call it again for them.
set -euo pipefail
cells=${1:-runs/cells}
tasks=("${@:2}")
[ ${#tasks[@]} -gt 0 ] || tasks=(lift can)
for task in "${tasks[@]}"; do
    runs=()
    for encoder in sspool avgpool maxpool nopool prism; do
        for weights in "$cells/$task-flow_matching-$encoder-nano-s"*/weights.safetensors; do
            [ -e "$weights" ] && runs+=("$(dirname "$weights")")
        done
    done
    if [ ${#runs[@]} -gt 1 ]; then
        prism saliency --compare "${runs[@]}" --no-video --out "results/saliency-$task-nano"
    else
        echo "$task: fewer than two trained cells in $cells, left out"
    fi
done
