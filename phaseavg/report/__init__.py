"""Tables and figures from records."""

import os

os.environ["MPLBACKEND"] = "agg"  # figures go to files; a notebook's backend may not be installed
