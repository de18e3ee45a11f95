"""Trains models fold by fold with nnU-Net's commands, evaluates them, and compares them case by case.

`models` says what is compared, `fold_job` does one fold of one model, `schedule` runs the jobs, `comparison` has the
statistics, and `record` writes it all down.
"""
