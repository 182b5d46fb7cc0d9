"""Ask this node's resident model for one latent: what an extraction job runs, once per item."""

import os
import sys

# A module is compiled once, a script whenever it runs. By its own folder, since the package would be imported too.
sys.path.insert(0, f"{os.path.dirname(os.path.abspath(__file__))}/gpi_latents/resident")
import client

os._exit(client.main())  # at once: taking Python down costs as much as the rest
