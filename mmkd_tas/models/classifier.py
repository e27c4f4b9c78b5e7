"""Any module that makes logits of images, as a classifier of MMPretrain."""

import inspect
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models import BaseClassifier, ClsHead, MultiLabelClsHead
from mmpretrain.structures import DataSample, label_to_onehot
from torch import Tensor, nn

from ..configs import set_num_classes
from ..errors import SetupError
from ..origins import build_named
from ..outputs import num_classes as count_of
from ..outputs import vector_of
from ..registry import MODELS

# Of auxiliary classifiers; Szegedy et al., "Going deeper with convolutions", CVPR 2015.
AUXILIARY_WEIGHT = 0.3
_NOT_THE_MODEL = ('data_preprocessor.', 'scores.')


@MODELS.register_module()
class Classifier(BaseClassifier):
    """A model of timm, torchvision or Hugging Face, or your own, as a classifier of MMPretrain.

    >>> student = dict(type='mmkd_tas.Classifier', model='timm:resnet18', num_classes=10)
    >>> teacher = dict(type='mmkd_tas.Classifier', model='hf:facebook/dinov2-base', num_classes=0)

    It has the modes ``tensor``, ``loss`` and ``predict`` of an ``ImageClassifier``, with
    the losses and predictions of its heads. The keys of its state dict are those of the
    wrapped model, so that checkpoints of that library load here, and those saved here
    load there.

    Args:
        model: ``timm:NAME``, ``torchvision:NAME``, ``hf:`` with a name on the hub or a
            folder, a module, or the config of one: any callable that the registry or
            Python finds, ``dict(type='my_package.MyNet', ...)``. Of what a model returns,
            :func:`mmkd_tas.outputs.vector_of` tells the logits; the first of several.
        num_classes: By default what the model says. 0 for one without a head, which can
            teach methods that take no logits.
        pretrained: Whether to load the library's weights.
        img_size: Of the images, for a named model that is built for one size.
        loss: Config of the loss of the logits, as in mmpretrain's heads; auxiliary
            classifiers (GoogLeNet, Inception) have it too, with a weight of 0.3.
        multi_label: Images have several labels: sigmoid instead of softmax, and by
            default binary cross-entropy.
        with_cp: Save memory by gradient checkpointing, where the library has it.
        train_cfg: ``dict(augments=...)``: mixup and CutMix, as in mmpretrain.
        data_preprocessor: mmpretrain's.
        init_cfg: mmengine's.
        kwargs: For the library's function (``drop_path_rate=0.1``).

    Raises:
        SetupError: If there is no such model, or it does not take the arguments.
    """

    def __init__(
        self,
        model: str | dict | nn.Module,
        num_classes: int | None = None,
        pretrained: bool = False,
        img_size: int | tuple[int, int] | None = None,
        loss: dict | nn.Module | None = None,
        multi_label: bool = False,
        with_cp: bool = False,
        train_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {
                'type': 'mmpretrain.ClsDataPreprocessor',
                **(data_preprocessor or {}),
            }
            if train_cfg:
                data_preprocessor.setdefault('batch_augments', train_cfg)
        super().__init__(init_cfg=init_cfg, data_preprocessor=data_preprocessor)
        if isinstance(model, str):
            model, num_classes = build_named(model, pretrained, num_classes, img_size, **kwargs)
        elif pretrained or img_size or kwargs:
            names = [*kwargs, *(['pretrained'] * pretrained), *(['img_size'] * bool(img_size))]
            raise SetupError(
                f'model: {", ".join(names)} is for models by name; put it into the dict of model'
            )
        else:
            given: dict = {}
            if isinstance(model, dict):
                given = dict(model)
                set_num_classes(given, num_classes)
                model = MODELS.build(given)
            if num_classes != 0:
                num_classes = given.get('num_classes', count_of(model))
        self.model = model
        # Models of Hugging Face refuse images of another size than their own without it.
        name = 'interpolate_pos_encoding'
        taken = name in inspect.signature(model.forward).parameters
        self._arguments = {name: True} if taken else {}
        self.img_size = img_size  # what :func:`mmkd_tas.outputs.built_for` asks for
        if num_classes is not None:
            self.num_classes = num_classes
        if not isinstance(model, BaseModule):
            # Its weights are drawn or loaded: init_weights() shall not draw others.
            self.model.is_init = True
        head = MultiLabelClsHead if multi_label else ClsHead
        default = dict(type='mmpretrain.CrossEntropyLoss', use_sigmoid=multi_label)
        self.scores = head(loss=loss or default)
        if with_cp:
            self._checkpoint_gradients()
        self._register_state_dict_hook(_as_the_model_itself)

    @property
    def headless(self) -> bool:
        """Whether the model returns features instead of logits."""
        return getattr(self, 'num_classes', None) == 0

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Run the model.

        Args:
            inputs: Images ``(N, 3, H, W)``.
            data_samples: Of the N images.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            Logits ``(N, C)`` (without a head, features ``(N, D)``), a dict of losses, or
            the data samples with scores and labels.
        """
        if mode == 'tensor':
            return self._logits(self.model(inputs, **self._arguments))
        if mode == 'loss':
            return self.loss(inputs, data_samples or [])
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(f"mode: {mode!r} is not one of 'tensor', 'loss' and 'predict'")

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Return the loss of the logits, and those of auxiliary classifiers."""
        self._need_head()
        output = self.model(inputs, **self._arguments)
        logits = self._logits(output)
        if self._takes_shares and 'gt_score' not in data_samples[0]:
            data_samples = [sample.clone() for sample in data_samples]
            for sample in data_samples:
                sample.set_gt_score(label_to_onehot(sample.gt_label, logits.shape[1]))
        losses = self.scores.loss((logits,), data_samples)
        for number, auxiliary in enumerate(_others(output, logits), 1):
            loss = self.scores.loss((auxiliary,), data_samples)['loss']
            losses[f'loss_auxiliary{number}'] = AUXILIARY_WEIGHT * loss
        return losses

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Return data samples with scores and labels."""
        self._need_head()
        return self.scores.predict((self(inputs),), data_samples)

    def _logits(self, output: Any) -> Tensor:
        if type(output) in (list, tuple) and not self.headless:
            output = output[0]
        try:
            return vector_of(output, self.headless)
        except SetupError as error:
            raise SetupError(f'{type(self.model).__name__}: {error}') from error

    @property
    def _takes_shares(self) -> bool:
        """Whether the loss compares with a share of each class, and knows no indices."""
        loss = self.scores.loss_module
        return getattr(loss, 'use_sigmoid', False) or getattr(loss, 'use_soft', False)

    def _need_head(self) -> None:
        if self.headless:
            raise SetupError(
                'model: one without a head (num_classes=0) predicts and learns no labels; give it '
                'num_classes'
            )

    def _checkpoint_gradients(self) -> None:
        for name in ('set_grad_checkpointing', 'gradient_checkpointing_enable'):
            if hasattr(self.model, name):
                getattr(self.model, name)()
                return
        raise SetupError(
            f'model.with_cp: {type(self.model).__name__} has no gradient checkpointing; leave the '
            'key out'
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Accept the names of the wrapped model, with or without ``model.`` in front."""
        own = {key[len(prefix) :]: key for key in [*state_dict] if key.startswith(prefix)}
        names = {name for name in self.state_dict() if not name.startswith(_NOT_THE_MODEL)}
        if not own.keys() & ({f'model.{name}' for name in names} - names):
            weights = {
                name: state_dict.pop(key)
                for name, key in own.items()
                if not name.startswith(_NOT_THE_MODEL)
            }
            if not names <= weights.keys() and hasattr(self.model, 'base_model_prefix'):
                weights = _renamed_by_hugging_face(self.model, weights)
            state_dict.update({f'{prefix}model.{name}': value for name, value in weights.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _as_the_model_itself(
    module: Classifier, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    """Hook of ``state_dict()``: leave out the ``model.`` of the wrapped model's keys."""
    own = f'{prefix}model.'
    for key in [key for key in state_dict if key.startswith(own)]:
        state_dict[prefix + key[len(own) :]] = state_dict.pop(key)


def _renamed_by_hugging_face(model: nn.Module, weights: dict) -> dict:
    """Return weights from a file under the names of the modules, where these are others."""
    filled, info = type(model).from_pretrained(
        None, config=model.config, state_dict=weights, output_loading_info=True
    )
    return weights if any(info.values()) else filled.state_dict()


def _others(output: Any, logits: Tensor) -> list[Tensor]:
    """Return the logits of auxiliary classifiers in what a model returns."""
    if not isinstance(output, list | tuple):
        return []
    return [
        part
        for part in output
        if torch.is_tensor(part) and part is not logits and part.shape == logits.shape
    ]
