"""What the gate compares: anything that turns token ids into logits."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


class Model(Protocol):
    """Anything that turns packed sequences of token ids into logits `[sequences, labels]`."""

    def logits(self, sequences: Sequence[TokenIds]) -> Logits: ...


class Original(Model, Protocol):
    """What an artefact is compared with. `remembered` says whether its last answers were given in an earlier run."""

    remembered: bool
