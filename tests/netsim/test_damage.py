"""A disk that lies: a confirmation is taken back by hand, past the triggers. The checks of forming stop the node.
Without them a link that uses the money twice is decided; the observer sees it, or the database refuses the link (design
section 2, steps 2 and 3)."""

import sqlite3

import pytest

from chain.errors import Corruption
from chain.request import Posting, sign, transfer
from hopchain.wire import ReplyBody, Submit
from netsim.load import Clients, open_and_fund
from netsim.mutants import Edit, Mutant, switched_off
from netsim.names import key_of
from netsim.plan import Load, Plan
from netsim.violation import Violation
from netsim.world import World

FUNDS = 1000
NO_TIP_CHECK = Edit("chain.rules:check_tip_income", "found != forming.tip_checksum", "False")
NO_SECOND_THREAD = Edit("chain.rules:check_second_thread", "forming.incoming", "()")


class Bank:
    """One node; acct-0 and acct-1 have FUNDS each. `pay` waits for the answer."""

    def __init__(self) -> None:
        plan = Plan(seed=5, nodes=1, k=1, load=Load(accounts=2, requests=0, funds=FUNDS))
        self.world = World(plan)

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

    def take_back(self, *, thread: bool) -> None:
        """Take back the confirmation of acct-0's funds as a broken disk would, with its `thread` or not: no trigger
        sees it."""
        triggers = self.conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            self.conn.execute(f"DROP TRIGGER {name}")
        statements = [
            "INSERT INTO incoming SELECT r.id, s.id, t.id, t.amount FROM transfers AS t JOIN accounts AS r ON r.name = t.recipient "
            "JOIN accounts AS s ON s.name = t.sender WHERE t.recipient = 'acct-0'",
            "DELETE FROM confirmations WHERE posting IN (SELECT id FROM transfers WHERE recipient = 'acct-0')",
        ]
        if thread:
            statements.append("DELETE FROM threads WHERE recipient = (SELECT id FROM accounts WHERE name = 'acct-0')")
        for statement in statements:
            changed = self.conn.execute(statement).rowcount
            assert changed == 1, (statement, changed)
        for _, sql in triggers:
            self.conn.execute(sql)


def reset_by_the_tip() -> None:
    """acct-0's first link took up its funds. The confirmation and its thread are gone; then acct-0 pays again."""
    with Bank() as bank:
        bank.pay("acct-0", "acct-1", 10)
        bank.take_back(thread=True)
        bank.pay("acct-0", "acct-1", FUNDS)


def reset_by_an_older_link() -> None:
    """acct-0 took up its funds two links ago: its tip has nothing to do with them."""
    with Bank() as bank:
        bank.pay("acct-0", "acct-1", 10)
        bank.pay("acct-0", "acct-1", 10)
        bank.take_back(thread=False)
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
    with pytest.raises(Corruption, match="was confirmed and its confirmation was taken back"):
        reset_by_an_older_link()


def test_without_the_second_thread_a_link_is_decided_that_no_database_takes() -> None:
    """The owner alone must stop, before it proposes; not everybody, after the link is decided."""
    with (
        switched_off(Mutant("second thread unchecked", "money", "", (NO_SECOND_THREAD,))),
        pytest.raises(Corruption, match=r"the database refuses decided link .* is not the next one of its sender"),
    ):
        reset_by_an_older_link()
