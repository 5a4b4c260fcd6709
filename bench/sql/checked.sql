-- The same ledger, in which the database refuses what is wrong, however it is written: an entry carries the balance after
-- it and is the only thing that changes one, both entries of a transfer add up to nothing, and nothing is changed later.
CREATE TABLE accounts (
  id      integer PRIMARY KEY,
  balance bigint  NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);

CREATE TABLE transfers (
  request_id bytea       PRIMARY KEY CHECK (octet_length(request_id) = 32),
  sender     integer     NOT NULL REFERENCES accounts,
  recipient  integer     NOT NULL REFERENCES accounts,
  amount     bigint      NOT NULL CHECK (amount > 0),
  made       timestamptz NOT NULL DEFAULT now(),
  CHECK (sender <> recipient)
);

CREATE TABLE entries (
  id            bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  request_id    bytea   NOT NULL REFERENCES transfers,
  account       integer NOT NULL REFERENCES accounts,
  amount        bigint  NOT NULL CHECK (amount <> 0),
  balance_after bigint  NOT NULL,
  UNIQUE (request_id, account)
);

CREATE FUNCTION apply_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('ledger.entry', 'yes', true);
  UPDATE accounts SET balance = balance + NEW.amount WHERE id = NEW.account RETURNING balance INTO NEW.balance_after;
  PERFORM set_config('ledger.entry', '', true);
  RETURN NEW;
END $$;
CREATE TRIGGER apply_entry BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION apply_entry();

CREATE FUNCTION only_by_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('ledger.entry', true) IS DISTINCT FROM 'yes' THEN
    RAISE EXCEPTION 'a balance is changed by an entry only';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER only_by_entry BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION only_by_entry();

CREATE FUNCTION check_entries() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  count_ integer;
  sum_ bigint;
BEGIN
  SELECT count(*), sum(amount) INTO count_, sum_ FROM entries WHERE request_id = NEW.request_id;
  IF count_ <> 2 OR sum_ <> 0 THEN
    RAISE EXCEPTION 'transfer % has % entries that add up to %', NEW.request_id, count_, sum_;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER check_entries AFTER INSERT ON transfers DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION check_entries();

CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed or deleted', TG_TABLE_NAME;
END $$;
CREATE TRIGGER never BEFORE UPDATE OR DELETE ON transfers FOR EACH ROW EXECUTE FUNCTION never();
CREATE TRIGGER never BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION never();

-- Both rows locked at once or neither: what a client does that would rather be refused than wait.
CREATE FUNCTION lock_nowait(one integer, other integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM accounts WHERE id IN (one, other) ORDER BY id FOR UPDATE NOWAIT;
  RETURN 1;
EXCEPTION WHEN lock_not_available THEN
  RETURN 0;
END $$;

CREATE FUNCTION transfer_checked(id_ bytea, sender_ integer, recipient_ integer, amount_ bigint) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM accounts WHERE id IN (sender_, recipient_) ORDER BY id FOR UPDATE;
  INSERT INTO transfers (request_id, sender, recipient, amount) VALUES (id_, sender_, recipient_, amount_)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN 'repeated';
  END IF;
  INSERT INTO entries (request_id, account, amount, balance_after)
    VALUES (id_, sender_, -amount_, 0), (id_, recipient_, amount_, 0);
  RETURN 'completed';
END $$;
