"""The mistakes of tests/test_mutations.py: those that cost people days, and others that a change may bring back."""

from typing import NamedTuple

OWN_NETWORK, OWN_TRAINING = "tests/model/test_golden.py", "tests/train/test_golden.py"
NETWORK = "tests/parity/test_network.py::test_raw_maps_equal_the_reference[nano]"
GRADIENTS = "tests/parity/test_loss.py::test_parts_and_gradients_equal_the_reference"
ASSIGNER = "tests/parity/test_assigner.py::test_targets_equal_the_reference"
STEPS = "tests/parity/test_training.py::test_200_steps_on_supplied_gradients[SGD-linear-1]"
AP = "tests/parity/test_metrics.py::test_random_sets_equal_ultralytics"
COCO_AP = "tests/parity/test_metrics.py::test_coco_equals_pycocotools"

RESUME = "tests/train/test_resume.py::test_asked_to_leave_it_saves_where_it_is"

METRICS, MATCHING = "eval/metrics.py", "eval/matching.py"
COMPONENTS, BOXES, LOSS, TAL = "model/base/components.py", "ops/boxes.py", "train/loss.py", "train/tal.py"


class Edit(NamedTuple):
    """A piece of a file that occurs once, and what stands there instead."""

    file: str
    right: str
    wrong: str


class Mutation(NamedTuple):
    """A mistake, and who must notice it: a test of our own and, for what has a reference, one that asks it."""

    edits: tuple[Edit, ...]
    own: str
    parity: str | None = None


MUTATIONS = {
    "shortcut removed": Mutation(
        (Edit(COMPONENTS, "return x + y if self.add else y", "return y"),), OWN_NETWORK, NETWORK
    ),
    "SPPF without its activation": Mutation(
        (Edit(COMPONENTS, "parts = [self.cv1(x)]", "parts = [self.cv1.bn(self.cv1.conv(x))]"),), OWN_NETWORK, NETWORK
    ),
    "batch norm's eps of torch": Mutation((Edit(COMPONENTS, "BN_EPS = 1e-3", "BN_EPS = 1e-5"),), OWN_NETWORK, NETWORK),
    "batch norm's momentum of torch": Mutation(
        (Edit(COMPONENTS, "BN_MOMENTUM = 0.03", "BN_MOMENTUM = 0.1"),),
        OWN_NETWORK,
        "tests/parity/test_network.py::test_train_mode_and_statistics_equal_the_reference",
    ),
    "bilinear upsampling": Mutation(
        (Edit("model/base/neck.py", 'mode="nearest"', 'mode="bilinear"'),), OWN_NETWORK, NETWORK
    ),
    "stride forgotten before assigning": Mutation(
        (Edit(LOSS, "(distributions, points, strides, ", "(distributions, points, strides / strides, "),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "stride forgotten in the target boxes": Mutation(
        (Edit(LOSS, "target_bboxes.flatten(0, 1)[row] / stride,", "target_bboxes.flatten(0, 1)[row],"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "targets not detached": Mutation(
        (
            Edit(TAL, "    @torch.no_grad()\n", ""),
            Edit(LOSS, "with torch.no_grad():", "with torch.enable_grad():"),
        ),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "CIoU's alpha not detached": Mutation(
        (Edit(BOXES, "with torch.no_grad():", "with torch.enable_grad():"),), OWN_TRAINING, f"{GRADIENTS}[0-usual-0]"
    ),
    "normalised by the number of points": Mutation(
        (Edit(LOSS, "weight.sum().clamp(min=1)", "(weight > 0).sum().clamp(min=1)"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "normaliser not clamped": Mutation(
        (Edit(LOSS, "weight.sum().clamp(min=1)", "weight.sum()"),), OWN_TRAINING, f"{GRADIENTS}[0-empty-0]"
    ),
    "distances clamped a bin too early": Mutation(
        (Edit(LOSS, ".clamp(0, last - LAST_BIN_MARGIN)", ".clamp(0, last - 1 - LAST_BIN_MARGIN)"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-long-0]",
    ),
    "eleven points a box": Mutation(
        (Edit(TAL, "min(self.topk, pairs.most)", "min(self.topk + 1, pairs.most)"),),
        OWN_TRAINING,
        f"{ASSIGNER}[usual]",
    ),
    "points without overlap chosen": Mutation(
        (Edit(TAL, "return is_best & (metric != 0)", "return is_best"),),
        "tests/train/test_tal.py::test_agrees_with_the_slow_twin",
        f"{ASSIGNER}[usual]",
    ),
    "conflicts among choosers only": Mutation(
        (Edit(TAL, 'per_point(overlaps, "amax")', 'per_point(overlaps * is_chosen, "amax")'),),
        OWN_TRAINING,
        f"{ASSIGNER}[crowded]",
    ),
    "targets scaled before conflicts": Mutation(
        (
            Edit(
                TAL,
                "_target_scores(pairs, metric, overlaps, is_owner)",
                "_target_scores(pairs, metric, overlaps, self._choose(pairs, metric))",
            ),
        ),
        OWN_TRAINING,
        f"{ASSIGNER}[crowded]",
    ),
    "decay on batch norm": Mutation(
        (
            Edit(
                "train/opt.py", '"params": norms, "weight_decay": 0.0', '"params": norms, "weight_decay": weight_decay'
            ),
        ),
        OWN_TRAINING,
        STEPS,
    ),
    "momentum not Nesterov's": Mutation(
        (Edit("train/opt.py", "nesterov=nesterov)", "nesterov=False)"),), OWN_TRAINING, STEPS
    ),
    "average without a ramp": Mutation(
        (Edit("train/ema.py", "d = self.decay * (1 - math.exp(-self.steps / self.ramp))", "d = self.decay"),),
        "tests/train/test_schedules.py",
        STEPS,
    ),
    "gradients not clipped": Mutation(
        (Edit("train/step.py", "self.parameters, self.gradient_clip)", "self.parameters, math.inf)"),),
        OWN_TRAINING,
        STEPS,
    ),
    "biases warmed up like weights": Mutation(
        (Edit("train/sched.py", "bias_rate=(1 - part) * self.bias_rate + part * rate", "bias_rate=part * rate"),),
        "tests/train/test_schedules.py",
        STEPS,
    ),
    "a truth found twice": Mutation((Edit(MATCHING, "taken.add(truth)", "pass"),), "tests/eval/test_metrics.py", AP),
    "precision as it comes": Mutation(
        (Edit(METRICS, "np.maximum.accumulate(precision[::-1])[::-1]", "precision"),), "tests/eval/test_metrics.py", AP
    ),
    "difficult objects count for COCO": Mutation(
        (Edit(METRICS, '"iscrowd": int(difficult)', '"iscrowd": 0'),), "tests/eval/test_metrics.py", COCO_AP
    ),
} | {
    name: Mutation((Edit(file, right, wrong),), own)
    for name, file, right, wrong, own in (
        # From disk to a batch
        (
            "letterbox in the corner", "dl/augment.py",
            "(height - new_height) // 2, (width - new_width) // 2", "0, 0",
            "tests/dl/test_augment.py::test_letterbox_there_and_back",
        ),
        (
            "letterbox undone without its offset", "ops/batch.py",
            "(boxes - offset) / scale", "boxes / scale",
            "tests/dl/test_augment.py::test_letterbox_there_and_back",
        ),
        (
            "boxes of a mirrored image stay", "dl/augment.py",
            "np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], axis=1)", "moved",
            "tests/dl/test_augment.py::test_a_known_flip_and_crop",
        ),
        (
            "corners of mirrored boxes exchanged in a mosaic", "dl/mosaic.py",
            "width - all_boxes[:, [2, 0]]", "width - all_boxes[:, [0, 2]]",
            "tests/dl/test_mosaic.py::test_marks_are_found_where_the_boxes_say",
        ),
        (
            "what a mosaic cut off counts as area of a box", "dl/mosaic.py",
            "for limits in (canvas, window)", "for limits in (canvas * 0 + [-1e9, -1e9, 1e9, 1e9], window)",
            "tests/dl/test_mosaic.py::test_what_the_canvas_had_cut_off_counts_for_nothing",
        ),
        (
            "a warp moves pixels half a pixel away from the boxes", "dl/warp.py",
            "np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])", "np.eye(3)",
            "tests/dl/test_transforms.py::test_a_warp_by_right_angles_is_exact",
        ),
        (
            "boxes of a partner in MixUp keep the size of their image", "dl/transforms.py",
            "factor = np.array([size[1] / width, size[0] / height] * 2)", "factor = np.ones(4)",
            "tests/dl/test_transforms.py::test_partners_of_another_size_are_resized",
        ),
        (
            "a covered object keeps its whole box", "dl/transforms.py",
            "boxes[begins, low] = boxes[begins, low].clip(min=window[low + 2])", "pass",
            "tests/dl/test_transforms.py::test_erase_boxes_are_what_is_visible",
        ),
        (
            "a part of a recipe is stored without its defaults", "config/parts.py",
            "for field in dataclasses.fields(part) if field.init}", "for field in dataclasses.fields(part) if False}",
            "tests/config/test_parts.py::test_text_and_back",
        ),
        (
            "any class of a recipe is built, whatever it is", "config/parts.py",
            "if missing := _missing(part_class, kind):", "if missing := []:",
            "tests/config/test_parts.py::test_a_class_of_another_kind_is_not_even_built",
        ),
        (
            "mosaic ends an epoch late", "dl/mosaic.py",
            "position < self.mosaic_end", "position <= self.mosaic_end",
            "tests/dl/test_mosaic.py::test_closed_for_the_last_epochs",
        ),
        (
            "replayed images without a mask", "dl/label_selection.py",
            "return _mark_labelled(replayed, class_list, base)", "return replayed",
            "tests/dl/test_label_selection.py::test_replayed_images_have_marks_of_their_own",
        ),
        (
            "images of the small split replayed", "dl/label_selection.py",
            "if annotation.image_id not in own_ids", "if True",
            "tests/dl/test_label_selection.py::test_images_of_the_split_are_never_replayed",
        ),
        (
            "labels selected as for a teacher", "dl/label_selection.py",
            'field = "distilSelectedClasses" if is_student else', 'field = "trainSelectedClasses" if is_student else',
            "tests/dl/test_label_selection.py::test_a_student_has_a_selection_of_its_own",
        ),
        (
            "validation images in the test split", "dl/splits.py",
            "order[num_validation:held_out]", "order[:held_out]",
            "tests/dl/test_splits.py::test_made_splits_share_every_image_out",
        ),
        (
            "kept images of another range", "dl/image_cache.py",
            "annotation.height, annotation.pixel_max", "annotation.height, None",
            "tests/dl/test_image_cache_build.py::test_pixels_scaled_by_another_range_are_not_used",
        ),
        (
            "16 bits always scaled by 65535", "dl/images.py",
            "if max_value <= largest + 1)", "if largest == 65535)",
            "tests/dl/test_images.py::test_the_range_in_use",
        ),
        (
            "values above the range of 16-bit images wrap around", "dl/images.py",
            "wide = np.minimum(np.arange(2**16, dtype=np.uint32), largest)", "wide = np.arange(2**16, dtype=np.uint32)",
            "tests/dl/test_images.py::test_16_bits_are_scaled_by_the_range_in_use_or_by_the_one_given",
        ),
        # From weights to detections and figures
        (
            "class rows carried over by place", "model/pretrained.py",
            "own[rows] = value[sources].to(own)", "own[rows] = value[rows].to(own)",
            "tests/model/test_pretrained.py::test_rows_of_classes_that_both_know_are_carried_over_by_name",
        ),
        (
            "suppression across classes", "ops/nms.py",
            "torch.zeros_like(labels) if class_agnostic else labels", "torch.zeros_like(labels)",
            "tests/ops/test_nms.py::test_one_box_may_be_two_classes_unless_agnostic",
        ),
        (
            "the score threshold included", "ops/nms.py",
            "torch.where(scores > score_threshold)", "torch.where(scores >= score_threshold)",
            "tests/ops/test_nms.py::test_threshold_is_exclusive",
        ),
        (
            "an image evaluated twice", MATCHING,
            "if len(by_image) != len(detections) or len", "if len",
            "tests/eval/test_evaluator.py::test_a_split_is_evaluated_whole_or_not_at_all",
        ),
        (
            "an object taken by two detections in the confusion", MATCHING,
            "taken.add(truth)", "pass",
            "tests/eval/test_confusion.py",
        ),
        (
            "an object taken by two painted detections", MATCHING,
            "taken.add(truth)", "pass",
            "tests/eval/test_painter.py",
        ),
        (
            "an object taken by two detections in the bootstrap", MATCHING,
            "taken.add(truth)", "pass",
            "tests/eval/test_bootstrap.py::test_weights_of_one_are_coco_ap",
        ),
        (
            "of equal overlaps the last object", MATCHING,
            "np.lexsort((-found, detections))",
            "np.lexsort((-objects, -found, detections))",
            "tests/eval/test_matching.py",
        ),
        (
            "objects matched whatever their class", MATCHING,
            "annotation.labels[None, :], overlaps, np.float32(0))", "annotation.labels[None, :], overlaps, overlaps)",
            "tests/eval/test_painter.py",
        ),
        (
            "a normal quantile for few splits", "eval/bootstrap.py",
            "half = t_quantile(len(values) - 1) *", "half = _Z *",
            "tests/eval/test_bootstrap.py::test_the_interval_of_a_mean_covers_the_truth_in_95_per_cent",
        ),
        (
            "a bootstrap of 90 %", "eval/bootstrap.py",
            "_LIMITS = (2.5, 97.5)", "_LIMITS = (5.0, 95.0)",
            "tests/eval/test_bootstrap.py::test_images_are_drawn_with_replacement",
        ),
        (
            "an arithmetic mean of base and novel", "eval/groups.py",
            "2 * base * novel / (base + novel) if", "(base + novel) / 2 if",
            "tests/eval/test_groups.py::test_harmonic_mean",
        ),
        # From batches to weights
        (
            "the average and the weights exchanged", "train/ema.py",
            "lerp_(averages, weights, 1 - d)", "lerp_(averages, weights, d)",
            "tests/train/test_schedules.py::test_average_equals_the_formula",
        ),
        (
            "a straight warm-up", "train/sched.py",
            "(position / self.warmup) ** 2", "(position / self.warmup)",
            "tests/train/test_schedules.py::test_cosine_has_the_assignments_shape",
        ),
        (
            "a mean over batches instead of images", "train/step.py",
            "_div_(self._gradients(), images / first)", "_div_(self._gradients(), float(self.pending))",
            "tests/train/test_step.py::test_accumulated_batches_equal_one_batch_of_all_their_images",
        ),
        (
            "gradients that wait are lost on resuming", "train/state.py",
            "parameter.grad = None if gradient is None else gradient.to(self.device)", "parameter.grad = None",
            f"{RESUME}[Stepper-add-1-0-in epoch 1/2 after 1 of 4 batches]",
        ),
        (
            "momentum is lost on resuming", "train/state.py",
            'load_optimizer(self.optimizer, checkpoint["optimizer"])', "pass",
            f"{RESUME}[RunFolder-write_history-1-0-after epoch 1/2]",
        ),
        (
            "T squared forgotten for class scores", "train/distilloss.py",
            "full_precision(teacher) / temperature) * temperature**2", "full_precision(teacher) / temperature)",
            "tests/train/test_distilloss.py::test_the_binary_mode_is_the_textbook_sum",
        ),
        (
            "no floor below the normaliser of class scores", "train/distilloss.py",
            "* chosen).sum().clamp(min=1)", "* chosen).sum()",
            "tests/train/test_distilloss.py::test_the_binary_mode_is_the_textbook_sum",
        ),
        (
            "a pseudo label where labels are complete", "train/teacher.py",
            "scores * is_missing", "scores",
            "tests/train/test_pseudo.py",
        ),
    )
}  # fmt: skip
