#!/usr/bin/env bash
# From nothing to a picture: every step is a command that a user would type. Usage: demo/run.sh OUTPUT_FOLDER
set -euo pipefail
output=$(mkdir -p "$1" && cd "$1" && pwd)
rm -rf "${output:?}"/*

export nnUNet_raw="$output/raw" nnUNet_preprocessed="$output/preprocessed" nnUNet_results="$output/results"
export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=1
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
log="$output/log.txt"
model="$nnUNet_results/Dataset900_Phantom/nnUNetTrainerAutoSAM2__nnUNetPlans__demo"
number=0

step() {
    number=$((number + 1))
    printf '[%d/9 %4ds] %s\n' "$number" "$SECONDS" "$1"
}
run() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; echo "Failed: $*. The whole log: $log" >&2; exit 1; }
}

step "Six phantom cases in BraTS layout"
run autosam2 make-phantom "$output/phantom" --cases 6 --size 32 40 40 --seed 1
mkdir "$output/held_out"
mv "$output/phantom/phantom_006" "$output/held_out"
step "Conversion to nnU-Net, one case held out"
run autosam2 convert-brats "$output/phantom" -d 900 -n Phantom
run autosam2 convert-brats "$output/held_out" -d 901 -n HeldOut
step "Planning and preprocessing"
run nnUNetv2_plan_and_preprocess -d 900 -c 3d_fullres -np 1 -npfp 1
step "A small configuration, with SAM2's weights random on purpose"
run autosam2 configure 900 --base 3d_fullres --name demo --patch-size 32 32 32 --batch-size 2 \
    sam2_checkpoint=random sam2_image_size=96 training_slices=4 initial_lr=3e-3 \
    num_epochs=2 num_iterations_per_epoch=10 num_val_iterations_per_epoch=1
step "Training: 2 epochs of 10 iterations"
# A process for its data would take longer to start than it saves.
nnUNet_n_proc_DA=0 run nnUNetv2_train 900 demo 0 -tr nnUNetTrainerAutoSAM2 -device cpu
step "Prediction of the held-out case"
run nnUNetv2_predict -d 900 -c demo -tr nnUNetTrainerAutoSAM2 -f 0 -device cpu -npp 0 -nps 0 \
    -i "$nnUNet_raw/Dataset901_HeldOut/imagesTr" -o "$output/prediction"
step "Evaluation"
run nnUNetv2_evaluate_folder "$nnUNet_raw/Dataset901_HeldOut/labelsTr" "$output/prediction" \
    -djfile "$model/dataset.json" -pfile "$model/plans.json"
python - "$output/prediction/summary.json" <<'PYTHON'
import json, sys
from nnunet_autosam2.dataset_conversion.regions import REGIONS
regions = json.load(open(sys.argv[1]))["mean"]
dice = (f"{name} {scores['Dice']:.3f}" for name, scores in zip(REGIONS, regions.values(), strict=True))
print("      Dice of the held-out case:", ", ".join(dice))
PYTHON
step "Pictures of what happens inside"
run autosam2 show "$nnUNet_raw/Dataset901_HeldOut/imagesTr/phantom_006" -m "$model" -f 0 --slices 4 \
    -o "$output/pictures"
step "Done: $output/pictures. SAM2 was untrained here, so they show that everything works, not how well."
