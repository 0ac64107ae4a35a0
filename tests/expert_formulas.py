"""What the equations of experts and gates are made of."""

from torch import Tensor

from stem_torchrec.models.group_experts import CROSS_LAYERS


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(dim=1, keepdim=True)


def expert(weights: dict[str, Tensor], k: int, x: Tensor, kind: str, feature_gate: bool, layers: int = 2) -> Tensor:
    """The output of one expert, from the weights of its group by their names."""
    mlp = "mlp." if kind != "mlp" or feature_gate else ""
    if feature_gate:
        x = x * 2 * sigmoid(x @ weights["feature_gate.down.weight"].T @ weights["feature_gate.up.weight"].T)
    first = x
    for i in range(CROSS_LAYERS if "cross" in kind else 0):
        v, w, b = (weights[f"cross.{name}.{i}"] for name in ("V_kernels", "W_kernels", "bias"))
        x = first * (x @ v.T @ w.T + b) + x
    for i in range(layers):
        x = x @ weights[f"{mlp}{2 * i}.weight"][k] + weights[f"{mlp}{2 * i}.bias"][k]
        if "norm" in kind:
            deviation = x - x.mean(dim=1, keepdim=True)
            normed = deviation / (deviation.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
            z = weights[f"{mlp}{2 * i + 1}.weight"][k] * normed + weights[f"{mlp}{2 * i + 1}.bias"][k]
            x = z * sigmoid(z)
        else:
            x = x.relu()
    return x
