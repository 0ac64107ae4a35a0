"""One more task: a trained STEM gets a task and keeps all that it has learned, bit for bit.

python examples/plug_in_task.py
"""

import torch
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from stem_torchrec import STEM, SparseFeature, add_tasks, embedding_bag_configs


def build(*tasks: str) -> STEM:
    """A STEM with one feature."""
    tables = embedding_bag_configs([SparseFeature("uid", 1000)], [*tasks, "shared"])
    return STEM(EmbeddingBagCollection(tables=tables), tasks)


trained, model = build("finish", "like"), build("finish", "share", "like")
print(add_tasks(model, trained.state_dict(), trained=["finish", "like"]))  # ('share',)
name = "sparse_arch.embedding_bag_collection.embedding_bags.like/uid.weight"
print(torch.equal(model.state_dict()[name], trained.state_dict()[name]))  # True: as is everything it has learned

features = KeyedJaggedTensor.from_lengths_sync(["uid"], torch.tensor([3, 7]), torch.tensor([1, 1]))
finish_and_like = model(torch.empty(2, 0), features)[:, [0, 2]]
print(torch.allclose(finish_and_like, trained(torch.empty(2, 0), features)))  # True
