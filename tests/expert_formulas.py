"""What the equations of experts and gates are made of."""

from torch import Tensor


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(dim=1, keepdim=True)


def expert(
    weights: dict[str, Tensor],
    k: int,
    x: Tensor,
    kind: str,
    feature_gate: bool,
    prior: slice | None = None,
    layers: int = 2,
) -> Tensor:
    """The output of one expert of some layers, from the weights of its group by their names.

    With a gate it is behind a FeatureGate, with prior columns behind a PriorGate, and behind as many cross layers as
    there are weights of some.
    """
    mlp = "mlp." if kind != "mlp" or feature_gate or prior else ""
    if prior:
        of_prior, of_input, last = (weights[f"prior_gate.{n}.weight"].T for n in ("of_prior", "of_input", "last"))
        hidden = x[:, prior] @ of_prior + x.detach() @ of_input + weights["prior_gate.of_prior.bias"]
        x = x * 2 * sigmoid(hidden.relu() @ last + weights["prior_gate.last.bias"])
    if feature_gate:
        x = x * 2 * sigmoid(x @ weights["feature_gate.down.weight"].T @ weights["feature_gate.up.weight"].T)
    first = x
    for i in range(sum("V_kernels" in name for name in weights)):
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
