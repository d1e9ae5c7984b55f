"""Networks of Hugging Face's transformers."""

import pytest
import torch
from jsonargparse import ArgumentParser
from tiny import snapshot, unchanged
from torch import nn

from lightning_biaskd import UserError, load_weights
from lightning_biaskd.models import from_pretrained

transformers = pytest.importorskip("transformers")


def tiny():
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=6
    )
    return transformers.ResNetForImageClassification(config)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "2KB"}])
def test_a_folder_of_save_pretrained_loads_as_weights(tmp_path, options):
    source, target = tiny(), tiny()
    source.save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors.index.json").is_file() == bool(options)
    load_weights(target, tmp_path)
    assert unchanged(snapshot(source), target)


def test_from_pretrained_in_yaml(tmp_path):
    source = tiny()
    source.save_pretrained(tmp_path)
    parser = ArgumentParser()
    parser.add_argument("--model", type=nn.Module)
    spec = {"class_path": "lightning_biaskd.models.from_pretrained", "init_args": {"name": str(tmp_path)}}
    model = parser.instantiate_classes(parser.parse_object({"model": spec})).model
    assert unchanged(snapshot(source), model)
    assert from_pretrained(str(tmp_path), num_classes=3)(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 3)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="transformers can't load") as error:
        from_pretrained(str(tmp_path / "nothing"), local_files_only=True)
    assert "\n" not in str(error.value)
