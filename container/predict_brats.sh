#!/usr/bin/env bash
# A challenge's cases → label maps in its own labels.
# Usage: predict_brats [INPUT [OUTPUT [MODEL [OPTIONS OF nnUNetv2_predict_from_modelfolder]]]]
# INPUT holds a folder a case, in the layout of any BraTS release; OUTPUT gets CASE.nii.gz; MODEL is a results folder
# (trainer__plans__configuration) with one fold or more, whose autosam2_postprocessing.json is applied, if it is there.
# Defaults: /input /output /model.
set -euo pipefail
input=${1:-/input} output=${2:-/output} model=${3:-/model}
shift $(($# < 3 ? $# : 3))
if [ ! -f "$model/plans.json" ]; then
    echo "predict_brats: $model is no results folder: it has no plans.json. Bind one to /model, or name it." >&2
    exit 1
fi
folds=()
for checkpoint in "$model"/fold_*/checkpoint_final.pth; do
    fold=${checkpoint%/*}
    [ -f "$checkpoint" ] && folds+=("${fold##*_}")
done
if [ ${#folds[@]} -eq 0 ]; then
    echo "predict_brats: $model has no fold with a checkpoint_final.pth." >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results" "$output"
autosam2 convert-brats "$input" -d 1 -n Challenge --link
nnUNetv2_predict_from_modelfolder -i "$nnUNet_raw/Dataset001_Challenge/imagesTs" -o "$work/predicted" -m "$model" \
    -f "${folds[@]}" "$@"
predicted=$work/predicted
if [ -f "$model/autosam2_postprocessing.json" ]; then
    autosam2 postprocess "$predicted" "$work/cleaned" --settings "$model/autosam2_postprocessing.json"
    predicted=$work/cleaned
fi
autosam2 predictions-to-brats "$predicted" "$work/brats"
cp "$work"/brats/*.nii.gz "$output"
