"""``python -m kdnb.bench``."""

import sys

from kdnb.bench import main

sys.exit(main())
