"""Load a frozen base model with its tokenizer or image transform.

Order of look-up: explicit path > local hub cache > hub (when online) > archive of the package index (``asset:NAME``). Random
weights only when the name says so: ``tiny:bert``, ``tiny:roberta``, ``tiny:deberta-v2``, ``tiny:deberta``, ``tiny:vit``,
``tiny:dinov2``, ``tiny:llama``, ``tiny:gpt2``.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fedquilt.data.encode import fingerprint as words
from fedquilt.data.transform import Transform
from fedquilt.errors import ModelError, did_you_mean
from fedquilt.models import onednn, vision
from fedquilt.models.half import halve
from fedquilt.models.missing import lacking, redraw
from fedquilt.models.quantised import load_options, refuse_drawn, refuse_random, settle
from fedquilt.rng import derive, generator

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Modules that map features to classes, by the names transformers gives them. DistilBERT's hidden map is beside its last one.
HEADS = ("pre_classifier", "classifier", "score")
# Encoders whose logits, run padded by fedquilt, are transformers' own, and whose dropout is each row's own. Of others some hide
# their dropout or attention and die (ALBERT, ModernBERT), some give other numbers beside a longer row (FNet, ConvBERT,
# SqueezeBERT); GPT-2 and its like would see what comes after a word.
ENCODERS = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2", "distilbert", "ernie", "mpnet"),
    *("data2vec-text", "megatron-bert", "mobilebert", "rembert", "roberta-prelayernorm", "roformer", "xlm-roberta-xl"),
)
TINY = ("bert", "roberta", "deberta", "deberta-v2")
CPU = torch.device("cpu")
ELSEWHERE = {"_name_or_path", "architectures", "dtype", "transformers_version"}  # of a configuration: not what the model computes
Channels = tuple[float, float, float]


class ModelConfig(BaseModel):
    """The ``[model]`` table.

    Attributes:
        name: folder, hub id (``bert-base-cased``), ``asset:minilm``, ``asset:vit-s14``, ``asset:smollm2`` or ``tiny:bert``.
        revision: of a hub model.
        classes: outputs of the fresh head; None: as many as the task with most labels has. 0: a language model, without a head.
        max_length: tokens per text; longer ones are cut and counted.
        image_size: side of the square that an image is cut to, in pixels; None: what the model's preprocessor says.
        mean, std: of the channels in [0, 1], by which images are normalised; None: what the model's preprocessor says.
        dropout: probability for all dropouts of the base model; None keeps the model's own.
        precision: float32; bfloat16 for the frozen linear maps alone (faster on processors that multiply it); float64 for proofs
            of equality.
        quantization: 8bit or 4bit for the frozen linear maps (bitsandbytes; 4 bits are multiplied in float32, or in bfloat16 if
            that is the precision).
        device: where the model runs: cpu, cuda, or cuda:N of several. Bits differ between devices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "asset:minilm"
    revision: str | None = None
    classes: int | None = Field(None, ge=0)
    max_length: int = Field(128, ge=4)
    image_size: int | None = Field(None, ge=1)
    mean: Channels | None = None
    std: Channels | None = None
    dropout: float | None = Field(None, ge=0, lt=1)
    precision: Literal["bfloat16", "float32", "float64"] = "float32"
    quantization: Literal["8bit", "4bit"] | None = None
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description='"cpu", "cuda", or "cuda:1" for the second of several')


@dataclass
class Base:
    """A frozen base model: one per process, shared by all clients. It has a tokenizer or, for images, a transform.

    ``drawn``: modules outside the head that the checkpoint lacks (:mod:`fedquilt.models.missing`).
    """

    model: Any
    tokenizer: Any
    name: str
    model_type: str
    head: tuple[str, ...]
    dtype: torch.dtype
    source: str
    transform: Transform | None = None
    drawn: tuple[str, ...] = ()
    _fingerprint: str = field(default="", repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know of it."""
        if not self.drawn:
            return ()
        rule = "drawn from the seed, frozen unless the adapter trains it, saved with every adapter"
        return (f"not in the weights of {self.name}: {', '.join(self.drawn)}; {rule}",)

    @property
    def fingerprint(self) -> str:
        """blake2b over the weights, the model's own configuration, and its tokenizer or transform: what both ends of a deployment
        must share."""
        if not self._fingerprint:
            digest = hashlib.blake2b(digest_size=16)
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
            own = {key: value for key, value in self.model.config.to_dict().items() if key not in ELSEWHERE}
            digest.update(json.dumps(own, sort_keys=True, default=str).encode())
            digest.update(repr(self.transform).encode() if self.tokenizer is None else words(self.tokenizer).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def load(config: ModelConfig, *, classes: int, seed: int, root: Path = Path()) -> Base:
    """The base model with a seeded fresh head of ``classes`` outputs, all parameters frozen, in evaluation mode.

    ``classes=0``: a causal language model, which has no head (:mod:`fedquilt.models.causal`).

    Raises:
        ModelError: nothing found under the name, or a model without a classification head.
    """
    kind, _, rest = config.name.partition(":")
    if kind == "tiny":
        refuse_random(config)
    if classes == 0:
        from fedquilt.models.causal import load_causal

        return load_causal(config, seed=seed, root=root)
    if kind == "tiny":
        model, tokenizer, transform = _tiny(config, rest, classes, seed)
        source, lacks = config.name, set[str]()
    else:
        source = locate(config.name, root)
        model, tokenizer, transform, lacks = _pretrained(config, source, classes)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    head = tuple(name for name in HEADS if isinstance(getattr(model, name, None), nn.Module))
    if not head:
        raise ModelError(f"model '{config.name}' has no classification head", where="model.name", fix="choose an encoder")
    _fresh_head(model, head, seed)
    drawn = redraw(model, lacks, head, seed)
    refuse_drawn(config, [name for name in drawn if isinstance(model.get_submodule(name), nn.Linear)])
    dtype = finish(model, config, keep=head)
    return Base(model, tokenizer, config.name, str(model.config.model_type), head, dtype, source, transform, drawn)


def finish(model: Any, config: ModelConfig, keep: Sequence[str]) -> torch.dtype:
    """Frozen, in evaluation mode and in the wanted precision (but for the modules ``keep``); the dtype of all that is not a map."""
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    if config.quantization is None:
        model.to(dtype)
    else:
        settle(model)  # what is quantised cannot be converted, and the rest was loaded in float32
    model.eval().requires_grad_(False)
    if config.precision == "bfloat16":
        halve(model, keep=keep)
    elif by_onednn(config):
        onednn.turn(model, keep=keep)
    return dtype


def by_onednn(config: ModelConfig) -> bool:
    """Whether frozen maps are multiplied by oneDNN, if they are not too large."""
    return config.precision == "float32" and config.quantization is None and config.device == "cpu" and onednn.pays()


def locate(name: str, root: Path) -> str:
    """A folder, or the hub id unchanged."""
    kind, _, rest = name.partition(":")
    if kind == "asset" and rest:
        from fedquilt.data.assets import model_folder

        return str(model_folder(rest))
    for path in (Path(name).expanduser(), root / name):
        if (path / "config.json").is_file():
            return str(path)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at '{name}'", where="model.name", why="it has no config.json", fix="check the path")
    return name


@contextmanager
def reading(config: ModelConfig, what: str, known: str) -> Iterator[None]:
    """transformers keeps quiet (heads are ours to initialise, progress bars ours to draw), and what it cannot find or read
    becomes one message. ``what``: of model; ``known``: names that always work.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load a {what} from '{config.name}'",
            where="model.name",
            why=str(error).splitlines()[0],
            fix=f"give a folder, a hub id that is reachable or cached, {known} for random weights",
        ) from error
    finally:
        logging.set_verbosity(level)


def _pretrained(config: ModelConfig, where: str, classes: int) -> tuple[Any, Any, Transform | None, set[str]]:
    """Model, tokenizer or transform, and names of the tensors that have no weights there."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, transform = None, None
    how = {"revision": config.revision, "num_labels": classes, "attn_implementation": "eager", "ignore_mismatched_sizes": True}
    how["output_loading_info"] = True
    with reading(config, "classification model", "'asset:minilm', or 'tiny:bert'"):
        shape = AutoConfig.from_pretrained(where, revision=config.revision)
        if vision.sees_images(shape.model_type):
            model, transform, info = vision.pretrained(config, where, shape, how | load_options(config))
        else:
            check_encoder(shape.model_type, config.name)
            tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision)
            model, info = AutoModelForSequenceClassification.from_pretrained(where, **how, **load_options(config))
    return model, tokenizer, transform, lacking(info, config.name, HEADS)


def check_encoder(kind: str, name: str) -> None:
    """Whether a model that classifies texts can be run.

    Raises:
        ModelError: another architecture.
    """
    if kind not in ENCODERS:
        fix = f"choose a model of the types {', '.join(ENCODERS)}; language models are for tasks of the kind generation"
        raise ModelError(
            f"models of type '{kind}' cannot be used to classify texts", where="model.name", why=f"'{name}' is one", fix=fix
        )


def _fresh_head(model: nn.Module, head: tuple[str, ...], seed: int) -> None:
    """Normal(0, initializer_range) weights and zero biases, the same on every client and machine."""
    std = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for name in head:
            for key, parameter in sorted(model.get_submodule(name).named_parameters()):
                stream = generator(seed, "head", name, key)
                fresh = torch.randn(parameter.shape, generator=stream) * std if parameter.dim() > 1 else 0.0
                parameter.copy_(torch.as_tensor(fresh))


def _tiny(config: ModelConfig, kind: str, classes: int, seed: int) -> tuple[Any, Any, Transform | None]:
    """A random model of a few thousand parameters for tests: reads any text, or sees any image, and knows nothing."""
    from transformers import AutoModelForSequenceClassification

    if kind not in (*TINY, *vision.TINY):
        raise ModelError(f"unknown tiny model '{kind}'", where="model.name", fix=did_you_mean(kind, (*TINY, *vision.TINY)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "tiny"))
        if kind in vision.TINY:
            model, transform = vision.tiny(config, kind, classes)
            return model, None, transform
        model = AutoModelForSequenceClassification.from_config(_tiny_config(kind, classes), attn_implementation="eager")
    return model, tiny_tokenizer(), None


def _tiny_config(kind: str, classes: int) -> PreTrainedConfig:
    from transformers import AutoConfig

    extra: dict[str, Any] = {}
    if kind.startswith("deberta"):
        extra = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 64, "pooler_hidden_size": 16}
    if kind == "deberta-v2":
        extra |= {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return AutoConfig.for_model(
        kind,
        vocab_size=len(tiny_vocabulary()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=140,
        type_vocab_size=1 if kind == "roberta" else 2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        num_labels=classes,
        initializer_range=0.2,  # at the usual 0.02 so small a model barely reacts to its input
        **extra,
    )


def tiny_vocabulary() -> list[str]:
    """Single characters as word starts and continuations: every ASCII text has a unique, short tokenisation."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]


def tiny_tokenizer() -> Any:
    """A WordPiece tokenizer over :func:`tiny_vocabulary`; needs no file."""
    from transformers.models.bert import BertTokenizer  # a fast tokenizer since transformers 5

    return BertTokenizer(vocab={token: i for i, token in enumerate(tiny_vocabulary())})
