"""What is worth knowing before the first step of a training."""

from numbers import Real

import torch
from mmengine.dataset import ConcatDataset, InfiniteSampler
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner, ValLoop, autocast, find_latest_checkpoint
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from mmrazor.engine.hooks import StopDistillHook
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ..checkpoint import check_fit, fingerprint, overridden, with_new_head
from ..errors import NO_GAIN, SetupError
from ..explain import told
from ..models import Classifier
from ..models.algorithms.cross_arch_distill import WITHOUT_LABELS
from ..models.distillers import StageDistiller
from ..models.utils import classes_of, unwrapped
from ..registry import HOOKS
from ..stages import view_of

# Top-1 accuracy in percent below which other normalisations are tried, and on how many images.
_POOR = 80
_SECOND_LOOK = 1000
# What student and teacher are compared by: the first of these that is measured, in percent.
_SCORES = {'accuracy/top1': 'top-1', 'multi-label/mAP': 'mAP'}


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check data and model against each other, and evaluate the teacher once.

    Before training starts:

    - A checkpoint to begin with (``load_from``) must fit, key by key.
    - So must one to resume from, which must also be of a
      run with the same teacher: :func:`mmkd_tas.checkpoint.fingerprint` of its
      weights is stored in the checkpoints. Settings of the config that give way to
      the checkpoint's (learning rate, schedule, seed) are told.
    - The data sets and the heads must agree on the number of classes.
    - Without labels, nothing may want to learn from them.
    - The images must have the size with which the stages were looked up, and as many channels
      as student and teacher take.
    - All processes must have equally many batches, or they would wait for each other forever.
    - Where a batch has a single image, every BatchNorm layer must be able to take it.
    - Nothing may count epochs in a training that is counted in iterations.
    - The frozen teacher of a :class:`CrossArchDistill` is evaluated on the
      validation data with the run's own metrics, unless it has other classes or none.
      Its result goes to the log, to the visualizer's backends
      (``teacher/accuracy/top1``) and into the checkpoints; a resumed run does not
      repeat it. One no better than chance ends the run, unless the model says
      ``random_teacher=True``; one below ``teacher_floor`` is warned of.
      Below the floor (without one, below 80 %), some of the images are looked at once
      more under other usual normalisations; one that is clearly better is named.

    During training it says once, at the first validation that finds it, that the student has
    passed its teacher; at the end it says what both have reached.

    Unlike MMRazor's ``SingleTeacherDistillValLoop`` this evaluates the teacher
    once instead of at every validation, and fires no other hook: with mmengine's
    ``EMAHook``, that loop leaves the student with other weights.

    Args:
        teacher_floor: Lowest top-1 accuracy of the teacher in percent that
            raises no warning.
        new_head: Of a checkpoint to begin with, the head may be for another number of
            classes: then it is newly initialised.

    Raises:
        SetupError: Before training, if the numbers of classes or of batches differ, there
            is no batch at all, the images are not such as the models take, the teacher is no
            better than chance, BatchNorm meets a single image, something counts epochs where
            there are none, or a checkpoint does not fit or, to resume from, had
            another teacher.
    """

    def __init__(self, teacher_floor: float | None = None, new_head: bool = False) -> None:
        self.teacher_floor = teacher_floor
        self.new_head = new_head
        self.training = False
        self.reached = ''

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse the checkpoint of another model; when resuming, tell what else it decides."""
        if not runner._resume:
            self._check_weights(runner, checkpoint)
        if runner._resume:
            model = unwrapped(runner.model)
            path = runner._load_from or find_latest_checkpoint(runner.work_dir)
            check_fit(model.state_dict(), checkpoint['state_dict'], path, 'resume')
            if settings := overridden(runner, checkpoint):
                runner.logger.warning(
                    f"resume: settings come from the checkpoint '{path}' and not "
                    f'from the config: {"; ".join(settings)}. To train with those of the config, '
                    'start a new run from its weights, with load_from=... instead of resuming'
                )

    def _check_weights(self, runner: Runner, checkpoint: dict) -> None:
        """Load the weights strictly, which mmengine will do once more and not strictly."""
        model, path = unwrapped(runner.model), runner._load_from
        weights = {
            key.removeprefix('module.'): value
            for key, value in checkpoint.get('state_dict', checkpoint).items()
        }
        expected = model.state_dict()
        if self.new_head:
            classes = classes_of(getattr(model, 'architecture', model))
            weights, notes = with_new_head(expected, weights, classes)
            if notes:
                runner.logger.warning(f"load_from: '{path}': {notes[0]}")
        try:
            model.load_state_dict(weights, strict=True)
        except RuntimeError:
            try:
                check_fit(expected, weights, path, 'load_from')
            except SetupError as error:
                raise SetupError(f'{error}{self._instead(model, weights)}') from None
            raise

    def _instead(self, model, weights: dict) -> str:
        """Return what may have been meant by a checkpoint that does not fit."""
        student = getattr(model, 'student', None)
        if student is not None and weights.keys() == student.state_dict().keys():
            return ". It is the student's: give it as model.student_ckpt"
        if student is None and not self.new_head:
            return (
                '. If all but the head is to be taken from it, set '
                'default_hooks.preflight.new_head=True'
            )
        return ''

    def before_train(self, runner: Runner) -> None:
        """Check the data, then the teacher."""
        model = unwrapped(runner.model)
        self.training = True
        self._check_batches(runner)
        self._check_epochs(runner, model)
        self._check_classes(runner, model)
        self._check_labels(runner, model)
        self._check_images(runner, model)
        self._check_single_images(runner, model)
        if hasattr(model, 'teacher_val_step'):
            self._check_teacher(runner, model)
            known = 'teacher_metrics' in runner.message_hub.runtime_info
            if isinstance(runner.val_loop, ValLoop) and not known:
                self._evaluate_teacher(runner, model)

    def before_val(self, runner: Runner) -> None:
        """Check the classes of a validation without training."""
        if runner._train_loop is None:
            self._check_classes(runner, unwrapped(runner.model))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare the student with its teacher; say once that it has passed it."""
        known = runner.message_hub.runtime_info
        teacher, student = known.get('teacher_metrics', {}), metrics or {}
        score = next((name for name in _SCORES if name in teacher and name in student), None)
        if score is None or not self.training:
            return
        name, ours, theirs = _SCORES[score], float(student[score]), teacher[score]
        self.reached = f'the student has {ours:.2f} % {name} and its teacher {theirs:.2f} %'
        meant = getattr(unwrapped(runner.model), 'random_teacher', False)
        if ours > theirs and not meant and 'student_passed_teacher' not in known:
            runner.message_hub.update_info('student_passed_teacher', runner.iter)
            runner.logger.warning(
                f'The student ({ours:.2f} % {name}) has passed its teacher ({theirs:.2f} %) on the '
                'validation data, and may be held back by it from here on: let the losses of the '
                'distillation fade out (model.distiller.loss_schedules), give them a lower '
                f'loss_weight, or use a better teacher; see {NO_GAIN}'
            )

    def after_run(self, runner: Runner) -> None:
        """Say what student and teacher have reached."""
        if self.reached:
            runner.logger.info(
                f'On the validation data {self.reached}. Whether the distillation helped shows in '
                'the comparison with the student trained alone (mmkd-tas compare); what to '
                f'try if it did not: {NO_GAIN}'
            )
        self.training, self.reached = False, ''

    def _check_batches(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        batches, sizes = zip(
            *all_gather_object((len(loader), _sizes_of_batches(runner))), strict=True
        )
        if min(batches) == 0 or len(set(batches)) > 1:
            raise SetupError(
                f'train_dataloader: the processes have {", ".join(map(str, batches))} batches in '
                'an epoch, and need equally many, at least one; leave sampler.round_up at True, '
                'or choose a smaller batch_size'
            )
        if hasattr(unwrapped(runner.model), 'equal_batches'):
            unwrapped(runner.model).equal_batches = None not in sizes and len(set(sizes)) == 1

    def after_train(self, runner: Runner) -> None:
        """Forget what holds for the batches of this training only."""
        if hasattr(unwrapped(runner.model), 'equal_batches'):
            unwrapped(runner.model).equal_batches = False

    def _check_epochs(self, runner: Runner, model) -> None:
        """Refuse what counts epochs where the training is one of mmengine's endless epochs."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        distiller = getattr(model, 'distiller', None)
        for name, schedule in getattr(distiller, 'loss_schedules', {}).items():
            if schedule.counts_epochs:
                raise SetupError(
                    f'distiller.loss_schedules.{name} counts epochs, and a training in iterations '
                    '(train_cfg) has none: give the numbers in iterations, with by_epoch=False'
                )
        if any(isinstance(hook, StopDistillHook) for hook in runner.hooks):
            raise SetupError(
                'custom_hooks: StopDistillHook counts epochs, and a training in iterations '
                '(train_cfg) has none: use loss_schedules of the distiller in its place, with an '
                'end in iterations and by_epoch=False'
            )

    def _check_single_images(self, runner: Runner, model) -> None:
        """Try a batch of one image, where there will be one: BatchNorm may refuse it."""
        loader = runner.train_dataloader
        smallest = _smallest_batch(loader, runner.max_iters)
        if 1 not in all_gather_object(smallest):
            return
        data = loader.collate_fn([loader.dataset[i] for i in range(smallest)])
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        cuda = [p.device for p in model.parameters() if p.is_cuda][:1]
        model.train()
        try:
            with (
                told('batch of one', images=len(loader.sampler), size=loader.batch_size),
                torch.random.fork_rng(cuda),
                torch.no_grad(),
                runner.optim_wrapper.optim_context(model),
            ):
                model(**model.data_preprocessor(data, True), mode='loss')
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def _check_classes(self, runner: Runner, model) -> None:
        heads = classes_of(getattr(model, 'architecture', model))
        loaders = {'train_dataloader': runner.train_dataloader}
        if runner.val_loop is not None:
            loaders['val_dataloader'] = runner.val_loop.dataloader
        if heads == 0 and len(loaders) > 1:
            raise SetupError(
                'val_dataloader: the student has no head (num_classes=0) and predicts nothing that '
                'could be validated: set val_dataloader, val_evaluator and val_cfg to None '
                '(--no-validate), or give it num_classes'
            )
        for name, loader in loaders.items():
            classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
            if classes is not None and heads and len(classes) != heads:
                raise SetupError(
                    f'{name}: the data set has {len(classes)} classes and the head of the model '
                    f'{heads}; set num_classes={len(classes)} in the head, or choose other data'
                )

    def _check_labels(self, runner: Runner, model) -> None:
        """Look at the first image of each training data set."""
        readers = getattr(model, 'label_readers', None)
        if readers is None and type(model) in (Classifier, ImageClassifier):
            readers = ['a training without a teacher']
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, IterableDataset):
            return
        parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        samples = [part[0] for part in parts]
        found = [s.get('data_samples') for s in samples if isinstance(s, dict)]
        found = ['gt_label' in s or 'gt_score' in s for s in found if isinstance(s, DataSample)]
        if readers and not all(found):
            raise SetupError(
                'train_dataloader: there are images without labels, which are needed by '
                f'{", ".join(readers)}: give data with labels, or distil with {WITHOUT_LABELS}'
            )
        if len({*found}) > 1:
            raise SetupError(
                'train_dataloader: some of the data sets have labels and others do not, and a '
                'batch needs one kind: set with_label=False in all of them'
            )

    def _check_images(self, runner: Runner, model) -> None:
        if not isinstance(getattr(model, 'distiller', None), StageDistiller):
            return
        loader, student = runner.train_dataloader, view_of(model.student)
        images = model.data_preprocessor(loader.collate_fn([loader.dataset[0]]))['inputs']
        channels, *found = images.shape[1:]
        if channels != student.channels:
            raise SetupError(
                f'train_dataloader: the images have {channels} channels when they are normalised, '
                f'and the student takes {student.channels}: give its first layer (in_channels, of '
                "timm's models in_chans), color_type of LoadImageFromFile, and mean and std of "
                'data_preprocessor one number of channels'
            )
        expected = student.input_size
        if tuple(found) != expected:
            raise SetupError(
                f'model.input_size: the stages were looked up with images of {expected[0]} x '
                f'{expected[1]} pixels, and the training images have {found[0]} x {found[1]}; set '
                f'model.input_size={tuple(found)}'
            )
        if not hasattr(model, 'teacher_inputs'):
            return
        wanted = view_of(model.teacher).channels
        channels = model.teacher_inputs(images).shape[1]
        if channels != wanted:
            raise SetupError(
                f'model.teacher_input: the teacher takes images of {wanted} channels and would get '
                f'{channels}: give mean and std one value for each channel, or choose a teacher '
                "for the student's images"
            )

    def _check_teacher(self, runner: Runner, model) -> None:
        found = fingerprint(model.teacher)
        began = runner.message_hub.runtime_info.get('teacher_fingerprint', found)
        if runner._resume and began != found:
            raise SetupError(
                "resume: the teacher's weights (model.teacher_ckpt) are not those with which this "
                'run began; put the former file back, or start a new run from the checkpoint, '
                'with load_from=... instead of resuming'
            )
        runner.message_hub.update_info('teacher_fingerprint', found)

    def _evaluate_teacher(self, runner: Runner, model) -> None:
        loop = runner.val_loop
        taught, learned = classes_of(model.teacher), classes_of(model.student)
        if taught == 0 or (None not in (taught, learned) and taught != learned):
            what = f'knows {taught} classes and the student {learned}' if taught else 'has no head'
            runner.logger.info(f'The teacher {what}: it is not evaluated')
            return
        model.eval()
        for batch in loop.dataloader:
            with autocast(enabled=loop.fp16):
                outputs = model.teacher_val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        # Some are one number for each class, or a matrix.
        metrics = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, Real) or (torch.is_tensor(value) and value.numel() == 1)
        }
        runner.message_hub.update_info('teacher_metrics', metrics)
        runner.logger.info(
            'The teacher, on the validation data: '
            + ', '.join(f'{key} {value:.2f}' for key, value in metrics.items())
        )
        runner.visualizer.add_scalars({f'teacher/{k}': v for k, v in metrics.items()}, step=0)
        self._judge_teacher(runner, metrics, taught)

    def _judge_teacher(self, runner: Runner, metrics: dict, classes: int | None) -> None:
        top1 = metrics.get('accuracy/top1')
        if top1 is None or classes is None:
            return
        chance = 100 / classes
        images = len(runner.val_loop.dataloader.dataset)
        # Three standard errors of a guesser's accuracy, but of few images no more than half of
        # it: there, a good teacher must pass.
        noise = min(3 * (chance * (100 - chance) / images) ** 0.5, chance / 2)
        found = f'the teacher has {top1:.2f} % top-1 on the validation data'
        better = ''
        meant = getattr(unwrapped(runner.model), 'random_teacher', False)
        if not meant and top1 < (_POOR if self.teacher_floor is None else self.teacher_floor):
            better = self._look_again(runner, chance)
        check = better or (
            'check model.teacher_ckpt, model.teacher_input (normalisation, size) and the order of '
            'the classes'
        )
        if top1 <= chance + noise and not meant:
            raise SetupError(
                f'{found}, no better than chance ({chance:.2f} %): {check}, or set '
                'model.random_teacher=True if that is meant'
            )
        if self.teacher_floor is not None and top1 < self.teacher_floor:
            runner.logger.warning(
                f'{found}, below the floor of {self.teacher_floor:.2f} %: {check}'
            )
        elif better:
            runner.logger.warning(f'{found}: {better}')

    @torch.no_grad()
    def _look_again(self, runner: Runner, chance: float) -> str:
        """Compare the teacher's normalisation with the usual others on the same images.

        Returns:
            What to write into the config, where another one is right about clearly more
            images, by three standard errors of the difference (McNemar's test), and no
            guesser. Else ``''``.
        """
        model, loop = unwrapped(runner.model), runner.val_loop
        own = model.teacher_inputs
        others = own.others()
        right = {name: [] for name in ['', *others]}
        for batch in loop.dataloader:
            for name, inputs in {'': own, **others}.items():
                model.teacher_inputs = inputs
                try:
                    with autocast(enabled=loop.fp16):
                        samples = model.teacher_val_step(batch)
                finally:
                    model.teacher_inputs = own
                right[name] += [
                    bool((sample.pred_label == sample.gt_label).any()) for sample in samples
                ]
            if len(right['']) * get_world_size() >= _SECOND_LOOK:
                break
        # Sum over the processes, each of which has other images.
        parts = all_gather_object(right)
        right = {name: torch.tensor([x for part in parts for x in part[name]]) for name in right}
        before = right.pop('')
        if not right or not len(before):
            return ''
        best = max(right, key=lambda name: int(right[name].sum()))
        gained, lost = (right[best] & ~before).sum(), (before & ~right[best]).sum()
        now, then = (100 * values.float().mean().item() for values in (before, right[best]))
        if gained - lost <= 3 * (gained + lost) ** 0.5 or then < chance + (100 - chance) / 4:
            return ''
        shown = {key: [round(x, 3) for x in getattr(others[best], key)] for key in ('mean', 'std')}
        return (
            f'of {len(before)} images it knows {now:.1f} % as it sees them and {then:.1f} % under '
            f'another normalisation ({best}); it was probably trained with that one: set '
            f'model.teacher_input.mean={shown["mean"]} and model.teacher_input.std={shown["std"]}'
        )


def _sizes_of_batches(runner: Runner) -> tuple | None:
    """Return what the sizes of the training batches follow from, None where that is unknown."""
    loader = runner.train_dataloader
    collate = loader.collate_fn
    while hasattr(collate, 'func'):
        collate = collate.func
    # One's own may leave images out.
    parts = (type(loader.sampler), collate, type(unwrapped(runner.model).data_preprocessor))
    known = all(part.__module__.partition('.')[0] in ('mmengine', 'mmpretrain') for part in parts)
    if not known or type(loader.batch_sampler) is not BatchSampler:
        return None
    return len(loader.sampler), loader.batch_size, loader.drop_last


def _smallest_batch(loader: DataLoader, iterations: int) -> int | None:
    """Return how many images the smallest batch of a training has, if the loader says so."""
    size = loader.batch_size
    whole = isinstance(loader.sampler, InfiniteSampler) or loader.drop_last
    if size is None or whole or len(loader) > iterations:
        return size
    return len(loader.sampler) % size or size
