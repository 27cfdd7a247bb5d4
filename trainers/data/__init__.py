"""Data sets by name, users' own data, and the transform from stored examples to tensors."""

from trainers.data.base import DataError, Dataset, partition_labels, to_labels, to_tensor
from trainers.data.download import data_folder
from trainers.data.registry import load
from trainers.data.validate import validate

__all__ = ["DataError", "Dataset", "data_folder", "load", "partition_labels", "to_labels", "to_tensor", "validate"]
