"""How well a linear map of an encoder's numbers says where things are."""

from __future__ import annotations

import numpy as np

RIDGE = 1e-2


def ridge_error(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    """Mean distance between truth and a ridge regression from standardised features (N, D) to positions (N, P).

    Its strength is relative to the features' variance, so that encoders of few and of many numbers are treated alike.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-6
    a, b = (x - mean) / scale, (x_test - mean) / scale
    centred = y - y.mean(0)
    # In the dual, as there may be more features than scenes; a unit of strength for each feature.
    kernel = a @ a.T / a.shape[1]
    weights = np.linalg.solve(kernel + RIDGE * np.eye(len(a)), centred)
    predicted = b @ a.T / a.shape[1] @ weights + y.mean(0)
    return float(np.linalg.norm(predicted - y_test, axis=1).mean())
