"""Networks by name: the study's own, any of ``torchvision.models``, or what a function in one's own file builds.

A name is ``densenet121`` (the study's teacher), ``plain`` (its student), another name of ``torchvision.models``, or
``file.py:build``, where ``build(num_classes)`` returns a module that takes ``(N, 3, H, W)`` float32 in [0, 1]. With
``file.py:build:state.safetensors`` its weights are loaded; a teacher that has them is taken as it is.
"""

import copy
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from kdnb.errors import ModelError, ParameterError
from kdnb.files import file_hash, read_tensors
from kdnb.models import (
    SHAPES,
    WIDTHS,
    Standardise,
    densenet121_teacher,
    feature_layers,
    initialised,
    student,
    untrained_teacher,
)
from kdnb.provenance import code_files
from kdnb.runs import Run
from kdnb.settings import NETWORK_FILE, OWN_STUDENT, OWN_TEACHER, check_network

_ANOTHER = "name another network, or a profile of larger images"
MOST_LAYERS = 5  # whose maps are shown of a network whose layers nobody named
_ENDS = (Standardise, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


# -- what any network answers ---------------------------------------------------------------------------------------


def as_logits(output: object) -> Tensor:
    """Logits from what a classifier returned.

    Of a dictionary, a tuple or an object with ``logits`` (an inception in training, a transformer) the logits are
    taken. One logit an image, ``(N, 1)`` or ``(N,)``, is that of the second of two classes: ``(0, z)``, whose softmax
    is the sigmoid of z.

    Args:
        output: what ``model(images)`` returned.

    Returns:
        ``(N, C)`` float32, or float64 where the network computes in it.

    Raises:
        ModelError: none of these.

    Example:
        >>> as_logits({"logits": torch.tensor([[2.0], [-1.0]])})
        tensor([[ 0.,  2.],
                [ 0., -1.]])
    """
    logits = output
    if isinstance(logits, dict):
        logits = logits.get("logits", logits.get("out", next(iter(logits.values()), None)))
    elif not isinstance(logits, Tensor) and hasattr(logits, "logits"):
        logits = logits.logits
    elif isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2) or not logits.is_floating_point():
        form = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the network returns {form}, but a classifier must return logits of shape (images, classes).")
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    if logits.ndim == 1 or logits.shape[1] == 1:
        single = logits.reshape(-1)
        return torch.stack([torch.zeros_like(single), single], dim=1)
    return logits


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The logits ``(N, C)`` of any classifier, whatever its precision and the form of its output: :func:`as_logits`."""
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), images.dtype)
    return as_logits(model(images.to(dtype)))


def as_maps(output: object, module: nn.Module, name: str = "") -> Tensor:
    """What ``module`` returned as maps.

    Channels last, as Swin transformers keep them, are moved: the sizes of the module's layer norms and linear layers
    tell which axis the filters are on. The tokens of a vision transformer, ``(N, tokens, filters)``, are laid out on
    their grid without the class token.

    Args:
        output: what ``module`` returned.
        module: the layer.
        name: of the layer, for the message; by default that of its class.

    Returns:
        ``(N, filters, h, w)``.

    Raises:
        ModelError: neither maps nor tokens of a square grid, or maps that could be read both ways.
    """
    name = name or type(module).__name__
    if isinstance(output, Tensor) and output.ndim == 4:
        norms = {layer.normalized_shape[-1] for layer in module.modules() if isinstance(layer, nn.LayerNorm)}
        sizes = norms | {layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)}
        if output.shape[3] in sizes and output.shape[1] in sizes:
            raise ModelError(
                f"layer {name!r} gives {tuple(output.shape)}, where filters cannot be told from rows: "
                "name another layer."
            )
        return output.permute(0, 3, 1, 2) if output.shape[3] in sizes else output
    if isinstance(output, Tensor) and output.ndim == 3:
        for extra in (0, 1):  # a class token comes first
            side = round(max(output.shape[1] - extra, 0) ** 0.5)
            if side > 1 and side * side == output.shape[1] - extra:
                return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(
        f"layer {name!r} gives {shape}, not maps of shape (images, filters, height, width): name a convolution."
    )


# -- one's own network ----------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A network of one's own behind the study's form: ``(N, 3, H, W)`` in [0, 1] to logits ``(N, C)``.

    Args:
        network: what was built.
        num_classes: what it must tell apart.
        standardise: give it standardised images, as the study's own networks get; one from a file prepares its images
            itself.
        image_size: of the images on which its layers are looked for.
        layers: names of the feature layers within ``network``, shown in the order of their calls; by default its
            attribute ``feature_layers`` or those found.

    Raises:
        ModelError: other outputs than ``num_classes`` logits, or no layer with maps.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        standardise: bool,
        image_size: int,
        layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.standardise = Standardise() if standardise else nn.Identity()
        self.built: Blueprint | None = None  # from what :func:`build` made it
        self.network = network
        for module in network.modules():
            if hasattr(module, "inplace"):
                # Hooks must see what the layer computed, not what a later layer made of it.
                cast(nn.ReLU, module).inplace = False
        with_maps = layers_with_maps(self, image_size)
        calls: list[str] = []
        with ExitStack() as hooks, torch.no_grad():
            for name, module in self.named_modules():
                hooks.enter_context(module.register_forward_hook(lambda m, i, output, name=name: calls.append(name)))
            shape = tuple(self.eval()(torch.zeros(2, 3, image_size, image_size)).shape)
        self.called = tuple(reversed(dict.fromkeys(reversed(calls))))  # names of modules in the order of last calls
        if shape != (2, num_classes):
            raise ModelError(
                f"the network answers {shape} for 2 images, but the data set has {num_classes} classes: "
                "build it for these."
            )
        chosen = layers or getattr(network, "feature_layers", None)
        names = [f"network.{name}" for name in chosen] if chosen else with_maps
        if missing := [name for name in names if name not in self.called]:
            raise ModelError(
                f"feature_layers names {missing[0].removeprefix('network.')!r}, "
                "but the network calls no module of that name."
            )
        if not names:
            raise ModelError(
                f"{type(network).__name__} has no layer with maps to look into: use a convolutional network."
            )
        self.feature_layers = tuple(sorted(names, key=self.called.index))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C)`` float32 of images ``(N, 3, H, W)``."""
        return logits_of(self.network, self.standardise(images)).float()


def layers_with_maps(model: nn.Module, image_size: int) -> list[str]:
    """The layers to look into: of each size of map the last module that computes it, at most :data:`MOST_LAYERS`.

    Where all maps have one size, as in a vision transformer or a network without pooling, the size tells nothing apart:
    then the outermost modules that are called in a row are taken, at most five, evenly.

    Args:
        model: takes ``(N, 3, H, W)``.
        image_size: pixels a side of the images that it is tried on.

    Returns:
        Names of modules, first layer first.

    Raises:
        ModelError: the network cannot look at images of this size.
    """
    calls: list[tuple[str, int]] = []

    def see(name: str, module: nn.Module, output: object) -> None:
        try:
            side = as_maps(output, module, name).shape[-1]
        except ModelError:
            return
        if side > 1:
            calls.append((name, side))

    training = [module for module in model.modules() if module.training]
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name and not isinstance(module, _ENDS):
                hooks.enter_context(module.register_forward_hook(lambda m, i, output, name=name: see(name, m, output)))
        model.eval()
        try:
            model(torch.rand(2, 3, image_size, image_size))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            refusal = f"the network cannot look at images of {image_size} x {image_size} pixels ({reason})"
            raise ModelError(f"{refusal}: {_ANOTHER}.") from error
        finally:
            for module in training:
                module.training = True
    last = {side: name for name, side in calls if name != "network"}
    names = [last[side] for side in sorted(last, reverse=True)]
    if len(names) == 1:
        inner = [name for name, _ in calls if name not in ("network", names[0])]
        outermost = [name for name in dict.fromkeys(inner) if not any(name.startswith(f"{other}.") for other in inner)]
        names = outermost or names
        if len(names) > MOST_LAYERS:
            names = [names[round(k * (len(names) - 1) / (MOST_LAYERS - 1))] for k in range(MOST_LAYERS)]
    return names[-MOST_LAYERS:]


def measured_fields(model: nn.Module, layers: Sequence[str], image_size: int) -> list[int]:
    """Receptive fields of any network, by gradients: on how many pixels across the middle unit of a layer depends.

    In a copy all weights are made positive and activations that can be are left out, so that no path cancels another.

    Args:
        model: takes ``(N, 3, H, W)``.
        layers: names of its modules.
        image_size: pixels a side of the image on which it is measured.

    Returns:
        For each layer pixels across, at most ``image_size``.
    """
    twin = copy.deepcopy(model).double().cpu().eval()
    for module in twin.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.abs() + 1e-3
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # no public name for all batch norms
            cast(Tensor, module.running_mean).zero_(), cast(Tensor, module.running_var).fill_(1.0)
        for name, child in module.named_children():
            if isinstance(child, Standardise):
                setattr(module, name, nn.Identity())
            elif isinstance(child, (nn.MaxPool2d,)):
                pooling = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode)
                setattr(module, name, pooling)
    maps_of: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, output: object) -> None:
        maps_of[name] = as_maps(output, module, name)

    image = torch.full((1, 3, image_size, image_size), 1e-2, dtype=torch.float64, requires_grad=True)
    with ExitStack() as hooks:
        for name in layers:
            module = twin.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(lambda m, i, output, name=name: keep(name, m, output)))
        twin(image)
    fields = []
    for name in layers:
        maps = maps_of[name]
        middle = maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
        across = (gradient[0].abs().amax(dim=(0, 1)) > 0).nonzero().flatten()
        fields.append(int(across[-1] - across[0]) + 1 if len(across) else 0)
    return fields


@dataclass(frozen=True)
class Spec:
    """A network's name taken apart, with what its files hold: equal exactly where the network is."""

    name: str
    file: str = ""
    function: str = ""
    state: str = ""
    hashes: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether trained weights come with it."""
        return bool(self.state)


Blueprint = tuple[Spec, int, int]  # what :func:`build` makes a network from: its spec, classes and pixels a side


def spec(role: str, name: str) -> Spec:
    """What ``name`` says.

    Args:
        role: what the network is for, ``"teacher"`` or ``"student"``.
        name: see the top of this module.

    Returns:
        The name taken apart, its files hashed, with the modules beside them that they import.

    Raises:
        ParameterError: no network of that name, or a file that is not there.
    """
    check_network(role, name)
    match = re.fullmatch(NETWORK_FILE, name)
    if match is None:
        of_study = list(SHAPES) if role == "student" else [OWN_TEACHER]
        if name not in of_study and name not in _classifiers():
            raise ParameterError(
                f"{role} is {name!r}, but it must be {', '.join(of_study)}, "
                "a classifier of torchvision.models or file.py:build."
            )
        return Spec(name)
    file, function, state = match["file"], match["function"], match["state"] or ""
    files = [*code_files(Path(file)), *([Path(state)] if state else [])]
    return Spec(name, file, function, state, tuple(map(file_hash, files)))


def _classifiers() -> list[str]:
    import torchvision.models

    return torchvision.models.list_models(module=torchvision.models)


def build(what: Spec, num_classes: int, image_size: int, widths: Sequence[int] = WIDTHS) -> nn.Module:
    """The network as built, with the weights that come with it.

    Args:
        what: the network, see :func:`spec`.
        num_classes: what it must tell apart.
        image_size: pixels a side of its images.
        widths: filters of each layer, where it is the study's own student.

    Returns:
        A model from ``(N, 3, H, W)`` float32 in [0, 1] to logits ``(N, num_classes)``.

    Raises:
        ModelError: its file cannot be used, or it has no form for these images; the sentence says why.
        ParameterError: its file has no such function.
    """
    if what.name == OWN_TEACHER:
        return densenet121_teacher(num_classes)
    if what.name in SHAPES:
        return student(what.name, num_classes, widths)
    if not what.file:
        import torchvision.models

        options: dict[str, int] = {"init_weights": True} if what.name in ("googlenet", "inception_v3") else {}
        if what.name.startswith("vit_"):  # how many tokens it has is part of a ViT
            options["image_size"] = image_size
        try:
            network = torchvision.models.get_model(what.name, weights=None, num_classes=num_classes, **options)
        except (AssertionError, ValueError) as error:
            raise ModelError(
                f"{what.name} has no form for images of {image_size} x {image_size} pixels ({error}): {_ANOTHER}."
            ) from error
        return Network(network, num_classes, standardise=True, image_size=image_size)
    network = _from_file(what, num_classes)
    if what.state:
        _load_state(network, what)
    own_network = Network(network, num_classes, standardise=False, image_size=image_size)
    own_network.built = (what, num_classes, image_size)
    return own_network


Portable = nn.Module | tuple[Blueprint, dict[str, Tensor]]


def portable(model: nn.Module) -> Portable:
    """What can be sent to another process in the model's place.

    Returns:
        The model; of one from a file, whose class is not known elsewhere, how to build it there, and its weights.
    """
    built = getattr(model, "built", None)
    return model if built is None else (built, {name: value.cpu() for name, value in model.state_dict().items()})


def arrived(sent: Portable) -> nn.Module:
    """The model that :func:`portable` sent."""
    if isinstance(sent, nn.Module):
        return sent
    built, state = sent
    network = build(*built)
    network.load_state_dict(state)
    return network.eval()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported inside the block, and are forgotten behind it.

    Another network's module of the same name is another one.
    """
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # a file written within the tick of the clock in which the folder was last read
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        came = {name: module for name, module in sys.modules.items() if name.partition(".")[0] not in before}
        tops = {name for name, module in came.items() if "." not in name and _lies_in(module, folder)}
        for name in came:
            if name.partition(".")[0] in tops:
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module's file, or a package's folder, lies in a folder and no deeper."""
    places = [*getattr(module, "__path__", ())] or [getattr(module, "__file__", None) or ""]
    return any(Path(place).parent == folder for place in places)


def _from_file(what: Spec, num_classes: int) -> nn.Module:
    """Run the user's file and call its function; its folder is importable meanwhile."""
    module_name = "kdnb_own_" + hashlib.sha256(what.file.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    try:
        with _importable(Path(what.file).absolute().parent):
            location = importlib.util.spec_from_file_location(module_name, what.file)
            assert location is not None and location.loader is not None  # a file that ends in .py has both
            module = importlib.util.module_from_spec(location)
            sys.modules[module_name] = module
            location.loader.exec_module(module)
            function = getattr(module, what.function, None)
            if not callable(function):
                raise ParameterError(
                    f"{what.file} has no function {what.function!r}: name the one that returns the network."
                )
            network = function(num_classes)
    except ParameterError:
        raise
    except Exception as error:  # whatever the user's code says
        raise ModelError(
            f"{what.name} could not be built ({type(error).__name__}: {error}): mend {what.file}."
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{what.function} of {what.file} returns {type(network).__name__}: it must return a torch.nn.Module."
        )
    return network


def _load_state(network: nn.Module, what: Spec) -> None:
    from safetensors import SafetensorError

    try:
        network.load_state_dict(read_tensors(Path(what.state)))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{what.state} does not hold the weights of {what.file}:{what.function} ({reason}): "
            "save that network's state_dict there with safetensors."
        ) from error


# -- the teacher and the student of a run ---------------------------------------------------------------------------


def new_teacher(
    name: str, num_classes: int, image_size: int, weights: str, head: str, seed: int
) -> tuple[nn.Module, str]:
    """A teacher before its training.

    Args:
        name: see the top of this module.
        num_classes: what it must tell apart.
        image_size: pixels a side of its images.
        weights: of the study's own teacher, see :func:`kdnb.models.untrained_teacher`.
        head: of the study's own teacher, see :func:`kdnb.models.densenet121_teacher`.
        seed: initial weights are drawn from it.

    Returns:
        The network, and where its weights come from: ``"imagenet"``, ``"scratch"`` or ``"own"`` (trained already).

    Raises:
        ParameterError: ``weights`` or ``head`` of the study's own teacher go with another one.
    """
    network_spec = spec("teacher", name)
    if network_spec.name == OWN_TEACHER:
        return untrained_teacher(num_classes, weights, head, seed)
    for parameter, value, only in (("weights", weights, "imagenet"), ("head", head, "paper")):
        if value == only:
            raise ParameterError(
                f"{parameter} is {value!r}, which goes with teacher {OWN_TEACHER} only, but teacher is {name!r}: "
                "leave it out."
            )
    network = initialised(build, network_spec, num_classes, image_size, seed=seed)
    return network, "own" if network_spec.has_weights else "scratch"


def identity(role: str, name: str) -> list[str]:
    """What a key must hold of a network: nothing for the study's own, else its name and the hashes of its files."""
    network_spec = spec(role, name)
    if name in (OWN_TEACHER, OWN_STUDENT):
        return []
    return [network_spec.function or network_spec.name, *network_spec.hashes]


def of_run(run: Run, role: str) -> str:
    """The name of the run's ``"teacher"`` or ``"student"``, as its notebooks recorded it."""
    return run.info().get("networks", {}).get(role, OWN_TEACHER if role == "teacher" else OWN_STUDENT)


def load_teacher(run: Run, num_classes: int, learned_from: tuple[str, str] | None = None) -> nn.Module:
    """The trained teacher of a run, in evaluation mode.

    Args:
        run: the run that trained it.
        num_classes: of the run's data set.
        learned_from: ``data_hash`` and ``split_hash`` of the images at hand, where it must know no others; one of
            generated images has learned from none of them.

    Returns:
        The network with its weights.

    Raises:
        ArtefactError: notebook 02 has not trained it, its file has changed since, or it learned from other images.
    """
    taught = run.info().get("teacher", {"head": "plain", "key": None})  # where it has none, loading says so
    name = of_run(run, "teacher")
    if name == OWN_TEACHER:
        teacher: nn.Module = densenet121_teacher(num_classes, head=taught["head"])
    else:
        teacher = build(spec("teacher", name), num_classes, run.budget.image_size)
    return run.load_model("teacher", teacher, taught["key"], learned_from)


def load_student(run: Run, model_name: str, num_classes: int, learned_from: tuple[str, str] | None = None) -> nn.Module:
    """A trained student of a run, in evaluation mode.

    Args:
        run: the run that trained it.
        model_name: what it is stored under, such as ``"student_kd"``.
        num_classes: of the run's data set.
        learned_from: as of :func:`load_teacher`.

    Returns:
        The network with its weights.

    Raises:
        ArtefactError: it is not trained, its file has changed since, or it learned from other images.
    """
    network = build(
        spec("student", of_run(run, "student")), num_classes, run.budget.image_size, run.budget.student_widths
    )
    return run.load_model(model_name, network, None, learned_from)


def stages(model: nn.Module) -> list[str]:
    """Names of modules in the order in which cascading randomisation destroys them.

    Args:
        model: with known feature layers; a network of one's own goes by the order of its calls, whatever that of its
            definition, the study's own have one order.

    Returns:
        The last module with weights to draw, the classifier, then the feature layers, last first.
    """
    modules = dict(model.named_modules())
    called = model.called if isinstance(model, Network) else modules
    head = [name for name in called if hasattr(modules[name], "reset_parameters")][-1]
    name_of = {id(module): name for name, module in modules.items()}
    return list(dict.fromkeys([head, *(name_of[id(layer)] for layer in reversed(feature_layers(model).values()))]))
