"""Tables and figures from records."""

import os

os.environ["MPLBACKEND"] = "agg"  # pictures are files; a notebook's backend may not be installed
