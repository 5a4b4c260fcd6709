"""A disk that lies: a confirmation is reset by hand, past the triggers. The checks of forming stop the node; without
them the money is used twice, and the observer sees it (design section 2, steps 2 and 3)."""

import sqlite3

import pytest

from chain.errors import Corruption
from chain.request import Posting, sign, transfer
from hopchain.wire import ReplyBody, Submit
from netsim.checks import Violation, Watch
from netsim.load import Clients, open_and_fund
from netsim.mutants import Edit, Mutant, switched_off
from netsim.names import key_of
from netsim.plan import Load, Plan
from netsim.run import make_world
from netsim.world import World

FUNDS = 1000
NO_TIP_CHECK = Edit("chain.rules:check_tip_income", "found != forming.tip_checksum", "False")
NO_SECOND_THREAD = Edit("chain.rules:check_second_thread", "forming.incoming", "()")


class Bank:
    """One node; acct-0 and acct-1 have FUNDS each. `pay` waits for the answer."""

    def __init__(self) -> None:
        plan = Plan(seed=5, nodes=1, k=1, load=Load(accounts=2, requests=0, funds=FUNDS))
        self.world: World
        self.watch: Watch
        self.world, self.watch = make_world(plan)

    def __enter__(self) -> "Bank":
        self.world.__enter__()
        self.world.run_for(1.0)
        open_and_fund(self.world, Clients(self.world, self.world.plan.load, self.world.rng))
        return self

    def __exit__(self, *error: object) -> None:
        self.world.__exit__(*error)

    @property
    def conn(self) -> sqlite3.Connection:
        return self.world.nodes[0].disk.conn

    def pay(self, sender: str, recipient: str, amount: int) -> None:
        request = transfer(self.world.network_id, sender, [Posting(recipient, amount)], self.world.rng.randbytes(32))
        signed = sign(request, key_of(sender))
        answers: list[ReplyBody] = []
        self.world.submit(0, Submit(signed.raw, signed.signature, 5000), answers.append)
        self.world.run_for(1.0)
        assert answers

    def damage(self, assignments: str, where: str) -> None:
        """Change rows of `transfers` as a broken disk would: no trigger sees it."""
        triggers = self.conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            self.conn.execute(f"DROP TRIGGER {name}")
        changed = self.conn.execute(f"UPDATE transfers SET {assignments} WHERE {where}").rowcount
        assert changed == 1, changed
        for _, sql in triggers:
            self.conn.execute(sql)


def reset_by_the_tip() -> None:
    """acct-0's first link took up its funds. The confirmation and its thread are gone; then acct-0 pays again."""
    with Bank() as bank:
        bank.pay("acct-0", "acct-1", 10)
        bank.damage("confirmation = NULL, prev_confirmed_hash = NULL", "recipient = 'acct-0'")
        bank.pay("acct-0", "acct-1", FUNDS)


def reset_by_an_older_link() -> None:
    """acct-0 took up its funds two links ago: its tip has nothing to do with them."""
    with Bank() as bank:
        bank.pay("acct-0", "acct-1", 10)
        bank.pay("acct-0", "acct-1", 10)
        bank.damage("confirmation = NULL", "recipient = 'acct-0'")
        bank.pay("acct-0", "acct-1", FUNDS)


def test_the_tips_income_is_checked() -> None:
    with pytest.raises(Corruption, match="its incoming checksum is"):
        reset_by_the_tip()


def test_without_the_check_of_the_tips_income_money_is_used_twice() -> None:
    with (
        switched_off(Mutant("tip's income unchecked", "money", "", (NO_TIP_CHECK,))),
        pytest.raises(Violation, match=r"I4: .* is confirmed twice"),
    ):
        reset_by_the_tip()


def test_the_second_thread_is_checked() -> None:
    with pytest.raises(Corruption, match="it was confirmed before and its confirmation was reset"):
        reset_by_an_older_link()


def test_without_the_second_thread_money_is_used_twice() -> None:
    with (
        switched_off(Mutant("second thread unchecked", "money", "", (NO_SECOND_THREAD,))),
        pytest.raises(Violation, match=r"I4: .* is confirmed twice"),
    ):
        reset_by_an_older_link()
