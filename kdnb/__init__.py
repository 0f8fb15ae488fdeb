"""Knowledge distillation for transparent classifiers: what the notebooks share.

A floor imports only from floors below it::

    floor 3   sweep  fidelity/  figures  report
    floor 2   training  stack  evaluation  explain/  cost
    floor 1   datasets/  models  losses
    floor 0   errors  filesystems  files  sources  settings  device  provenance  runs

Importing ``kdnb`` itself costs nothing; each notebook imports the modules it uses.
"""

import os

# Downloaded weights are pickles, which can hold any code: torch shall take tensors out of them and nothing else.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

__version__ = "0.1.0"
