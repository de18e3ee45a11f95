#!/usr/bin/env bash
# The whole path on real cases, for docs/real-run.md. Hours on a CPU.
# Usage: experiments/real_run.sh DATA OUTPUT [DEVICE]
#   DATA holds brats2013/ (flair, t1ce) and tcga_lgg/ (four modalities) in BraTS layout.
#   What is done already in OUTPUT is not done again.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
    sed -n '2,5s/^# \?//p' "$0"
    exit
fi
data=$(cd "$1" && pwd)
output=$(mkdir -p "$2" && cd "$2" && pwd)
device=${3:-cpu}

export nnUNet_raw="$output/raw" nnUNet_preprocessed="$output/preprocessed" nnUNet_results="$output/results"
export nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-2} nnUNet_def_n_proc=${nnUNet_def_n_proc:-2}
# See the Makefile: what a CPU saves when freed memory stays in the process.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
dataset=Dataset013_BraTS2013
held_out=brats_2013_pat0003_1

once() { # once NAME COMMAND...: a stamp marks what has succeeded
    local stamp="$output/done/$1" log="$output/log/$1.txt"
    shift
    mkdir -p "$output/done" "$output/log"
    [ -e "$stamp" ] && return
    printf '%s  $ %s\n' "$(date +%H:%M:%S)" "$*"
    "$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; echo "Failed; whole log: $log" >&2; exit 1; }
    touch "$stamp"
}

once convert autosam2 convert-brats "$data/brats2013" -d 13 -n BraTS2013 --modalities t1ce,flair
once convert_tcga autosam2 convert-brats "$data/tcga_lgg" -d 14 -n TCGA
once convert_tcga_two autosam2 convert-brats "$data/tcga_lgg" -d 15 -n TCGATwo --modalities t1ce,flair
once preprocess nnUNetv2_plan_and_preprocess -d 13 -c 3d_fullres -np 2 -npfp 2 --verify_dataset_integrity
once configure autosam2 configure 13 --base 3d_fullres --name small --patch-size 48 64 64 --batch-size 2 \
    sam2_checkpoint=random sam2_image_size=256 sam2_chunk_size=64 initial_lr=1e-3 \
    num_epochs=8 num_iterations_per_epoch=25 num_val_iterations_per_epoch=4
# Four cases are too few for nnU-Net's five folds: one is held out.
python - "$nnUNet_preprocessed/$dataset" "$held_out" <<'PYTHON'
import json, pathlib, sys
folder, held_out = pathlib.Path(sys.argv[1]), sys.argv[2]
cases = sorted(p.name.removesuffix(".nii.gz") for p in (folder / "gt_segmentations").glob("*.nii.gz"))
split = {"train": [c for c in cases if c != held_out], "val": [held_out]}
(folder / "splits_final.json").write_text(json.dumps([split], indent=4))
PYTHON

for trainer in nnUNetTrainerAutoSAM2_UNetOnly nnUNetTrainerAutoSAM2; do
    once "train_$trainer" nnUNetv2_train 13 small 0 -tr $trainer -device "$device"
done
for trainer in nnUNetTrainerAutoSAM2_UNetOnly nnUNetTrainerAutoSAM2; do
    model="$nnUNet_results/$dataset/${trainer}__nnUNetPlans__small"
    predict=(nnUNetv2_predict -d 13 -c small -tr "$trainer" -f 0 -device "$device" -npp 1 -nps 1 --disable_tta -step_size 0.75)
    once "predict_$trainer" "${predict[@]}" -i "$nnUNet_raw/$dataset/imagesTr" -o "$output/predicted/$trainer"
    once "evaluate_$trainer" nnUNetv2_evaluate_folder "$nnUNet_raw/$dataset/labelsTr" "$output/predicted/$trainer" \
        -djfile "$model/dataset.json" -pfile "$model/plans.json" -np 2
    once "predict_tcga_$trainer" "${predict[@]}" -i "$nnUNet_raw/Dataset015_TCGATwo/imagesTr" \
        -o "$output/predicted_tcga/$trainer"
    once "evaluate_tcga_$trainer" nnUNetv2_evaluate_folder "$nnUNet_raw/Dataset015_TCGATwo/labelsTr" \
        "$output/predicted_tcga/$trainer" -djfile "$model/dataset.json" -pfile "$model/plans.json" -np 2
done
model="$nnUNet_results/$dataset/nnUNetTrainerAutoSAM2__nnUNetPlans__small"
once show autosam2 show "$nnUNet_raw/$dataset/imagesTr/$held_out" -m "$model" -o "$output/pictures"
once back_to_brats autosam2 predictions-to-brats "$output/predicted/nnUNetTrainerAutoSAM2" "$output/brats"

python - "$output" <<'PYTHON'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("predicted*/*/summary.json")):
    for case in json.loads(path.read_text())["metric_per_case"]:
        dice = " ".join(f"{region} {m['Dice']:.3f}" for region, m in case["metrics"].items())
        print(path.parent.name, pathlib.Path(case["prediction_file"]).name, dice)
PYTHON
