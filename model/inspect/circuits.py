"""What the weights of a head are made to do, without any text.

A head's output circuit takes a token that is attended to and adds `E · W_V · W_O · U` to the logits. Where its
eigenvalues are positive, it makes the token that it sees more likely: it copies (Elhage et al. 2021).

Letters in names: V vocabulary, D model width, H query heads, K key/value heads, A head size, L layers.
"""

import jax.numpy as jnp
import numpy as np

from model.inspect.walk import unembedding
from model.llama import Llama


def copying(model: Llama) -> np.ndarray:
    """Σ Re λ / Σ |λ| over the eigenvalues of each head's output circuit, `[layers, heads]`, between −1 and 1; chance 0.

    The circuit is V × V; its eigenvalues that are not 0 are those of the A × A matrix `W_O · U · E · W_V`. The norms'
    scales are folded into W_V and U.
    """
    attention = model.layers.attention
    size, heads = model.config.head_dim, model.config.num_attention_heads
    # E and U meet in one product, which is the same for all heads.
    joint_DD = unembedding(model).T @ model.embedding[...]
    scores = []
    for number in range(model.config.num_hidden_layers):
        scale_D = model.layers.attention_norm.scale[...][number]
        value_DKA = attention.value.kernel[...][number].reshape(len(scale_D), -1, size) * scale_D[:, None, None]
        out_HAD = attention.out.kernel[...][number].reshape(heads, size, -1)
        value_DHA = jnp.repeat(value_DKA, heads // value_DKA.shape[1], axis=1)
        small_HAA = jnp.einsum("had,de,ehc->hac", out_HAD, joint_DD, value_DHA)
        eigenvalues_HA = np.linalg.eigvals(np.asarray(small_HAA))
        scores.append(eigenvalues_HA.real.sum(-1) / np.maximum(np.abs(eigenvalues_HA).sum(-1), 1e-30))
    return np.stack(scores)
