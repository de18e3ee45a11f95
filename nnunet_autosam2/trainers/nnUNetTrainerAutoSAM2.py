"""The nnU-Net trainer of AutoSAM2: network, loss, schedule and early stopping; everything else is nnU-Net's."""

from __future__ import annotations

import atexit
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn.parallel import DistributedDataParallel

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.mri_to_rgb import choose_rgb_channels
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.architectures.sam2.chunking import is_out_of_memory
from nnunet_autosam2.architectures.sam2.weights import expanded, find
from nnunet_autosam2.architectures.unet import strides_for
from nnunet_autosam2.config import PLANS_KEY, AutoSAM2Config
from nnunet_autosam2.errors import AutoSAM2Error, ConfigurationError, TrainingError, exit_on_user_error
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint, require_nnunet_checkpoint
from nnunet_autosam2.support.checksum import file_checksum
from nnunet_autosam2.support.dataset_json import channel_names, foreground_labels
from nnunet_autosam2.support.plans import read_plans
from nnunet_autosam2.support.staging import remove_unfinished, replaced_file
from nnunet_autosam2.trainers.backbone import find_baseline, load_backbone
from nnunet_autosam2.trainers.diagnostics import COUNTED, HybridProgress, confusion_counts
from nnunet_autosam2.trainers.early_stopping import ANNEALED, EarlyStopping, defined_ema
from nnunet_autosam2.trainers.finite_steps import FiniteAdamW, SkippedSteps
from nnunet_autosam2.trainers.gate_veto import GateVerdict, close_gates, open_gates
from nnunet_autosam2.trainers.intensities import intensities
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, sample_weight_of
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR
from nnunet_autosam2.trainers.pretrained import load_pretrained, take_pretrained_weights
from nnunet_autosam2.trainers.resuming import changes, require_same_structure
from nnunet_autosam2.trainers.run_manifest import (
    RunManifest,
    keep_predictions,
    training_facts,
    weights_checksum,
)
from nnunet_autosam2.trainers.sliding_window import encode_shared_slices_once
from nnunet_autosam2.trainers.test_time_augmentation import install as install_test_time_augmentation

TEST_RUN = AutoSAM2Config(num_epochs=2, num_iterations_per_epoch=10, num_val_iterations_per_epoch=2)
TEST_RUN_CASES = 4
OUT_OF_MEMORY = (
    "Out of memory. Lower sam2_image_size or slice_fraction, or the batch or patch size in a configuration of "
    "`autosam2 configure`. The checkpoints are good."
)
BEFORE = {"black_background": False, "regions_per_slice": None}
"""Parameters of models whose plans do not name them, since no version did"""
LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")

encode_shared_slices_once()
install_test_time_augmentation()
take_pretrained_weights()
keep_predictions()


class PatienceExhausted(Exception):
    """Ends nnU-Net's loop over epochs."""


class nnUNetTrainerAutoSAM2(nnUNetTrainer):
    """Hybrid of a 3D UNet and SAM2 on 30 % of the slices.

    What AutoSAM2Config calls its parameters are, in order of precedence, `parameters` of the trainer's class, the
    `autosam2` block of the plans configuration where it is not null, `defaults` of the class, and those of
    AutoSAM2Config. The outcome is written into the plans of the results folder, from which a prediction rebuilds the
    network.
    """

    parameters: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}

    network: Any
    grad_scaler: torch.amp.GradScaler | None
    my_init_kwargs: dict[str, Any]
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        with exit_on_user_error():
            self.config = self.resolve_config(plans, configuration, dataset_json)
        plans["configurations"][configuration][PLANS_KEY] = self.config.to_dict()
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.config.initial_lr
        self.weight_decay = self.config.weight_decay
        lengths = TEST_RUN if self.config.test_run else self.config
        for name in LENGTHS:
            setattr(self, name, getattr(lengths, name) or getattr(self, name))
        self.manifest: RunManifest | None = None
        self.started_from: dict[str, dict[str, str | None]] = {}
        """Part of the network → file that its weights come from, and its checksum"""
        self.progress: HybridProgress | None = None
        self.restored_epochs: int | None = None
        """Epochs that the best weights have been trained for, where they became the final ones"""
        self.skipped_steps = SkippedSteps()

    @classmethod
    def resolve_config(cls, plans: dict, configuration: str, dataset_json: dict) -> AutoSAM2Config:
        """The configuration for a data set.

        Raises:
            ConfigurationError: a parameter is unknown or not possible, or the configuration is 2D and the UNet is not.
        """
        plans_manager = PlansManager(plans)
        settings = plans_manager.get_configuration(configuration).configuration
        block = settings.get(PLANS_KEY, {})
        unsaid = {key: value for key, value in cls.defaults.items() if block.get(key) is None}
        config = AutoSAM2Config.from_dict({**block, **unsaid, **cls.parameters})
        if len(settings["patch_size"]) == 2 and config.backbone != "plans":
            raise ConfigurationError(
                f"AutoSAM2's own UNet needs volumes, and {configuration} is 2D. Train 3d_fullres or 3d_lowres, or set "
                "backbone = plans, as nnUNetTrainerAutoSAM2_Plans and nnUNetTrainerAutoSAM2_OnBaseline do."
            )
        if config.freeze_backbone and not config.uses_sam2:
            raise ConfigurationError("freeze_backbone = true without SAM2 leaves nothing to train.")
        channels = channel_names(dataset_json)
        labels = plans_manager.get_label_manager(dataset_json)
        config.require_fits(len(channels), labels.num_segmentation_heads)
        found = {**intensities(plans, settings), "rgb_channels": choose_rgb_channels(channels)}
        unsaid = {key: value for key, value in found.items() if getattr(config, key) is None}
        return config.updated({**unsaid, "region_based": labels.has_regions})

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> AutoSAM2:
        """The network as the plans describe it, for training and for prediction, without SAM2's weights."""
        config = AutoSAM2Config.from_dict({**BEFORE, **configuration_manager.configuration[PLANS_KEY]})
        planned: Any = None
        strides: Sequence[Sequence[int]] = ()
        if config.backbone == "plans":
            planned = nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels
            )
        else:
            strides = strides_for(configuration_manager.patch_size, configuration_manager.pool_op_kernel_sizes)
        modalities = len(configuration_manager.normalization_schemes)
        network = AutoSAM2(num_output_channels, num_input_channels, config, strides, planned, modalities)
        network.set_deep_supervision(enable_deep_supervision)
        return network

    @property
    def autosam2(self) -> AutoSAM2:
        """The network without distributed data parallel around it."""
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    def initialize(self) -> None:
        atexit.register(_remove_run_that_never_started, Path(self.log_file))
        with self._removing_empty_run():
            super().initialize()
        annealed_from = self.lr_scheduler.epochs_until_below(ANNEALED)
        self.early_stopping = EarlyStopping(self.config.early_stopping_patience, annealed_from)
        if super()._do_i_compile():
            self.print_to_log_file("Using torch.compile for UNet, image encoder, mask decoder, fusion and loss...")
            self.autosam2.compile()
            self.loss.compile()

    def _do_i_compile(self) -> bool:
        """False: the network as a whole is not compiled."""
        return False

    @contextmanager
    def _removing_empty_run(self) -> Iterator[None]:
        """A run that cannot start, by the user's error, leaves nothing behind."""
        try:
            with exit_on_user_error():
                yield
        except SystemExit:
            _remove_run(Path(self.log_file))
            raise

    def _build_loss(self) -> AutoSAM2Loss:
        plans, weight = self.configuration_manager, 1.0
        if self.is_ddp:
            weight = sample_weight_of(self.batch_size, torch.distributed.get_world_size(), plans.batch_size)
        return AutoSAM2Loss.from_config(
            self.config, self.label_manager, plans.batch_dice, self.is_ddp, sample_weight=weight
        ).to(self.device)

    def configure_optimizers(self) -> tuple[FiniteAdamW, IterationOneCycleLR]:
        """AdamW over what trains; OneCycle, one step an iteration."""
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = FiniteAdamW(trainable, lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = IterationOneCycleLR(optimizer, self.initial_lr, self.num_epochs, self.num_iterations_per_epoch)
        return optimizer, schedule

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        dimensions = len(self.configuration_manager.patch_size)
        return [[1 / stride for stride in strides[-dimensions:]] for strides in self.autosam2.output_strides]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        self.autosam2.set_deep_supervision(enabled)

    def do_split(self) -> tuple[list[str], list[str]]:
        train, validation = super().do_split()
        return (train[:TEST_RUN_CASES], validation[:TEST_RUN_CASES]) if self.config.test_run else (train, validation)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        with self._removing_empty_run():
            self._refuse_other_config_of_same_model()
            self._load_initial_weights()
        super().on_train_start()
        if self.local_rank == 0:
            remove_unfinished(Path(self.output_folder))
        changed = AutoSAM2Config().differences(self.config)
        self.print_to_log_file("AutoSAM2:", ", ".join(f"{key} = {value}" for key, (_, value) in changed.items()))
        if self.local_rank == 0:
            self.manifest = RunManifest(Path(self.output_folder), "training", self.device, training_facts(self))
            self.manifest.write()

    def _note_start(self, part: str, path: Path | None) -> None:
        known = (str(path), file_checksum(path)) if path else (None, None)
        self.started_from[part] = dict(zip(("file", "sha256"), known, strict=True))

    def _load_initial_weights(self) -> None:
        """Unless a checkpoint of this network is there already, by `--c` or by `-pretrained_weights`."""
        if self.config.backbone_checkpoint is not None and not self.autosam2.state_was_loaded:
            folder, named = Path(self.output_folder), self.config.backbone_checkpoint
            configurations = self.plans_manager.plans["configurations"]
            path = (
                find_baseline(folder, configurations) if named == "auto" else expanded(named, "backbone_checkpoint = ")
            )
            assert isinstance(self.autosam2.unet, PlannedUNet)
            load_backbone(self.autosam2.unet.network, path, self.configuration_manager.configuration, self.dataset_json)
            self.print_to_log_file(f"The backbone starts from {path}.")
            self._note_start("backbone", path)
        if self.config.encoder_checkpoint is not None and not self.autosam2.state_was_loaded:
            path = expanded(self.config.encoder_checkpoint, "encoder_checkpoint = ")
            self.print_to_log_file(load_pretrained(self.autosam2, path, f"encoder_checkpoint = {path}"))
            self._note_start("encoder", path)
        if self.config.uses_sam2 and not (self.autosam2.state_was_loaded and self.autosam2.sam2_has_weights):
            self.autosam2.load_sam2_weights()
            self._note_start("sam2", find(self.config).path)

    def _refuse_other_config_of_same_model(self) -> None:
        """Folds share one plans.json; writing another configuration into it would break those already trained."""
        folder = Path(self.output_folder_base)
        others = [path for path in folder.glob("fold_*/checkpoint_*.pth") if path.parent != Path(self.output_folder)]
        if not others or not (folder / "plans.json").is_file():
            return
        trained = read_plans(folder / "plans.json")["configurations"].get(self.configuration_name, {})
        differences = AutoSAM2Config.from_dict({**BEFORE, **trained.get(PLANS_KEY, {})}).differences(self.config)
        if differences:
            listed = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in differences.items())
            raise ConfigurationError(
                f"{folder} holds folds that were trained with another configuration ({listed}). "
                "Add a configuration of another name with `autosam2 configure`, or remove that folder."
            )

    def train_step(self, batch: dict) -> dict:
        taken_before = self.optimizer.num_taken
        while (result := self._step_within_memory(batch)) is None:
            if not self.autosam2.halve_chunks():
                raise TrainingError(OUT_OF_MEMORY)
        self.lr_scheduler.step()
        self.skipped_steps.add(self.optimizer.num_taken > taken_before)
        return result

    def _step_within_memory(self, batch: dict) -> dict | None:
        """None: memory ran out before a parameter was changed. Of several processes one alone cannot try again."""
        taken_before = self.optimizer.num_taken
        try:
            return super().train_step(batch)
        except (RuntimeError, MemoryError) as error:
            tried_chunks_of_one = isinstance(error, AutoSAM2Error)
            changed = self.is_ddp or self.optimizer.num_taken > taken_before
            if tried_chunks_of_one or changed or not is_out_of_memory(error):
                raise
        self._renew_grad_scaler()
        return None

    def _renew_grad_scaler(self) -> None:
        """It refuses a step that it has begun, by unscaling the gradients, and that did not come to its end."""
        if self.grad_scaler is not None and (state := self.grad_scaler.state_dict()):
            self.grad_scaler = torch.amp.GradScaler(self.device.type)
            self.grad_scaler.load_state_dict(state)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if self.skipped_steps.total:
            self.print_to_log_file(
                f"WARNING: {self.skipped_steps.total} of {len(train_outputs)} steps were skipped: "
                "their loss or gradients were not finite."
            )
            self.skipped_steps.reset()
        super().on_train_epoch_end(self._with_finite_losses(train_outputs))

    def _with_finite_losses(self, train_outputs: list[dict]) -> list[dict]:
        """Losses that are not finite become the mean of those that are, in all processes.

        None is left out: nnU-Net stacks the lists of all processes, which have to have the same length.
        """
        losses = np.ravel(self._gathered([output["loss"] for output in train_outputs]))
        finite = losses[np.isfinite(losses)]
        if not len(finite):
            return train_outputs
        mean = np.asarray(finite.mean(), dtype=finite.dtype)
        return [output if np.isfinite(output["loss"]) else {**output, "loss": mean} for output in train_outputs]

    def _gathered(self, value: Any) -> list:
        """Values of all processes."""
        if not self.is_ddp:
            return [value]
        values: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(values, value)
        return values

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's, and the same counts for the UNet and SAM2 alone."""
        target = batch["target"][0].clone()  # nnU-Net overwrites labels to ignore
        target = target[:, :, None] if target.ndim == 4 else target
        outputs: list[AutoSAM2Output] = []
        with self.network.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
            result = super().validation_step(batch)
        truth, counted = self.loss.segmentation.encode(target.to(self.device, non_blocking=True))
        return {**result, **confusion_counts(outputs[0], truth, counted, self.label_manager.has_regions)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self._keep_ema_defined()
        if not set(COUNTED) <= set(val_outputs[0]):
            return
        means = {key: np.mean([output[key] for output in val_outputs], axis=0) for key in COUNTED}
        means = {key: np.mean([other[key] for other in self._gathered(means)], axis=0) for key in COUNTED}
        if self.local_rank == 0:
            fused = self.logger.get_value("dice_per_class_or_region", step=self.current_epoch)
            for line in self._progress_of_fold().add(self.current_epoch, means, fused):
                self.print_to_log_file(line)

    def _progress_of_fold(self) -> HybridProgress:
        """The table of the fold's folder, which the main process alone reads and writes."""
        if self.progress is None:
            self.progress = HybridProgress(Path(self.output_folder), list(foreground_labels(self.dataset_json)))
        return self.progress

    def _keep_ema_defined(self) -> None:
        """Keeps the average by which nnU-Net chooses the best checkpoint, and once NaN its own stays so."""
        pseudo_dice = self.logger.get_value("mean_fg_dice", step=None)
        if math.isnan(pseudo_dice[-1]):
            self.print_to_log_file(
                "The pseudo Dice of this epoch is undefined: its validation batches have no foreground, and none was "
                "predicted. It counts neither as progress nor against the patience."
            )
        averages = self.logger.get_value("ema_fg_dice", step=None)
        if math.isnan(averages[-1]):
            averages[-1] = next((value for value in reversed(defined_ema(pseudo_dice)) if value == value), math.nan)

    def on_epoch_start(self) -> None:
        if self.early_stopping.should_stop(defined_ema(self.logger.get_value("mean_fg_dice", step=None))):
            raise PatienceExhausted
        if open_gates(self.autosam2):
            self.print_to_log_file("The gates that were closed at the end of this training are open as it goes on.")
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._let_any_value_be_better()

    def _let_any_value_be_better(self) -> None:
        """Than an average of nothing, NaN, to which nnU-Net compares nothing as better."""
        if self._best_ema is not None and math.isnan(self._best_ema):
            self._best_ema = -math.inf

    def on_train_end(self) -> None:
        if self.autosam2.fusion is not None:
            epochs = self.current_epoch if self.restored_epochs is None else self.restored_epochs
            own = GateVerdict.after(self._progress_of_fold(), epochs) if self.local_rank == 0 else None
            for line in close_gates(self.autosam2, self._gathered(own)[0]):
                self.print_to_log_file(line)
        super().on_train_end()
        if self.manifest is not None:
            weights = weights_checksum(self.autosam2.state_dict())
            self.manifest.end({"epochs": self.current_epoch, "weights_sha256": [weights]})

    def run_training(self) -> None:
        with exit_on_user_error():
            try:
                self._run_until_patience_is_exhausted()
            except AutoSAM2Error:
                self._end_data_loaders()
                raise
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._end_data_loaders()
                raise TrainingError(OUT_OF_MEMORY) from error

    def _end_data_loaders(self) -> None:
        """Left alone, they would end after the main process has closed its queues, with a traceback of their own."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()

    def _run_until_patience_is_exhausted(self) -> None:
        try:
            super().run_training()
        except PatienceExhausted:
            self.print_to_log_file(
                f"Stopped before epoch {self.current_epoch}: no better EMA of the pseudo Dice in "
                f"{self.config.early_stopping_patience} epochs. The best weights become checkpoint_final.pth."
            )
            self._restore_best_weights()
            self.on_train_end()

    def _restore_best_weights(self) -> None:
        best = Path(self.output_folder) / "checkpoint_best.pth"
        if best.is_file():
            checkpoint = read_nnunet_checkpoint(best, self.device)
            self.autosam2.load_state_dict(checkpoint["network_weights"])
            self.restored_epochs = checkpoint["current_epoch"]

    def save_checkpoint(self, filename: str) -> None:
        """The checkpoint of this name stays as it was until the new one is whole.

        Raises:
            TrainingError: the disk refuses.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        try:
            with replaced_file(Path(filename)) as temporary:
                super().save_checkpoint(str(temporary))
        except (OSError, RuntimeError) as error:
            raise TrainingError(
                f"{filename} cannot be written: {str(error).splitlines()[0]}. The checkpoint before it is as it was: "
                "make room and go on with --c."
            ) from error

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, without distributed data parallel, which exchanges buffers in a forward pass of all processes.

        They predict different numbers of cases: a process that has none would let the others wait.
        """
        wrapped, self.network = self.network, self.autosam2
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.network = wrapped

    def load_checkpoint(self, *arguments: Any, **named: Any) -> None:
        """nnU-Net's, whose one argument has had several names.

        Parameters that have changed since count as they are now, learning rates and weight decay among them, which the
        optimizer's state would bring back.
        """
        (source,) = (*arguments, *named.values())
        with self._removing_empty_run():
            content = source if isinstance(source, dict) else require_nnunet_checkpoint(Path(source))
            plans, configuration = (content["init_args"][key] for key in ("plans", "configuration"))
            before = AutoSAM2Config.from_dict(plans["configurations"][configuration].get(PLANS_KEY, {}))
            require_same_structure(before, self.config)
        if not self.was_initialized:
            self.initialize()
        for line in changes(before, self.config):
            self.print_to_log_file(line)
        init_arguments = self.my_init_kwargs
        hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super().load_checkpoint(source if isinstance(source, dict) else str(source))
        self.my_init_kwargs = init_arguments
        for group, own in zip(self.optimizer.param_groups, hyperparameters, strict=True):
            group.update(own)
        self._let_any_value_be_better()


def _remove_run(log_file: Path) -> None:
    """The log of a run, and the folders of fold, model and data set where it was all they had."""
    log_file.unlink(missing_ok=True)
    for folder in list(log_file.parents)[:3]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _remove_run_that_never_started(log_file: Path) -> None:
    """Removes a run, as when nnU-Net refuses `-pretrained_weights`: all it has left is its log."""
    if log_file.is_file() and list(log_file.parent.iterdir()) == [log_file]:
        _remove_run(log_file)
