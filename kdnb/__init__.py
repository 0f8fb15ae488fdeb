"""Knowledge distillation for transparent classifiers: what the notebooks share.

Importing ``kdnb`` itself costs nothing; each notebook imports the modules it uses.
Which module stands on which floor, and what it may import, says the map in ``CONTRIBUTING.md``.
"""

import os

# Downloaded weights are pickles, which can hold any code: torch shall take tensors out of them and nothing else.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

__version__ = "0.1.0"
