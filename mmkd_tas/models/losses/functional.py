"""The mathematics of the losses: pure functions of tensors.

Logits are unnormalised, in nats. Half precision is computed in float32, also
under autocast, and float64 stays float64.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_comm_device, get_rank, get_world_size
from mmrazor.models.architectures.ops import GatherTensors
from torch import Tensor

from ...errors import SetupError


def in_full_precision(function: Callable) -> Callable:
    """Make a function compute in float32 at least, whatever its tensors and autocast say."""

    @functools.wraps(function)
    def computed(*args, **kwargs):
        def widened(value):
            half = torch.is_tensor(value) and value.dtype in (torch.float16, torch.bfloat16)
            return value.float() if half else value

        with torch.autocast(args[0].device.type, enabled=False):
            return function(*map(widened, args), **{k: widened(v) for k, v in kwargs.items()})

    return computed


def class_indices(labels: Tensor) -> Tensor:
    """Return class indices ``(N,)`` of indices ``(N,)`` or shares ``(N, C)`` (mixup, cutmix)."""
    return labels.argmax(1) if labels.ndim == 2 else labels


@in_full_precision
def ofa_loss(
    preds_S: Tensor,
    preds_T: Tensor,
    labels: Tensor,
    gamma: float = 1.0,
    tau: float = 1.0,
) -> Tensor:
    r"""Return the target-enhanced distillation loss of each image, ``(N,)``, in nats.

    .. math:: \sum_c -[(p^t_c + m_c)^\gamma - m_c] \log p^s_c, \quad
        p = \mathrm{softmax}(z / \tau), \quad m = \mathrm{onehot}(y)

    With ``gamma=1`` this is the cross-entropy against the teacher's probabilities;
    more than 1 puts weight on the true class. Source: Hao et al., "One-for-All",
    NeurIPS 2023, section 3.3.

    Args:
        preds_S, preds_T: Logits of student and teacher, ``(N, C)``.
        labels: Class indices ``(N,)``, or shares ``(N, C)`` of which the largest counts.
        gamma: Exponent, at least 1.
        tau: Temperature.
    """
    log_student = F.log_softmax(preds_S / tau, dim=1)
    teacher = F.softmax(preds_T / tau, dim=1)
    true_class = F.one_hot(class_indices(labels), preds_S.shape[1]).to(teacher.dtype)
    target = (teacher + true_class) ** gamma - true_class
    return -(target * log_student).sum(1)


class _Step:
    """How many images each process has in a step."""

    def __init__(self, images: int, equal: bool) -> None:
        self.images = images
        self.equal = equal

    @functools.cached_property
    def counts(self) -> list[int]:
        return [self.images] * get_world_size() if self.equal else _exchanged(self.images)


_step: ContextVar[_Step | None] = ContextVar('step', default=None)


@contextlib.contextmanager
def images_of_step(images: int, equal: bool = False) -> Iterator[None]:
    """Let all losses of a step know the processes' numbers of images from one exchange.

    Reading numbers of a GPU makes the program wait for all that is still to be computed there.

    Args:
        images: Of this process in this step.
        equal: Whether all processes are known to have as many; nothing is exchanged then.
    """
    token = _step.set(_Step(images, equal))
    try:
        yield
    finally:
        _step.reset(token)


def _exchanged(number: int) -> list[int]:
    device = torch.device(get_comm_device())
    return torch.stack(all_gather(torch.tensor(number, device=device))).tolist()


def gather(tensor: Tensor, images: int | None = None) -> tuple[Tensor, int]:
    """Return the rows of all processes, and where this one's begin.

    The gradient of a row is the sum of those that all processes compute, so that
    with DDP's averaging the result is that of one process with the whole batch.
    Processes may have different numbers of rows.

    Args:
        tensor: The rows of this process.
        images: Number of this process's images, each with equally many rows, for losses
            that get all images of a step: see :func:`images_of_step`.

    Raises:
        SetupError: If there are other images than those of the step.
    """
    if get_world_size() == 1:
        return tensor, 0
    step = _step.get()
    if step is None or images is None:
        counts = _exchanged(len(tensor))
    elif images != step.images:
        raise SetupError(
            f'distiller.distill_losses: a loss that compares images got {images} of the '
            f'{step.images} images of this step, and needs all of them'
        )
    else:
        counts = [count * (len(tensor) // images) for count in step.counts]
    if padding := max(counts) - len(tensor):
        tensor = torch.cat([tensor, tensor.new_zeros(padding, *tensor.shape[1:])])
    parts = GatherTensors.apply(tensor.contiguous())
    rows = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return rows, sum(counts[: get_rank()])


@in_full_precision
def info_nce(queries: Tensor, keys: Tensor, scale: Tensor | float, offset: int = 0) -> Tensor:
    r"""Return the InfoNCE loss of each query, ``(M,)``, in nats.

    .. math:: -\log \frac{\exp(s \cos(q_i, k_{i'}))}{\sum_j \exp(s \cos(q_i, k_j))},
        \quad i' = i + \mathrm{offset}

    Source: van den Oord et al., 2018, equation 4; with a learnable scale, Radford et
    al., "CLIP", ICML 2021, section 2.3; between the features of student, assistant
    and teacher, Li et al., "Fuse Before Transfer", ICCV 2025.

    Args:
        queries: ``(M, D)``.
        keys: ``(M', D)``, of which ``offset .. offset + M`` are the positives.
        scale: s, the inverse of the temperature.
        offset: Of the positives.
    """
    similarity = _directions(queries) @ _directions(keys).t()
    positives = offset + torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(scale * similarity, positives, reduction='none')


def _directions(vectors: Tensor) -> Tensor:
    """Return vectors (last dimension) at length 1; zeros have no direction, and no gradient."""
    zero = vectors.norm(dim=-1, keepdim=True) < 1e-6
    return F.normalize(vectors.masked_fill(zero, 0), dim=-1)


@in_full_precision
def kl_divergence(preds_S: Tensor, preds_T: Tensor, tau: float = 1.0) -> Tensor:
    r"""Return :math:`\tau^2 \mathrm{KL}(p^t \| p^s)` over the last dimension, in nats.

    Args:
        preds_S, preds_T: Logits of student and teacher, ``(..., C)``, of shapes that broadcast.
        tau: Temperature of both softmaxes.
    """
    log_student = F.log_softmax(preds_S / tau, dim=-1)
    log_teacher = F.log_softmax(preds_T / tau, dim=-1)
    return tau**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


@in_full_precision
def orthogonality(sub_logits: Tensor, labels: Tensor, theta: float = 0.5) -> Tensor:
    r"""Return how alike the sub-logits of an image are beside its class, ``(...)``.

    .. math:: \frac{1}{K (K - 1)} \sum_{i \ne j} \max(0, \cos(z'_i, z'_j) - \theta)^2

    where z' is z with a zero at the true class; 0 for K = 1. Source: Xu et al.,
    "Heterogeneous Complementary Distillation", AAAI 2026 (the orthogonality loss).

    Args:
        sub_logits: ``(..., N, K, C)``.
        labels: Class indices ``(N,)``, or shares ``(N, C)`` of which the largest counts.
        theta: The cosine from which on they are too alike.
    """
    parts, classes = sub_logits.shape[-2:]
    true_class = F.one_hot(class_indices(labels), classes).bool()
    others = _directions(sub_logits.masked_fill(true_class[:, None], 0))
    excess = F.relu(others @ others.mT - theta) ** 2
    pairs = ~torch.eye(parts, dtype=torch.bool, device=excess.device)
    return (excess * pairs).sum((-1, -2)) / max(1, parts * (parts - 1))


@in_full_precision
def rsd_loss(preds_S: Tensor, preds_T: Tensor, kappa: float = 0.01) -> Tensor:
    r"""Return the loss of redundancy suppression, a scalar.

    .. math:: \sum_i (P_{ii} - 1)^2 + \kappa \sum_{i \ne j} P_{ij}^2, \quad
        P = \hat z_t^\top \hat z_s / N, \quad \hat z = \frac{z - \mu}{\sigma + 10^{-5}}

    with the mean and the deviation of each dimension over the batch, that of a population
    (divided by N). A dimension that is the same for all images has no gradient. Source:
    "Cross-Architecture Distillation Made Simple with Redundancy Suppression", ICCV 2025, and,
    for the :math:`10^{-5}`, its code.

    Args:
        preds_S, preds_T: Features or logits, ``(N, D)``.
        kappa: Weight of the correlations between different dimensions.
    """
    # the gradient of torch.std is 0 where it is 0, and not that of a square root
    student, teacher = (
        (z - z.mean(0)) / (z.std(0, correction=0) + 1e-5) for z in (preds_S, preds_T)
    )
    correlation = teacher.t() @ student / len(student)
    squares = (correlation - torch.eye(len(correlation), device=correlation.device)) ** 2
    diagonal = squares.diagonal().sum()
    return diagonal + kappa * (squares.sum() - diagonal)


@in_full_precision
def mean_squared_error(preds_S: Tensor, preds_T: Tensor) -> Tensor:
    """Return the mean of the squared differences, a scalar."""
    return F.mse_loss(preds_S, preds_T)


@in_full_precision
def cc_loss(preds_S: Tensor, preds_T: Tensor) -> Tensor:
    r"""Return how alike neighbouring images differ between student and teacher, a scalar.

    .. math:: \frac{1}{N - 1} \sum_{i < N} \delta_i \cdot \delta_{i + 1}, \quad
        \delta_i = |f^s_i - f^t_i|

    element by element; 0 for a single image. It is what the tables of OFA-KD and others call
    CC: the form in which Tian et al., "Contrastive Representation Distillation", ICLR 2020,
    compare with Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

    Args:
        preds_S, preds_T: Features of one width, ``(N, D)``.
    """
    delta = (preds_S - preds_T).abs()
    return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)


@in_full_precision
def rkd_loss(preds_S: Tensor, preds_T: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return how the distances and the angles between images differ, two scalars.

    .. math:: \mathrm{mean}_{ij}\, h(d^s_{ij}, d^t_{ij}), \quad
        \mathrm{mean}_{ijk}\, h(e^s_{ij} \cdot e^s_{ik},\, e^t_{ij} \cdot e^t_{ik})

    where h is the Huber loss (1 its threshold), d the distances over their mean, and e the
    directions from image i to the others; of an image to itself, or to one with the same
    feature, both are 0. Source: Park et al., "Relational Knowledge Distillation", CVPR 2019,
    equations 5 to 9.

    Args:
        preds_S, preds_T: Features ``(N, D_s)`` and ``(N, D_t)``.
    """
    (distances_s, angles_s), (distances_t, angles_t) = map(_relations, (preds_S, preds_T))
    return F.smooth_l1_loss(distances_s, distances_t), F.smooth_l1_loss(angles_s, angles_t)


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances ``(N, N)`` over the mean of those that are not 0, and angles ``(N, N, N)``.

    Differences and not the Gram matrix, in which features far from the origin cancel out.
    """
    differences = features[None] - features[:, None]
    distances = differences.norm(dim=-1)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    directions = _directions(differences)
    tiny = torch.finfo(mean.dtype).tiny
    return distances / mean.clamp(min=tiny), directions @ directions.mT


@in_full_precision
def dkd_loss(
    preds_S: Tensor,
    preds_T: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    tau: float = 1.0,
) -> Tensor:
    r"""Return the decoupled distillation loss of each image, ``(N,)``, in nats.

    .. math:: \tau^2 [\alpha\, \mathrm{KL}(b^t \| b^s) + \beta\, \mathrm{KL}(\hat p^t \| \hat p^s)]

    with b the probabilities of the true class and of all others together, and
    :math:`\hat p` those of the others among themselves. Source: Zhao et al., "Decoupled
    Knowledge Distillation", CVPR 2022, equation 7.

    Args:
        preds_S, preds_T: Logits of student and teacher, ``(N, C)``.
        labels: Class indices ``(N,)``, or shares ``(N, C)`` of which the largest counts.
        alpha, beta: Weights of the true class and of the others.
        tau: Temperature.
    """
    labels = class_indices(labels)
    true_class = F.one_hot(labels, preds_S.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        others = (logits / tau).masked_fill(true_class, -torch.inf)
        of_true = (logits / tau).gather(1, labels[:, None])
        return torch.cat([of_true, others.logsumexp(1, keepdim=True)], 1), others

    (binary_s, others_s), (binary_t, others_t) = split(preds_S), split(preds_T)
    log_s, log_t = F.log_softmax(others_s, dim=1), F.log_softmax(others_t, dim=1)
    among_others = log_t.exp() * (log_t - log_s).masked_fill(true_class, 0)
    return tau**2 * (alpha * kl_divergence(binary_s, binary_t) + beta * among_others.sum(1))


@in_full_precision
def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors (last dimension) at length 1; those of length 0 stay, without a gradient."""
    return _directions(vectors)


@in_full_precision
def crd_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    different: Tensor,
    log_partition: Tensor,
    images: int,
    tau: float = 0.07,
) -> Tensor:
    r"""Return the contrastive loss of each image on both sides, ``(N,)``, in nats.

    .. math:: -\log h(a_i, p_i) - \frac{K}{|\mathcal{D}_i|} \sum_{j \in \mathcal{D}_i}
        \log (1 - h(a_i, n_j)), \quad
        h(a, v) = \frac{e^{a \cdot v / \tau} / Z}{e^{a \cdot v / \tau} / Z + K / M}

    for the K negatives, of which those in D differ from the image, and M images in all; the sum
    of that for the student's anchors, against what the teacher said of the images, and the other
    way round. Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020,
    equations 17 to 19.

    Args:
        anchors, positives: Of length 1, ``(2, N, D)``: student and teacher, and what they are
            compared with.
        negatives: ``(2, K, D)``.
        different: Whether a negative is one of an image, ``(N, K)``.
        log_partition: log Z, ``(2,)``; see :func:`crd_log_partition`.
        images: M.
        tau: Temperature.
    """
    to_positive, to_negatives = _similarities(anchors, positives, negatives, tau)
    count = negatives.shape[1]
    # h as a logistic function of the logarithms: nothing overflows.
    threshold = (log_partition + math.log(count / images))[:, None]
    own = F.softplus(threshold - to_positive)
    others = F.softplus(to_negatives - threshold[..., None]) * different
    weight = count / different.sum(1).clamp(min=1)
    return (own + weight * others.sum(-1)).sum(0)


@in_full_precision
def crd_log_partition(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    different: Tensor,
    images: int,
    tau: float = 0.07,
) -> Tensor:
    r"""Return log Z of both sides, ``(2,)``: M times the mean of :math:`e^{a \cdot v / \tau}`.

    Args:
        anchors, positives, negatives, different, images, tau: See :func:`crd_loss`.
    """
    to_positive, to_negatives = _similarities(anchors, positives, negatives, tau)
    others = to_negatives.masked_fill(~different, -torch.inf)
    scores = torch.cat([to_positive[..., None], others], dim=-1)
    of_each = scores.logsumexp(-1) - (1 + different.sum(1)).log()
    return of_each.logsumexp(-1) + math.log(images / len(different))


def _similarities(
    anchors: Tensor, positives: Tensor, negatives: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Return the similarities to positives ``(2, N)`` and negatives ``(2, N, K)``."""
    return (anchors * positives).sum(-1) / tau, anchors @ negatives.mT / tau


@in_full_precision
def hierarchical_context(preds_S: Tensor, preds_T: Tensor) -> Tensor:
    r"""Return the mean squared error of maps at several resolutions, a scalar.

    .. math:: \frac{1}{\sum_l 2^{-l}} \sum_l 2^{-l}\, \mathrm{MSE}(P_l(f^s), P_l(f^t))

    with :math:`P_0` the map itself and then averages over 4 x 4, 2 x 2 and 1 x 1 regions, those
    that are coarser than the map. Source: Chen et al., "Distilling Knowledge via Knowledge
    Review", CVPR 2021 (HCL).

    Args:
        preds_S, preds_T: ``(N, C, H, W)``.
    """
    loss, weight, total = F.mse_loss(preds_S, preds_T), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(preds_S.shape[-2:]):
            weight /= 2
            total += weight
            student, teacher = (F.adaptive_avg_pool2d(f, side) for f in (preds_S, preds_T))
            loss = loss + weight * F.mse_loss(student, teacher)
    return loss / total
