"""A made-up file of standing payment orders, the same for the same seed: for the demo, the examples and the tests.

Semicolons, quoted strings, amounts with two decimals; columns order_id, account_id (payer), bank_to, account_to
(payee at that bank), amount, k_symbol (what it is for, or a blank).
"""

import random
from decimal import Decimal
from typing import Final

HEADER: Final = ("order_id", "account_id", "bank_to", "account_to", "amount", "k_symbol")
BANKS: Final = ("AB", "CD", "EF", "GH", "IJ", "KL", "MN", "OP", "QR", "ST", "UV", "WX", "YZ")
SYMBOLS: Final = ("SIPO", "SIPO", "SIPO", "SIPO", "SIPO", " ", " ", "UVER", "POJISTNE", "LEASING")
FIRST_ORDER: Final = 10_001


def make_orders(rows: int, rng: random.Random) -> str:
    """The text of a payment file with `rows` orders: about two a payer, nearly every payee its own account."""
    lines = [";".join(f'"{name}"' for name in HEADER)]
    payees = [(rng.choice(BANKS), rng.randrange(10_000_000, 100_000_000)) for _ in range(max(1, rows * 49 // 50))]
    for number in range(rows):
        bank, account = rng.choice(payees)
        payer = 1 + rng.randrange(max(1, rows * 3 // 5))
        amount = Decimal(rng.randrange(100, 150_000)).scaleb(-1)  # whole hellers in tens, as people order them
        symbol = rng.choice(SYMBOLS)
        lines.append(f'{FIRST_ORDER + number};{payer};"{bank}";"{account}";{amount:.2f};"{symbol}"')
    return "\n".join(lines) + "\n"
