"""The `data:` and `model:` sections of an experiment file: what is trained, on what, and how that is divided."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from orchestrator.config.fields import (
    AtLeastTwo,
    ByName,
    Columns,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
    Target,
    Text,
)  # fmt: skip
from orchestrator.config.graph_models import Gat, Gcn, Gcnii, ResGcn, Sage
from orchestrator.config.graphs import GraphOgb, GraphParquet, Normalize, PowerLaw, Sbm
from orchestrator.config.optimizer import Optimizer

# ---------------------------------------------------------------------------------------------- partitions


class Iid(Section):
    """Every client draws from the same mixture."""

    kind: Literal["iid"] = "iid"
    clients: PositiveInt = Field(10, description="number of clients; sizes differ by one at most")


class Dirichlet(Section):
    """Each class is shared out among clients by a Dirichlet draw: skewed classes and sizes."""

    kind: Literal["dirichlet"]
    clients: PositiveInt = Field(description="number of clients")
    alpha: PositiveFloat = Field(description="concentration: small is skewed, large is iid")
    min_size: PositiveInt = Field(1, description="least number of examples of a client")


class Shards(Section):
    """Examples sorted by class and cut into shards: each client sees few classes."""

    kind: Literal["shards"]
    clients: PositiveInt = Field(description="number of clients")
    shards_per_client: PositiveInt = Field(2, description="label-sorted shards each client receives")


class Classes(Section):
    """Client i owns a few classes from i on, counted round, as in the experiments of Bristle's authors."""

    kind: Literal["classes"]
    clients: PositiveInt = Field(description="number of clients")
    per_client: PositiveInt = Field(4, description="classes that a client owns")
    examples: PositiveInt | None = Field(
        None, description="examples of each class that a client owns; null: each class is divided among its owners"
    )


class Similarity(Section):
    """A share of the examples is dealt at random, the rest by class: from unlike clients to alike ones."""

    kind: Literal["similarity"]
    clients: PositiveInt = Field(description="number of clients")
    gamma: Annotated[NonNegativeFloat, Le(1)] = Field(description="share dealt at random; 0 unlike, 1 iid")


class Drawn(Section):
    """Each client draws its examples from the whole data, and may share them: populations larger than the data."""

    kind: Literal["drawn"]
    clients: PositiveInt = Field(description="number of clients; a million costs what one does")
    examples: PositiveInt = Field(description="examples of each client")


class ByColumn(Section):
    """The data's own clients: a Parquet column, a play's speakers."""

    kind: Literal["column"]
    min_size: PositiveInt = Field(1, description="clients with fewer examples are left out")


Partition = Annotated[Iid | Dirichlet | Shards | Classes | Similarity | Drawn | ByColumn, Field(discriminator="kind")]


# ---------------------------------------------------------------------------------------------------- data


class DataSection(Section):
    """What every kind of data has."""

    partition: Partition = Field(Iid(), description="how the training examples are divided among clients")
    limit: PositiveInt | None = Field(None, description="train on this many examples only, drawn by the seed")


class Digits(DataSection):
    """1,797 real 8x8 images of handwritten digits that come with scikit-learn: nothing is downloaded."""

    name: Literal["digits"]


class Downloaded(DataSection):
    """70,000 images of 28x28 in 10 classes, read from the data folder, downloaded once when missing."""

    name: Literal["mnist", "fashion-mnist"]
    folder: Text | None = Field(None, description="data folder; default ORCHESTRATOR_DATA or the user's cache")


class EmnistLetters(DataSection):
    """Handwritten letters of 28x28 in 26 classes, upper and lower case together, read from the data folder."""

    name: Literal["emnist-letters"]
    folder: Text | None = Field(None, description="data folder; default ORCHESTRATOR_DATA or the user's cache")


class Cifar10(DataSection):
    """Colour photographs of 32x32 in 10 classes; cifar-10-jpeg: a part of them, slightly lossy, where it is at hand."""

    name: Literal["cifar-10", "cifar-10-jpeg"]
    folder: Text | None = Field(None, description="data folder; default ORCHESTRATOR_DATA or the user's cache")


class Letters(DataSection):
    """Letters in 26 classes, drawn with the fonts that come with matplotlib: a stand-in for EMNIST-Letters."""

    name: Literal["letters"]
    examples: PositiveInt = Field(57200, description="training examples")
    test_examples: PositiveInt = Field(5200, description="test examples")
    size: Literal[28, 8] = Field(28, description="side in pixels: 28 as mnist, 8 as digits")


class Planetoid(DataSection):
    """A citation network, read from the data folder: a graph to strategies that train on one, rows to others."""

    name: Literal["cora", "citeseer", "pubmed"]
    folder: Text | None = Field(None, description="data folder; default ORCHESTRATOR_DATA or the user's cache")
    normalize: Normalize = Field("rows", description="rows: divide each row of features by its sum; none: as published")


class Shakespeare(DataSection):
    """Characters of Shakespeare's plays, to be predicted one after another; speakers are natural clients."""

    name: Literal["tiny-shakespeare"]
    folder: Text | None = Field(None, description="data folder; default ORCHESTRATOR_DATA or the user's cache")
    sequence_length: PositiveInt = Field(80, description="characters of one example")
    stride: PositiveInt | None = Field(None, description="characters between sequences; default their length")


class Synthetic(DataSection):
    """Generated data: Gaussian blobs, a noisy linear rule, or small images."""

    name: Literal["synthetic"]
    kind: Literal["blobs", "linear", "images"] = Field("blobs", description="what is generated")
    examples: PositiveInt = Field(2000, description="training examples")
    test_examples: PositiveInt = Field(500, description="test examples")
    features: PositiveInt = Field(20, description="numbers of one example; for images the side in pixels")
    classes: AtLeastTwo = Field(5, description="number of classes")
    noise: NonNegativeFloat = Field(1.0, description="standard deviation of what is added to every number")


class Parquet(DataSection):
    """Your own table: a Parquet file or a folder of them, local or in an object store."""

    name: Literal["parquet"]
    path: Text = Field(description="a file, a folder, or an object-store URI such as s3://bucket/train/")
    features: Text | Columns = Field(description="one column of lists, or several columns of numbers")
    label: Text = Field(description="column of the class")
    client: Text | None = Field(None, description="column that names each row's client")
    shape: Annotated[list[PositiveInt], MinLen(1)] | None = Field(
        None, description="shape of one example, such as [1, 28, 28]"
    )
    test_path: Text | None = Field(None, description="a table of test examples; default a part of `path`")
    test_fraction: Fraction = Field(0.2, description="part held back for testing when there is no test_path")


class OwnData(DataSection):
    """Your own function that returns the data."""

    target: Target = Field(description="function to call, as package.module:function")
    kwargs: dict[str, Any] = Field({}, description="its keyword arguments")


Data = Annotated[
    Annotated[Digits, Tag("digits")]
    | Annotated[Downloaded, Tag("mnist")]
    | Annotated[Downloaded, Tag("fashion-mnist")]
    | Annotated[EmnistLetters, Tag("emnist-letters")]
    | Annotated[Cifar10, Tag("cifar-10")]
    | Annotated[Cifar10, Tag("cifar-10-jpeg")]
    | Annotated[Letters, Tag("letters")]
    | Annotated[Planetoid, Tag("cora")]
    | Annotated[Planetoid, Tag("citeseer")]
    | Annotated[Planetoid, Tag("pubmed")]
    | Annotated[Shakespeare, Tag("tiny-shakespeare")]
    | Annotated[Synthetic, Tag("synthetic")]
    | Annotated[Parquet, Tag("parquet")]
    | Annotated[GraphParquet, Tag("graph-parquet")]
    | Annotated[GraphOgb, Tag("graph-ogb")]
    | Annotated[Sbm, Tag("sbm")]
    | Annotated[PowerLaw, Tag("power-law")]
    | Annotated[OwnData, Tag("target")],
    Discriminator(ByName(own=True).tag),
]


# -------------------------------------------------------------------------------------------------- models


class Pretrain(Section):
    """Training the model on other data before the run, whose model then begins with all but the output layer of it."""

    data: Data = Field(description="what it is first trained on; examples of the same shape, all in one place")
    epochs: PositiveInt = Field(3, description="passes over that data")
    batch_size: PositiveInt = Field(32, description="examples of one step")
    optimizer: Optimizer = Field(Optimizer(), description="how a step moves the weights")
    freeze: Text | None = Field(None, description="pattern of the parameters that the run leaves as they are")
    output: Text | None = Field(
        None, description="pattern of the tensors that are not taken over; null: those that depend on the classes"
    )
    threads: PositiveInt = Field(1, description="threads that train; another number gives other bits")


class ModelSection(Section):
    """What every model has."""

    dtype: Literal["float32", "float64"] = Field("float32", description="type of weights and inputs")
    pretrain: Pretrain | None = Field(None, description="other data to train on first; null: none")
    weights: Text | None = Field(
        None, description="what the model begins with: a .pt or .safetensors file, or a run; null: drawn by the seed"
    )


class Logistic(ModelSection):
    """One linear layer: multinomial logistic regression."""

    name: Literal["logistic"]


class Mlp(ModelSection):
    """Linear layers with ReLU between them."""

    name: Literal["mlp"]
    hidden: list[PositiveInt] = Field([200], description="width of each hidden layer")
    dropout: Rate = Field(0.0, description="probability of dropping a hidden unit in training")


class Cnn(ModelSection):
    """A small convolutional network for images."""

    name: Literal["cnn"]
    filters: Annotated[list[PositiveInt], MinLen(1)] = Field([32, 64], description="filters of each convolution")
    dense: PositiveInt = Field(128, description="width of the layer before the classes")
    dropout: Rate = Field(0.0, description="probability of dropping a dense unit in training")


class BristleCnn(ModelSection):
    """Bristle's network for MNIST: two convolutions of 5x5 and an output layer without a bias."""

    name: Literal["bristle-cnn"]


class ResNet(ModelSection):
    """The CIFAR family of residual networks."""

    name: Literal["resnet"]
    depth: Annotated[PositiveInt, Ge(8), Le(1202)] = Field(
        20, description="weighted layers, 6n + 2: 8, 14, 20, 32, 56, 110"
    )
    width: PositiveInt = Field(16, description="filters of the first stage; doubled twice")
    norm: Literal["batch", "group"] = Field("group", description="group suits small local batches")
    shortcut: Literal["identity", "convolution"] = Field(
        "identity", description="where a block changes the size: without weights, or a 1x1 convolution with a norm"
    )

    @field_validator("depth")
    @classmethod
    def _six_n_plus_two(cls, depth: int) -> int:
        if (depth - 2) % 6:
            below = depth - (depth - 2) % 6
            raise ValueError(f"a whole number 6n + 2, such as {below} or {below + 6}")
        return depth


class Vgg(ModelSection):
    """VGG networks for images of at least 16 x 16."""

    name: Literal["vgg"]
    depth: Literal[11, 13, 16, 19] = Field(11, description="weighted layers of the published network")
    width: PositiveInt = Field(64, description="filters of the first stage; doubled three times")
    norm: Literal["batch", "group"] = Field("group", description="group suits small local batches")
    dense: NonNegativeInt = Field(
        0, description="width of two dense layers, published 4096; 0: one of the image's mean"
    )
    dropout: Rate = Field(0.5, description="probability of dropping a dense unit in training")


class TransformerLM(ModelSection):
    """A decoder-only transformer that predicts the next token."""

    name: Literal["transformer"]
    layers: Annotated[PositiveInt, Le(1000)] = Field(2, description="number of blocks")
    heads: PositiveInt = Field(4, description="attention heads; they divide the width")
    width: PositiveInt = Field(64, description="size of a token's vector")
    dropout: Rate = Field(0.0, description="probability of dropping a value in training")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerLM:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, but {self.width} / {self.heads} leaves a rest")
        return self


class Vit(ModelSection):
    """A vision transformer: an image as a sequence of patches."""

    name: Literal["vit"]
    patch: PositiveInt = Field(4, description="side of a patch in pixels; it divides the image's")
    depth: Annotated[PositiveInt, Le(1000)] = Field(6, description="number of blocks; DeiT has 12")
    heads: PositiveInt = Field(3, description="attention heads; they divide the width")
    width: PositiveInt = Field(192, description="size of a patch's vector; DeiT-Ti 192, DeiT-S 384, DeiT-B 768")
    dropout: Rate = Field(0.0, description="probability of dropping a value in training")
    pool: Literal["token", "mean"] = Field(
        "token", description="what is classified: an own token, or the patches' mean"
    )
    attention: Literal["fused", "plain"] = Field(
        "fused", description="fused: torch's kernel, which keeps no softmax; plain: products and a softmax"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Vit:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, but {self.width} / {self.heads} leaves a rest")
        return self


class OwnModel(ModelSection):
    """Your own function or class that returns a torch module."""

    target: Target = Field(description="function or class to call, as package.module:function")
    kwargs: dict[str, Any] = Field({}, description="its keyword arguments; input_shape and num_classes are added")


Model = Annotated[
    Annotated[Logistic, Tag("logistic")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[BristleCnn, Tag("bristle-cnn")]
    | Annotated[ResNet, Tag("resnet")]
    | Annotated[Vgg, Tag("vgg")]
    | Annotated[TransformerLM, Tag("transformer")]
    | Annotated[Vit, Tag("vit")]
    | Annotated[Gcn, Tag("gcn")]
    | Annotated[Sage, Tag("sage")]
    | Annotated[Gcnii, Tag("gcnii")]
    | Annotated[ResGcn, Tag("resgcn")]
    | Annotated[Gat, Tag("gat")]
    | Annotated[OwnModel, Tag("target")],
    Discriminator(ByName(own=True).tag),
]
