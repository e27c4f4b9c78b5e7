"""Time a step of each method against its floor: python benchmarks/step_time.py

The floor is a plain step of the student plus a forward of the teacher without gradients.
tas:conv is TAS with that block of its assistant's projector.
A name that ends in -cached replays the teacher's answers (TeacherCache) and is to be held
against the student alone. The variants run in turn, round after round, in one process;
told are the medians. Memory is what a step keeps for its backward pass (without weights).

With --host it times what the program does in a forward beside the tensor operations, which cost
nothing then: their results are made from shapes that were recorded before.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd_tas.models import ComplementaryFeatureMapper, HCDLoss, StageConnector
from mmkd_tas.models.connectors.blocks import pool_of, pool_width
from mmkd_tas.models.losses.functional import kl_divergence, orthogonality
from mmkd_tas.models.utils import count_parameters

METHODS = Path(__file__).parents[1] / 'configs/_base_/methods'
CLASSES = 100
IMAGES = 50_000  # that CRD remembers


class LoopMapper(StageConnector):
    """The mapper of HCD by a loop over stages and sub-logits, to compare with."""

    inputs = ComplementaryFeatureMapper.inputs

    def __init__(self, student, teacher, stages, num_sub_logits=4):
        super().__init__(student, teacher, stages)
        hidden = max(student.width, teacher.width)
        width = pool_width(stages[:-1], student, teacher)
        self.pools = nn.ModuleList(pool_of(stage, student, width) for stage in stages[:-1])
        self.inner = nn.ModuleList(nn.Linear(width + teacher.width, hidden) for _ in self.pools)
        self.outer = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden, CLASSES) for _ in range(num_sub_logits))
            for _ in self.pools
        )

    def forward_train(self, *features: Tensor) -> list[list[Tensor]]:
        """Return the sub-logits in lists."""
        *own, last = features
        hidden = [
            inner(torch.cat([pool(feature), last], dim=1)).relu()
            for pool, inner, feature in zip(self.pools, self.inner, own, strict=True)
        ]
        return [[f(h) for f in outer] for outer, h in zip(self.outer, hidden, strict=True)]


class LoopHCDLoss(HCDLoss):
    """The loss of HCD by the same loops."""

    def forward(self, sub_logits, preds_S, preds_T, labels):  # noqa: N803
        """Return the four terms."""
        teacher = preds_T.detach()
        terms = dict(
            ce=0.0, kd=kl_divergence(preds_S, teacher, tau=self.tau).mean(), sdd=0.0, ol=0.0
        )
        for parts in sub_logits:
            rectified = [self.lambda_s * part + self.lambda_t * teacher for part in parts]
            for part in rectified:
                ce = F.cross_entropy(part, labels, label_smoothing=self.label_smoothing)
                terms['ce'] += ce / len(parts)
                sdd = kl_divergence(preds_S, part, tau=self.tau).mean()
                terms['sdd'] += sdd / len(parts)
            for i, first in enumerate(rectified):
                for second in rectified[i + 1 :]:
                    pair = torch.stack([first, second], dim=1)
                    alike = orthogonality(pair, labels, theta=self.theta).mean()
                    terms['ol'] += 2 * alike / (len(parts) * (len(parts) - 1))
        return {name: self.weights[name] * term for name, term in terms.items()}


MODELS.register_module(module=LoopMapper)
MODELS.register_module(module=LoopHCDLoss)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--teacher', default='timm:swin_tiny_patch4_window7_224')
    parser.add_argument('--student', default='timm:resnet18')
    parser.add_argument(
        '--methods',
        nargs='+',
        default=['kd', 'ofa', 'hcd', 'hcd-loop', 'rsd', 'tas', 'kd-cached', 'rsd-cached'],
    )
    parser.add_argument('--out', type=Path, help='write table (.md) and plot (.png) to this name')
    parser.add_argument('--input', type=int, default=224, help='side of the images, pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--amp', choices=('float16', 'bfloat16'), help='autocast of all variants')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument(
        '--compile',
        nargs='?',
        const='inductor',
        metavar='BACKEND',
        help='torch.compile of both models',
    )
    parser.add_argument('--host', action='store_true', help='time the program, not the tensors')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def build(method: str, args: argparse.Namespace) -> nn.Module:
    """Build a distillation."""
    name, _, block = method.removesuffix('-cached').removesuffix('-loop').partition(':')
    distiller = Config.fromfile(METHODS / f'{name}.py').distiller
    if block:
        distiller.connectors.assistant.block = block
    if method == 'hcd-loop':
        distiller.connectors.mapper.type = 'LoopMapper'
        distiller.distill_losses.loss_hcd.type = 'LoopHCDLoss'
    if method == 'crd':
        distiller.distill_losses.loss_crd.num_images = IMAGES
    student, teacher = (
        dict(type='mmkd_tas.Classifier', model=name, num_classes=CLASSES)
        for name in (args.student, args.teacher)
    )
    student['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            random_teacher=True,
            architecture=student,
            teacher=teacher,
            input_size=args.input,
            distiller=distiller,
            channels_last=args.channels_last,
            student_compile=dict(backend=args.compile) if args.compile else False,
            teacher_compile=dict(backend=args.compile) if args.compile else False,
            teacher_cache=dict(path=tempfile.mkdtemp()) if method.endswith('-cached') else None,
        )
    )
    if model.teacher_cache is not None:
        model.teacher_cache.open(args.batch, {})
    return model.train().to(args.device)


def step_of(model: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a whole step: forward, backward, update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


def variants(args: argparse.Namespace) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Return what is compared: a model, and its forward up to the loss."""
    labels = torch.arange(args.batch) % CLASSES
    samples = [DataSample().set_gt_label(label).to(args.device) for label in labels]
    for slot, sample in enumerate(samples):
        for name in ('cache_slot', 'sample_idx'):
            sample.set_field(slot, name, field_type='metainfo')

    def total(losses: dict[str, Tensor]) -> Tensor:
        return sum(value for name, value in losses.items() if 'loss' in name)

    models = {method: build(method, args) for method in args.methods}
    base = next(iter(models.values()))
    channels = base.student.stage_view.channels
    images = torch.randn(args.batch, channels, args.input, args.input, device=args.device)

    def autocast() -> torch.autocast:
        precision = getattr(torch, args.amp or 'bfloat16')
        return torch.autocast(images.device.type, precision, enabled=bool(args.amp))

    def alone() -> Tensor:
        with autocast():
            return total(base.student(images, samples, mode='loss'))

    def floor() -> Tensor:
        with torch.no_grad(), autocast():
            base.teacher(images)
        return alone()

    def distilled(model: nn.Module) -> Tensor:
        with autocast():
            return total(model(images, samples, mode='loss'))

    compared = {
        'student alone': (base.student, alone),
        'floor': (base.student, floor),
    }
    for method, model in models.items():
        compared[method] = (model, partial(distilled, model))
    if 'tas' in models:
        assistant = models['tas'].distiller.connectors['assistant']
        shape = models['tas'].student.stage_view.stage(3).shape
        if assistant.inputs[0].startswith('teacher'):
            shape = models['tas'].teacher.stage_view.stage(3).shape
        feature = torch.randn(args.batch, *shape, device=args.device, requires_grad=True)

        def assisted() -> Tensor:
            with autocast():
                return assistant(feature).logits.float().sum()

        compared['assistant alone'] = (assistant, assisted)
    return compared


def kept_for_backward(model: nn.Module, forward: Callable[[], Tensor]) -> float:
    """Return what a forward keeps for the backward pass, MB, weights not counted."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
        size = sum(kept.values()) / 2**20
    loss.backward()
    return size


class NoWork(TorchDispatchMode):
    """Record the operations of a forward; then return, instead of each, memory of its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.known: list[tuple] = []
        self.left = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, or do as if."""
        if self.left is None:
            result = func(*args, **(kwargs or {}))
            in_place = func._schema.is_mutable and torch.is_tensor(result)
            self.calls.append((func, args, kwargs or {}))
            self.known.append((func, None if in_place else result))
            return result
        known, result = next(self.left)
        while known is not func:  # which only the recording needed
            known, result = next(self.left)
        return args[0] if result is None else self._like(result)

    def _like(self, result: Any) -> Any:
        if torch.is_tensor(result):
            keys = dict(dtype=result.dtype, device=result.device)
            return torch.empty_strided(result.shape, result.stride(), **keys)
        return tuple(map(self._like, result)) if isinstance(result, tuple | list) else result

    def time(self, function: Callable[[], Any]) -> float:
        """Return the time of the processor that a call takes, ms."""
        self.left = iter(self.known)
        with self:
            start = time.process_time()
            function()
            return 1e3 * (time.process_time() - start)


def host_times(
    compared: dict[str, tuple[nn.Module, Callable[[], Tensor]]], rounds: int
) -> list[tuple[str, ...]]:
    """Return rows: a variant, its operations, ms of the whole forward, of these, of the rest."""
    recorded = {}
    for name, (_, forward) in compared.items():
        forward()
        with NoWork() as work:
            forward()
        recorded[name] = work, forward
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in recorded}
    for _ in track(range(rounds), 'rounds'):
        for name, (work, forward) in recorded.items():

            def repeat(calls: list[tuple] = work.calls) -> None:
                for func, args, kwargs in calls:
                    func(*args, **kwargs)

            times[name].append((work.time(forward), work.time(repeat)))
    rows = []
    for name, pairs in times.items():
        # What disturbs makes it longer: so the fast ones tell the truth.
        whole, alone, rest = (
            statistics.quantiles(values, n=10)[0]
            for values in (*zip(*pairs, strict=True), [a - b for a, b in pairs])
        )
        count = len(recorded[name][0].calls)
        rows.append((name, f'{count}', f'{whole:.2f}', f'{alone:.2f}', f'{rest:.2f}'))
    return rows


def step_times(
    compared: dict[str, tuple[nn.Module, Callable[[], Tensor]]], args: argparse.Namespace
) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Return rows, and each variant's time over the floor."""
    cuda = args.device.startswith('cuda')
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    memory = {name: kept_for_backward(*pair) for name, pair in compared.items()}
    steps = {name: step_of(*pair) for name, pair in compared.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2):  # to warm up
        for step in steps.values():
            step()
    for _ in track(range(args.rounds), 'rounds'):
        for name, step in steps.items():
            synchronise()
            start = time.perf_counter()
            step()
            synchronise()
            seconds[name].append(time.perf_counter() - start)
    rows, ratios = [], {}
    student = count_parameters(compared['floor'][0])
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        # Round by round, so that what slows the machine down slows both.
        to_floor, to_student = (
            statistics.median(t / other for t, other in zip(times, seconds[base], strict=True))
            for base in ('floor', 'student alone')
        )
        ratios[name] = to_floor
        extra = count_parameters(getattr(compared[name][0], 'distiller', nn.Module()))
        rows.append(
            (
                name,
                f'{1e3 * median:.1f}',
                f'{1e3 * low:.1f} to {1e3 * high:.1f}',
                f'{to_floor:.3f}',
                f'{to_student:.3f}',
                f'{memory[name]:.0f}',
                f'{extra:,} ({extra / student:.0%})',
            )
        )
    return rows, ratios


def main() -> None:
    """Compare the variants, and print the table."""
    args = parse_args()
    init_default_scope('mmpretrain')
    compared = variants(args)
    cuda = args.device.startswith('cuda')
    where = torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads'
    options = [f'{args.amp} autocast'] if args.amp else []
    options += [name for name in ('channels_last', 'compile') if getattr(args, name)]
    title = ', '.join(
        [
            f'{args.teacher} -> {args.student}, batch {args.batch} of {args.input} px',
            *options,
            f'{args.rounds} rounds, torch {torch.__version__}, {where}',
        ]
    )
    ratios = {}
    if args.host:
        columns = ('variant', 'operations', 'host, ms', 'of the operations', 'of the rest')
        with torch.no_grad():
            rows = host_times(compared, args.rounds)
    else:
        columns = ('variant', 'ms', 'middle half', 'of the floor', 'of the student alone')
        columns += ('kept, MB', 'extra parameters')
        rows, ratios = step_times(compared, args)
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    if args.out:
        lines = [f'{title}\n', f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
        lines += [f'| {" | ".join(row)} |' for row in rows]
        args.out.with_suffix('.md').write_text('\n'.join(lines) + '\n')
        if ratios:
            plot(ratios, title, args.out.with_suffix('.png'))


def plot(ratios: dict[str, float], title: str, file: Path) -> None:
    """Draw the ratios to the floor."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.4 * len(ratios) + 1.2), layout='constrained')
    bars = axes.barh(list(ratios), list(ratios.values()), color='#4878a8')
    axes.bar_label(bars, fmt='%.2f', padding=3)
    axes.axvline(1, color='black', linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel='time of a step / floor', xlim=(0, 1.15 * max(ratios.values())))
    axes.set_title(title.replace(', batch', '\nbatch'), fontsize=9)
    figure.savefig(file, dpi=120)


if __name__ == '__main__':
    main()
