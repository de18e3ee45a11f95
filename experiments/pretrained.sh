#!/usr/bin/env bash
# What pretrained weights of SAM2 are worth on a trained nnU-Net with 20, 100 and all training cases: from an empty
# folder on a Linux machine with internet and a GPU to the table. What is done already in FOLDER is not done again.
# Usage: experiments/pretrained.sh FOLDER [--dry-run] [--device cuda] [OPTION...]
#   --dry-run   prints every step with its command, size and time, and touches nothing
#   OPTION      of `python -m experiments.experiment`, in the place of what stands below, as --epochs 250
# Data: Task01_BrainTumour of the Medical Segmentation Decathlon, CC BY-SA 4.0 (Antonelli et al.,
# https://doi.org/10.1038/s41467-022-30695-9). Address and MD5 are those of MONAI's DecathlonDataset (apps/datasets.py).
# TASK01_URL names a mirror, TASK01_MD5 another archive's checksum, HF_ENDPOINT a mirror of the model hub, FREE_GB the
# space to ask for.
set -euo pipefail
url=${TASK01_URL:-https://msd-for-monai.s3-us-west-2.amazonaws.com/Task01_BrainTumour.tar}
md5=${TASK01_MD5:-240a19d752f0d9e9101544901065d872}
cases=484
needed=${FREE_GB:-40} # 7.6 archive, 4.9 unpacked, 5.1 converted, 6.5 preprocessed, 12 of checkpoints

fail() {
    echo "Error: $*" >&2
    exit 1
}

dry='' device=cuda words=()
while (($#)); do
    case $1 in
        --help) exec sed -n '2,/^set/{/^set/d;s/^# \?//p}' "$0" ;;
        --dry-run) dry=yes ;;
        --device) device=${2:?}; shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
folder=${words[0]:-${dry:+pretrained}}
[[ $folder && $folder != -* ]] || fail "FOLDER is missing, where all is written: experiments/pretrained.sh FOLDER."
[[ $folder == /* ]] || folder=$PWD/$folder
cd "$(dirname "$0")/.."
for command in curl tar md5sum flock python autosam2; do
    command -v "$command" >/dev/null || fail "There is no $command: this needs Linux and the environment of make install."
done

archive=$folder/Task01_BrainTumour.tar
cores=$(env -u OMP_NUM_THREADS nproc)
download=(curl --fail --location --retry 5 --continue-at - --output "$archive.part" --write-out '%{errormsg}' "$url")
unpack=(tar --extract --file "$archive" --directory "$folder" --exclude '._*' --exclude '*/imagesTs')
weights=(autosam2 weights get sam2.1-hiera-tiny)
experiment=(
    python -m experiments.experiment "$folder/Task01_BrainTumour" "$folder/experiment" --device "$device"
    --num-folds 5 --folds 1 --training-cases '20,100,all'
    --arms nnunet --arms nnunet_then_alone --arms upgrade --arms upgrade_untrained
    --modalities 't1w,t1gd,t2w,flair' --spacing 1 1 1 --patch-size 128 128 128 --features 32 320 # as nnU-Net plans them
    --epochs 1000 --iterations 250 --val-iterations 50 --full-prediction
    --upgrade-epochs 50 --initial-lr 1e-4 --sam2-image-size 512
    --processes $((cores < 8 ? cores : 8)) --augmentation-processes $((cores < 12 ? cores : 12))
    "${words[@]:1}"
)

tell() { # tell WHAT COMMAND...
    printf '%s\n    $ %s\n' "$1" "${*:2}"
}
tell "1. Download, 7.6 GB: 10 minutes at 100 Mbit/s. MD5 $md5" "${download[@]}"
tell "2. Unpack the labelled cases, 4.9 GB: a minute" "${unpack[@]}"
tell "3. Weights of SAM2, 156 MB" "${weights[@]}"
tell "4. Convert (5.1 GB), preprocess (6.5 GB), train (12 GB), predict and score. A case takes 2.5 s of a CPU core to be
   converted, 14 s to be preprocessed, 5 s to be scored in each arm; trainings, with predictions, as below:" \
    "${experiment[@]}" --sam2-checkpoint WEIGHTS
"${experiment[@]}" --estimate "$cases"
in_gb() { tail -n 1 | tr -dc 0-9; }
above=$folder there=0
while [[ ! -d $above ]]; do above=$(dirname "$above"); done
free=$(df --output=avail -B 1000000000 "$above" | in_gb)
[[ ! -d $folder ]] || there=$(du -s -B 1000000000 "$folder" | cut -f 1 | in_gb)
echo "The report goes to $folder/report.md. All takes $needed GB; $there are there, and $free are free."
[[ ! $dry ]] || exit 0

((free + there >= needed)) ||
    fail "$folder has room for $free GB, and $((needed - there)) are needed: choose another disk, or set FREE_GB."
[[ $device != cuda ]] || python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "--device cuda: torch finds no GPU here. --device cpu takes months with these options."
mkdir -p "$folder" || fail "$folder cannot be written."
exec 9>"$folder/lock"
flock --nonblock 9 || fail "$folder is in use by another run."

is_whole() { [[ -e $1 && $(md5sum "$1" | cut -d ' ' -f 1) == "$md5" ]]; }

if [[ ! -e $archive ]] && ! is_whole "$archive.part"; then
    if [[ -t 2 ]]; then download+=(--progress-bar); else download+=(--silent); fi
    for try in 1 2 3; do # each goes on where the one before has ended
        problem=$("${download[@]}") && break
        ((try < 3)) || fail "$url cannot be downloaded: $problem. Start again to go on, or set TASK01_URL to a mirror."
    done
    is_whole "$archive.part" || {
        rm "$archive.part"
        fail "$url is not the archive: its MD5 is not $md5. It is removed; start again, or set TASK01_URL to a mirror."
    }
fi
[[ -e $archive ]] || mv "$archive.part" "$archive"
if [[ ! -e $folder/unpacked ]]; then
    "${unpack[@]}" || fail "$archive cannot be unpacked."
    [[ -d $folder/Task01_BrainTumour/labelsTr ]] || fail "$archive holds no Task01_BrainTumour/labelsTr."
    touch "$folder/unpacked"
fi
file=$("${weights[@]}")
autosam2 weights verify "$file"
"${experiment[@]}" --sam2-checkpoint "$file" >"$folder/report.md.part"
mv "$folder/report.md.part" "$folder/report.md"
cat "$folder/report.md"
