"""What clients may ask of a replica, and whose links the answers show."""

from collections.abc import Callable

import pytest

from chain.errors import RemoteFault
from hopchain import wire
from node.questions import Question, account_asked, check_question_untrusted


@pytest.mark.parametrize("name", ["x" * 65, "mint\0", "m\u0456nt", "Mint", "-mint", "mint\n"])
@pytest.mark.parametrize(
    "question",
    [
        lambda name: wire.AskBalance(name),
        lambda name: wire.AskChain(name, 0, 1),
        lambda name: wire.AskOutcome(bytes(32), name),
        lambda name: wire.AskRoute(name, bytes(20)),
    ],
    ids=["balance", "chain", "outcome", "route"],
)
def test_a_question_about_what_cannot_be_a_name_is_refused(
    question: Callable[[str], wire.AskBalance], name: str
) -> None:
    with pytest.raises(RemoteFault, match="look-alike characters are refused") as caught:
        check_question_untrusted(question(name))
    assert caught.value.code == "bad_name"


@pytest.mark.parametrize("question", [wire.AskBalance(""), wire.AskChain("", 0, 1)])
def test_a_balance_or_chain_of_no_name_is_refused(question: wire.AskBalance) -> None:
    with pytest.raises(RemoteFault, match="'' is not an account name"):
        check_question_untrusted(question)


@pytest.mark.parametrize(
    "question",
    [
        wire.AskBalance("mint"),
        wire.AskChain("mint", 0, 1),
        wire.AskOutcome(bytes(32)),
        wire.AskOutcome(bytes(32), "mint"),
        wire.AskRoute("", bytes(20)),
        wire.AskRoute("", bytes(32)),
        wire.AskRoute("mint", b""),
        wire.AskAccounts("anything\0", 1),
        wire.AskStatus(),
        wire.AskDigest(),
    ],
)
def test_a_question_that_can_be_answered_passes(question: wire.AskBalance) -> None:
    check_question_untrusted(question)


@pytest.mark.parametrize(
    "question",
    [
        wire.AskOutcome(b"x" * 31),
        wire.AskOutcome(b"x" * 2_200_000),
        wire.AskRoute("", bytes(19)),
        wire.AskRoute("", bytes(4_194_000)),
    ],
)
def test_an_id_or_key_of_another_length_is_refused(question: wire.AskRoute) -> None:
    """An answer repeats it: one of megabytes would make an answer that no frame holds."""
    with pytest.raises(RemoteFault, match="bad_key"):
        check_question_untrusted(question)


@pytest.mark.parametrize(
    ("question", "account"),
    [
        (wire.AskBalance("alice"), "alice"),
        (wire.AskChain("alice", 0, 10), "alice"),
        (wire.AskOutcome(bytes(32), "alice"), "alice"),
        (wire.AskOutcome(bytes(32)), ""),
        (wire.AskRoute("alice", b""), "alice"),
        (wire.AskRoute("", bytes(20)), None),
        (wire.AskAccounts("", 10), ""),
        (wire.AskDigest(), ""),
        (wire.AskStatus(), None),
        (wire.AskMembers(1), None),
        (wire.AskHealth(), None),
    ],
)
def test_what_a_client_was_told_is_in_every_answer_that_shows_links(question: Question, account: str | None) -> None:
    """A commit may be under way: whose links the answer shows says which one it waits for."""
    assert account_asked(question) == account
