"""Columns of several types in JSON files: ``datasets`` keeps their values as JSON text, and decodes all of it.

One bare number among answers that are text makes such a column (``datasets`` 5.2), and a text such as ``12``, ``007``,
``true`` or ``[1,2]``, which is JSON, is then kept as it stands, any other as a JSON string. Decoded, half of the
answers of a set of problems are numbers, and dates, intervals and integers have changed; read as written, all are text.
"""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def undecoded(dataset: "Dataset | IterableDataset") -> tuple[Any, Any]:
    """The dataset with the JSON text of its mixed columns, and the features that it had (None where none is mixed)."""
    features = dataset.features
    texts = _with_texts(features)
    return (dataset, None) if features is None or texts == features else (dataset.cast(texts), features)


def as_written(value: Any, feature: Any) -> Any:
    """A row of :func:`undecoded`, or a value of it, with the text that the file holds in the place of JSON text.

    A number or a truth value, which cannot be told from text that spells it, is that text; objects, and lists that
    hold one, are objects and lists.
    """
    if value is None or feature is None:
        return value
    if _is_json(feature):
        return _text_of(value)
    if isinstance(feature, dict):
        return {key: as_written(item, feature.get(key)) for key, item in value.items()}
    element = _element(feature)
    return value if element is None else [as_written(item, element) for item in value]


def _with_texts(feature: Any) -> Any:
    """The same features with text in the place of JSON."""
    from datasets import Value

    if _is_json(feature):
        return Value("string")
    if isinstance(feature, dict):  # Features, too
        return type(feature)({key: _with_texts(each) for key, each in feature.items()})
    element = _element(feature)
    if element is None:
        return feature
    inner = _with_texts(element)
    return [inner] if isinstance(feature, list) else dataclasses.replace(feature, feature=inner)


def _is_json(feature: Any) -> bool:
    import datasets

    kind = getattr(datasets, "Json", None)  # datasets 4 refuses columns of several types
    return kind is not None and isinstance(feature, kind)


def _element(feature: Any) -> Any:
    """What a list holds, None for what is no list."""
    from datasets import LargeList, List

    if isinstance(feature, list):
        return feature[0]
    return feature.feature if isinstance(feature, List | LargeList) else None


def _text_of(stored: str) -> Any:
    if not stored.lstrip().startswith(('"', "{", "[")):
        return stored
    value = json.loads(stored)
    is_structure = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict) for x in value))
    return value if is_structure or isinstance(value, str) else stored
