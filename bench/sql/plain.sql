-- A plain ledger: double entries and a balance, checked by one function and by nothing else.
CREATE TABLE accounts (
  id      integer PRIMARY KEY,
  balance bigint  NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE transfers (
  request_id bytea       PRIMARY KEY,
  sender     integer     NOT NULL,
  recipient  integer     NOT NULL,
  amount     bigint      NOT NULL,
  made       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE entries (
  id            bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  request_id    bytea   NOT NULL,
  account       integer NOT NULL,
  amount        bigint  NOT NULL,
  balance_after bigint  NOT NULL
);

-- One transfer: idempotent by its id, refuses overdrafts, writes both entries. Locks in the order of the ids, so that
-- no two transfers wait for each other.
CREATE FUNCTION transfer_plain(id_ bytea, sender_ integer, recipient_ integer, amount_ bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  before_sender bigint;
  before_recipient bigint;
BEGIN
  PERFORM 1 FROM accounts WHERE id IN (sender_, recipient_) ORDER BY id FOR UPDATE;
  INSERT INTO transfers (request_id, sender, recipient, amount) VALUES (id_, sender_, recipient_, amount_)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN 'repeated';
  END IF;
  UPDATE accounts SET balance = balance - amount_ WHERE id = sender_ RETURNING balance INTO before_sender;
  IF before_sender < 0 THEN
    RAISE EXCEPTION 'overdraft of account %', sender_;
  END IF;
  UPDATE accounts SET balance = balance + amount_ WHERE id = recipient_ RETURNING balance INTO before_recipient;
  INSERT INTO entries (request_id, account, amount, balance_after)
    VALUES (id_, sender_, -amount_, before_sender), (id_, recipient_, amount_, before_recipient);
  RETURN 'completed';
END $$;
