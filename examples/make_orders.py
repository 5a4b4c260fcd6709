"""Writes examples/standing-orders.csv again: 300 made-up standing orders.

python examples/make_orders.py
"""

import random
from pathlib import Path

from cli.orders import make_orders

SEED = 1999
ROWS = 300

if __name__ == "__main__":
    Path(__file__).with_name("standing-orders.csv").write_text(make_orders(ROWS, random.Random(SEED)))
