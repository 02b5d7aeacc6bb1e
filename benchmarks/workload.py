"""One request that every benchmark speaks: 5 s of reference for in-context cloning, 20 text tokens, N frames. NumPy only."""

import numpy as np

REFERENCE_FRAMES, TEXT_TOKENS, TRANSCRIPT_TOKENS, FRAMES = 62, 20, 15, 24
START, END, ROLE, NEWLINE = 151644, 151645, 77091, 198


def request(width: int) -> dict[str, np.ndarray]:
    """Token ids, codes and an x-vector [width]; the same for everybody."""
    noise = np.random.RandomState(7)
    body, transcript = noise.randint(0, 5000, TEXT_TOKENS), noise.randint(0, 5000, TRANSCRIPT_TOKENS)
    return {
        "input_ids": np.array([START, ROLE, NEWLINE, *body, END, NEWLINE, START, ROLE, NEWLINE]),
        "reference_ids": np.array([START, ROLE, NEWLINE, *transcript, END, NEWLINE]),
        "reference_codes": noise.randint(0, 2048, (REFERENCE_FRAMES, 16)),
        "forced_codes": noise.randint(0, 2048, (FRAMES, 16)),
        "x_vector": (0.05 * noise.standard_normal(width)).astype(np.float32),
    }
