"""Attention over retrieved pairs, in NumPy: one head, one block of queries at a time."""

from __future__ import annotations

import numpy as np

from recollect_server.domain.arrays import Float32


def softmax_lse(scores: Float32) -> tuple[Float32, Float32]:
    """Softmax over the last axis, where -inf marks what is not there.

    Args:
        scores: [T, K], already scaled.

    Returns:
        Probabilities [T, K], all 0 in a row without entries; LSE [T], -inf there.
    """
    top = scores.max(axis=-1, keepdims=True)
    top[np.isneginf(top)] = 0.0  # -inf - -inf would be NaN
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = top[..., 0] + np.log(total[..., 0])
    return weights / np.where(total > 0, total, np.float32(1)), lse


def attend(scores: Float32, values: Float32) -> tuple[Float32, Float32]:
    """softmax(scores) v.

    Args:
        scores: [T, K], already scaled.
        values: [T, K, Dv], finite everywhere.

    Returns:
        Output [T, Dv] and LSE [T].
    """
    p, lse = softmax_lse(scores)
    return np.matmul(p[:, None, :], values)[:, 0], lse


def attend_backward(
    queries: Float32,
    keys: Float32,
    values: Float32,
    *,
    present: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    scale: float,
    grad_output: Float32,
    grad_lse: Float32 | None,
) -> Float32:
    """ds_i = p_i (go.v_i - go.o + glse); dq = scale sum_i ds_i k_i.

    Args:
        queries: [T, Dk].
        keys: [T, K, Dk].
        values: [T, K, Dv].
        present: [T, K], False where there was no entry.
        scale: Of the forward call.
        grad_output: [T, Dv].
        grad_lse: [T], or None for zero.

    Returns:
        [T, Dk].
    """
    products = np.matmul(keys, queries[:, :, None])[:, :, 0]  # [T, K]
    p, _ = softmax_lse(np.where(present, np.float32(scale) * products, np.float32(-np.inf)))
    dp = np.matmul(values, grad_output[:, :, None])[:, :, 0]  # [T, K]: go.v_i
    shared = (p * dp).sum(axis=-1)  # [T]: go.o
    if grad_lse is not None:
        shared = shared - grad_lse
    ds = p * (dp - shared[:, None])
    gradient: Float32 = np.float32(scale) * np.matmul(ds[:, None, :], keys)[:, 0]
    return gradient
