"""Writes nnU-Net's fingerprint of a data set from few voxels. Usage: write_fingerprint.py DATASET

nnU-Net draws 10e7 of them with replacement however small the images are, which takes longer than all else in planning
and preprocessing them. `nnUNetv2_plan_and_preprocess` keeps a fingerprint that is there.
"""

import sys

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

if __name__ == "__main__":  # nnU-Net's workers import this file
    extractor = DatasetFingerprintExtractor(int(sys.argv[1]), num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 1e5
    extractor.run()
